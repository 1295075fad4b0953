"""Contrastive training on any data: the training keys that its users know, compiled into a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from embed_core.config.document import lay_over
from embed_core.config.recipe import Recipe
from embed_core.config.resolve import SANITY
from embed_core.models.from_scratch import FROM_SCRATCH
from embed_data.config import PYDOCS

SANITY_ROWS = 8
"""Rows of a batch of ``sanity_test``, at least one per rank."""


class DataRecipe(Recipe):
    """An encoder with one dense vector, trained by InfoNCE on one source or a mix.

    A key left at None takes a default that suits the model: one for ``from-scratch``, one for a model that is loaded.
    """

    name: ClassVar[str] = "data"

    model_name_or_path: str = FROM_SCRATCH
    """A model directory, a model of the hub, or ``from-scratch``."""
    dataset_config: str | None = None
    """A dataset YAML (kind ``mix``): ``use_all``, ``num_total_data``, ``allow_duplicate``, ``datasets``."""
    train_data: str | tuple[str, ...] = PYDOCS
    """Without ``dataset_config``: what kind ``file`` reads, one path or several; or ``pydocs``, the documentation of
    installed packages."""
    eval_data: tuple[str, ...] = ()
    """BEIR folders to evaluate on, before and after training; none = the rows held out."""
    held_out_rows: int | None = Field(default=None, ge=0)
    """Rows held out to evaluate on, whatever the dataset YAML says; None = 400 of ``pydocs``, a tenth of other data (at
    most 200) unless ``eval_data`` is given."""
    output_dir: Path | None = None
    """Where the run writes; None = ``runs/data-DATE-TIME``."""
    seed: int = Field(default=42, ge=0)
    """Of the rows drawn, their order, the random weights and dropout."""
    sanity_test: bool = False
    """The same run in miniature, to see that everything works: few rows and steps, small batches, export included. As
    ``--sanity``."""

    max_length: int | None = Field(default=None, ge=3)
    """Tokens of a text; None = 192 from scratch, else 256."""
    query_max_length: int | None = Field(default=None, ge=3)
    """Tokens of a query; None = ``max_length``."""
    query_prompt: str | None = None
    """Put before queries whose row and source have no prompt; None = as saved with the model."""
    passage_prompt: str | None = None
    """Put before passages whose source has no prompt; None = as saved with the model."""
    pooling: Literal["cls", "mean", "last_token"] | None = None
    """Where the vector comes from; None = as saved with the model, else ``mean``."""
    normalize_embeddings: bool = True
    """Whether vectors have unit length."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""

    negatives: int | None = Field(default=None, ge=0)
    """Hard negatives drawn per row; None = as the dataset YAML says, else 7."""
    batching: Literal["homogeneous", "mixed"] | None = None
    """``homogeneous``: every batch from one source, so that in-batch negatives are of its task. ``mixed``: any rows
    that share no text. None = homogeneous for a mix."""
    temperature: float = Field(default=0.02, gt=0)
    """Similarities are divided by it."""
    mrl_dims: tuple[int, ...] = ()
    """Widths at which the vector is trained to be cut (Matryoshka, by embed-mrl); a ``from-scratch`` model is as wide
    as the largest. None of them = the whole vector only."""

    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate; None = 1e-3 from scratch, else 2e-5."""
    num_train_epochs: float | None = Field(default=None, gt=0)
    """Passes over the data; None = 2 from scratch, else 1."""
    max_steps: int | None = Field(default=None, gt=0)
    """Optimizer steps, whatever the epochs."""
    per_device_train_batch_size: int | None = Field(default=None, gt=0)
    """Rows per rank and batch; None = 64 from scratch, else 32."""
    gradient_accumulation_steps: int = Field(default=1, gt=0)
    """Batches per optimizer step."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, with less memory."""
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps spent warming up."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps spent warming up, whatever the ratio."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate goes on after the warm-up."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW; none on biases and normalisation weights."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 = no clipping."""
    fp16: bool = False
    """Train in fp16 (CUDA only)."""
    bf16: bool = False
    """Train in bf16."""

    save_steps: int | None = Field(default=None, gt=0)
    """Save the training state every so many steps; None = every 10 minutes."""
    save_total_limit: int = Field(default=2, ge=1)
    """Training states kept, besides the best one."""
    eval_steps: int = Field(default=0, ge=0)
    """Evaluate every so many steps, besides before and after; 0 = only those two."""
    logging_steps: int = Field(default=1, gt=0)
    """Log every so many steps."""

    model: dict[str, Any] = Field(default_factory=dict)
    """Laid over the compiled ``model``."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Laid over the compiled ``data``; ``kind: mix`` may be written out here."""

    @field_validator("mrl_dims")
    @classmethod
    def _dims(cls, dims: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if len(set(dims)) < len(dims) or any(dim <= 0 for dim in dims):
            raise ValueError(f"mrl_dims {list(dims)}: different positive widths are needed, for instance [128, 64, 32]")
        registry = (info.context or {}).get("registry")
        if dims and registry is not None and "matryoshka" not in registry.kinds("loss"):
            raise ValueError(
                "mrl_dims needs the loss `matryoshka` of embed-mrl, which is not installed or fails (`embed plugins` "
                "says which): `pip install embed-mrl`, or leave mrl_dims out"
            )
        return dims

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if self.fp16 and self.bf16:
            raise ValueError("fp16 and bf16 are both true: choose one of them")
        if self.dataset_config is not None and self.train_data != PYDOCS:
            raise ValueError("dataset_config and train_data both say what to train on: give one of them")
        return self

    def compile(self, world_size: int) -> dict[str, Any]:
        """See :meth:`embed_core.config.recipe.Recipe.compile`."""
        run = self._run(world_size)
        if self.sanity_test:
            small = {**SANITY, "sampler": {"batch_size": max(SANITY_ROWS, world_size)}}
            run = lay_over(lay_over(run, small), self.sanity())
        return run

    def sanity(self) -> dict[str, Any]:
        """A model of some thousand weights and a hundred rows; what the user set stays."""
        hidden = {} if self.mrl_dims else {"hidden": 32}
        shape = {"vocab_size": 500, "layers": 1, "heads": 2, **hidden}
        given = {"model": self.model, "data": self.data}
        overlay = _without({"model": {"from_scratch": shape}, "data": {"limit": 128}}, given)
        limits = {"query_limit": 32, "corpus_limit": 64}
        return overlay | {"evaluation": [one | limits for one in self._evaluation()]}

    @property
    def _scratch(self) -> bool:
        return str(self.model.get("name_or_path", self.model_name_or_path)) == FROM_SCRATCH

    def _run(self, world_size: int) -> dict[str, Any]:
        data = lay_over(self._data(), self.data)
        mix = data["kind"] == "mix"
        homogeneous = mix if self.batching is None else self.batching == "homogeneous"
        rows = self.per_device_train_batch_size or (64 if self._scratch else 32)
        precision = "fp16" if self.fp16 else "bf16" if self.bf16 else "auto"
        return {
            "name": self.name,
            "seed": self.seed,
            **({} if self.output_dir is None else {"output_dir": str(self.output_dir)}),
            "model": lay_over(self._model(), self.model),
            "data": data,
            "sampler": {"kind": "by-source" if homogeneous else "no-duplicates", "batch_size": rows * world_size},
            "loss": self._by_source_loss() if mix else self._loss(in_batch=True),
            "checkpoint": self._checkpoint(),
            "evaluation": self._evaluation(),
            "train": self._train(),
            "engine": {"precision": precision, "gradient_checkpointing": self.gradient_checkpointing},
            "tracking": {"log_every_steps": self.logging_steps},
        }

    def _longest(self) -> int:
        return self.max_length or (192 if self._scratch else 256)

    def _model(self) -> dict[str, Any]:
        shape = {"from_scratch": {"hidden": max(self.mrl_dims)}} if self.mrl_dims else {}
        return {
            "kind": "transformers-encoder",
            "name_or_path": self.model_name_or_path,
            "pooling": self.pooling,
            "normalize": self.normalize_embeddings,
            "trust_remote_code": self.trust_remote_code,
            "query_max_length": self.query_max_length or self._longest(),
            "passage_max_length": self._longest(),
            "query_prompt": self.query_prompt,
            "passage_prompt": self.passage_prompt,
            **shape,
        }

    def _data(self) -> dict[str, Any]:
        common: dict[str, Any] = {"held_out_rows": self._held_out_rows()}
        if self.negatives is not None:
            common["negatives"] = self.negatives
        if self.dataset_config is not None or self.data.get("kind") == "mix":
            counted = (
                {} if self._scratch else {"tokenizer": str(self.model.get("name_or_path", self.model_name_or_path))}
            )
            config = {} if self.dataset_config is None else {"config": self.dataset_config}
            return {"kind": "mix", **config, **common, **counted, "max_length": self._longest()}
        kind = "auto" if self.train_data == PYDOCS else "file"
        return {"kind": kind, "path": self.train_data, **common}

    def _held_out_rows(self) -> int | None:
        if self.held_out_rows is not None:
            return self.held_out_rows
        return 0 if self.eval_data else None

    def _loss(self, *, in_batch: bool) -> dict[str, Any]:
        loss = {"kind": "infonce", "temperature": self.temperature, "in_batch": in_batch}
        if not self.mrl_dims:
            return loss
        return {"kind": "matryoshka", "inner": loss, "dims": list(self.mrl_dims)}

    def _by_source_loss(self) -> dict[str, Any]:
        return {
            "kind": "by-source",
            "inner": self._loss(in_batch=True),
            "own_only": self._loss(in_batch=False),
        }

    def _checkpoint(self) -> dict[str, Any]:
        by_steps = {} if self.save_steps is None else {"every_steps": self.save_steps, "every_minutes": 0}
        return {"kind": "transformers", "keep_last": self.save_total_limit, **by_steps}

    def _evaluation(self) -> list[dict[str, Any]]:
        if self.eval_data:
            return [{"kind": "retrieval", "path": path} for path in self.eval_data]
        held_out = self.data.get("held_out_rows", self._held_out_rows())
        return [] if held_out == 0 else [{"kind": "retrieval"}]

    def _train(self) -> dict[str, Any]:
        return {
            "epochs": self.num_train_epochs or (2 if self._scratch else 1),
            "max_steps": self.max_steps,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "gradient_clipping": self.max_grad_norm,
            "evaluate_every_steps": self.eval_steps,
            "optimizer": {
                "learning_rate": self.learning_rate or (1e-3 if self._scratch else 2e-5),
                "weight_decay": self.weight_decay,
            },
            "schedule": {
                "kind": self.lr_scheduler_type,
                "warmup_ratio": self.warmup_ratio,
                "warmup_steps": self.warmup_steps,
            },
        }


def _without(overlay: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``overlay`` less the keys that ``given`` sets, at every depth."""
    kept: dict[str, Any] = {}
    for key, value in overlay.items():
        if isinstance(value, Mapping) and isinstance(given.get(key, {}), Mapping):
            kept[key] = _without(value, given.get(key, {}))
        elif key not in given:
            kept[key] = value
    return kept
