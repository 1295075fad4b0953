"""The parts of the recipe, each a key of its config file."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from embed_core.config.component import Section
from embed_core.config.run import TrainConfig

PYDOCS = "pydocs"


class HubKeys(Section):
    """How a model is loaded."""

    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run; nothing to allow where none does."""
    revision: str | None = None
    """Branch, tag or commit of a model of the hub; None = its main branch."""


class DeviceKeys(Section):
    """What the run computes on, and in what."""

    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """`auto` is CUDA where there is one."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Of the arithmetic; weights are kept and updated in fp32. `auto` is bfloat16 where the hardware multiplies it
    natively, else float32; `float16` needs CUDA."""

    @field_validator("device")
    @classmethod
    def _deepspeed_runs_there(cls, device: str) -> str:
        if device == "mps":
            raise ValueError(
                "'mps' cannot be trained on here, because DeepSpeed has no MPS: set auto, cuda or cpu "
                "(a model trained elsewhere runs on MPS as any other)"
            )
        return device


class TrainKeys(TrainConfig):
    """How long and in what batches; and the keys of a run's ``train``."""

    batch_size: int | None = Field(default=None, gt=0)
    """Rows per rank and batch, each other's negatives; None = 64 from scratch, else 32."""
    epochs: float | None = Field(default=None, gt=0)  # type: ignore[assignment] # None = of the model's kind
    """Passes over the data; None = 2 from scratch, else 1."""
    max_length: int | None = Field(default=None, ge=3)
    """Tokens of a text, longer ones are cut; None = as saved with the model, from scratch 192."""
    grad_accum_steps: int | None = Field(default=None, gt=0)
    """Batches per optimizer step; each has its own in-batch negatives. None = 1."""
    pad_to_multiple_of: int | None = Field(default=None, gt=0)
    """Pad to a multiple of so many tokens; None = to the longest text of a chunk."""
    fp16: Literal["auto"] | bool = "auto"
    """Mixed precision: `auto` = where `device.dtype` is float16 or bfloat16, or as the hardware likes where that is
    `auto`; true = on, in `device.dtype` or float16; false = off."""

    @model_validator(mode="after")
    def _one_number_of_batches(self) -> Self:
        ours, theirs = self.grad_accum_steps, self.gradient_accumulation_steps
        if ours is not None and "gradient_accumulation_steps" in self.model_fields_set and ours != theirs:
            raise ValueError(
                f"grad_accum_steps {ours} and gradient_accumulation_steps {theirs} are the same key: set one"
            )
        return self


class OptimKeys(Section):
    """AdamW and its schedule."""

    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; None = 1e-3 from scratch, else 5e-5."""
    weight_decay: float | None = Field(default=None, ge=0)
    """None on biases and normalisation weights; None = 0.01."""
    warmup_ratio: float | None = Field(default=None, ge=0, le=1)
    """Share of the steps spent warming up; None = 0.1."""
    scheduler: Literal["linear", "cosine", "constant"] | None = None
    """How the learning rate goes on after the warm-up; None = linear."""


class DataKeys(Section):
    """The pairs, and the keys of the dataset kind that reads them: `file`, or `pydocs`. With ``kind``, a dataset of
    another kind takes their place."""

    model_config = ConfigDict(extra="allow")

    pairs_path: str | tuple[str, ...] = PYDOCS
    """JSONL rows ``{"anchor": …, "positive": …}``, also with ``negative``; any other file, folder or dataset that kind
    `file` reads, or several of them; or ``pydocs``: the documentation of installed Python packages."""
    eval_paths: tuple[str, ...] = ()
    """BEIR folders to evaluate on, before and after training; none = the rows held out."""
    held_out_rows: int | None = Field(default=None, ge=0)
    """Rows held out to evaluate on; None = 400 of ``pydocs``, a tenth of other data (at most 200) unless
    ``eval_paths`` is given."""

    @model_validator(mode="after")
    def _no_slip(self) -> Self:
        """Keys that are none here go to the dataset, which does not know what they were meant to be."""
        for key in self.model_extra or {}:
            close = difflib.get_close_matches(key, type(self).model_fields, 1, 0.75)
            if close:
                raise ValueError(f"unknown key {key!r}: did you mean {close[0]!r}?")
        return self

    @property
    def others(self) -> dict[str, Any]:
        """Keys of the dataset."""
        return dict(self.model_extra or {})


class OutputKeys(Section):
    """Where the finished model is."""

    save_dir: Path | None = None
    """Folder of models; None = `./outputs` where ``save_name`` is set."""
    save_name: str | None = None
    """The model's own folder in it, which is also the run's: logs, checkpoints, and the model's files. Nothing in it is
    overwritten without ``--overwrite``. Neither set: `runs/sbert-DATE-TIME`, the model in `model` there."""

    @property
    def directory(self) -> Path | None:
        """The directory of the run and the model; ``None`` where neither key is set."""
        if self.save_dir is None and self.save_name is None:
            return None
        return (self.save_dir or Path("outputs")) / (self.save_name or "sbert")
