"""The nested keys that sentence-transformers' users know, compiled into a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import model_validator

from embed_core.config.document import lay_over
from embed_core.config.retrieval_keys import ModelOverlayKeys
from embed_core.config.run import TrainConfig
from embed_core.config.training_keys import SeedKeys
from embed_core.models.from_scratch import FROM_SCRATCH
from embed_sbert.sections import PYDOCS, DataKeys, DeviceKeys, HubKeys, OptimKeys, OutputKeys, TrainKeys


class SbertRecipe(SeedKeys, ModelOverlayKeys):
    """Any sentence-transformers model on (anchor, positive) pairs, by MultipleNegativesRankingLoss.

    A key left at None takes a default that suits the model: one for ``from-scratch``, one for a model that is loaded.
    """

    name: ClassVar[str] = "sbert"

    model_id: str = FROM_SCRATCH
    """A model directory, a model of the hub, or ``from-scratch``: a small one, its tokenizer trained on the pairs."""
    hf: HubKeys = HubKeys()
    """How the model is loaded."""
    device: DeviceKeys = DeviceKeys()
    """What the run computes on."""
    train: TrainKeys = TrainKeys()
    """Batches, epochs, lengths; also every key of a run's ``train``."""
    optim: OptimKeys = OptimKeys()
    """Learning rate and the like."""
    data: DataKeys = DataKeys()
    """The pairs; also every key of the dataset kind that reads them."""
    output: OutputKeys = OutputKeys()
    """Where the finished model is."""

    @model_validator(mode="after")
    def _a_precision(self) -> Self:
        if self.train.fp16 is False and self.device.dtype in ("float16", "bfloat16"):
            raise ValueError(
                f"train.fp16: false switches mixed precision off, device.dtype: {self.device.dtype!r} asks for it: set "
                "fp16 to auto, or dtype to float32"
            )
        if self._precision() == "fp16" and self.device.device == "cpu":
            key = "train.fp16: true" if self.train.fp16 is True else "device.dtype: 'float16'"
            raise ValueError(
                f"{key} needs CUDA, device.device is 'cpu': use dtype bfloat16, or float32 with fp16: auto"
            )
        return self

    @classmethod
    def shipped(cls) -> Path:
        """``config`` and ``config.qwen``."""
        return Path(__file__).parent / "configs"

    def compile(self, world_size: int) -> dict[str, Any]:
        """See :meth:`embed_core.config.recipe.Recipe.compile`."""
        directory = self.output.directory
        rows = self.train.batch_size or (64 if self._scratch else 32)
        return {
            "name": self.output.save_name or self.name,
            "seed": self.seed,
            **({} if directory is None else {"output_dir": str(directory)}),
            "model": self._model(),
            "data": self._data(),
            "sampler": {"kind": "no-duplicates", "batch_size": rows * world_size},
            "loss": {"kind": "multiple-negatives-ranking"},
            "checkpoint": {"kind": "sentence-transformers", "in_output_dir": directory is not None},
            "evaluation": self._evaluation(),
            "train": self._train(),
            "engine": {"precision": self._precision(), "device": self.device.device},
        }

    def sanity(self) -> dict[str, Any]:
        """A model of some thousand weights and a hundred rows; what the user set stays."""
        limits = {"query_limit": 32, "corpus_limit": 64}
        overlay: dict[str, Any] = {"evaluation": [one | limits for one in self._evaluation()]}
        if "from_scratch" not in self.model and "kind" not in self.model:
            tiny = {"vocab_size": 500, "hidden": 32, "layers": 1, "heads": 2}
            overlay["model"] = {"from_scratch": tiny}
        if not {"limit", "kind"} & set(self.data.others):
            overlay["data"] = {"limit": 128}
        return overlay

    @property
    def _scratch(self) -> bool:
        return str(self.model.get("name_or_path", self.model_id)) == FROM_SCRATCH

    def _model(self) -> dict[str, Any]:
        own = {
            "kind": "sentence-transformers",
            "name_or_path": self.model_id,
            "revision": self.hf.revision,
            "trust_remote_code": self.hf.trust_remote_code,
            "max_seq_length": self.train.max_length,
            "pad_to_multiple_of": self.train.pad_to_multiple_of,
        }
        if self.model.get("kind") == "lora":
            return {**self.model, "inner": lay_over(own, self.model.get("inner", {}))}
        compiled: dict[str, Any] = lay_over(own, self.model)
        return compiled

    def _data(self) -> dict[str, Any]:
        """The pairs, unless ``data`` names a dataset of another kind."""
        held_out = self.data.held_out_rows
        if self.data.pairs_path == PYDOCS:
            own: dict[str, Any] = {"kind": PYDOCS, **({} if held_out is None else {"held_out_queries": held_out})}
        else:
            held_out = 0 if held_out is None and self.data.eval_paths else held_out
            own = {"kind": "file", "path": self.data.pairs_path, "held_out_rows": held_out}
        compiled: dict[str, Any] = lay_over(own, self.data.others)
        return compiled

    def _evaluation(self) -> list[dict[str, Any]]:
        if self.data.eval_paths:
            return [{"kind": "retrieval", "path": path} for path in self.data.eval_paths]
        return [] if self.data.held_out_rows == 0 else [{"kind": "retrieval"}]

    def _train(self) -> dict[str, Any]:
        """The run's own keys as they were written, under the recipe's."""
        own = set(TrainConfig.model_fields) - {"epochs"}
        written = self.train.model_dump(mode="json", include=own & self.train.model_fields_set, exclude_unset=True)
        optim = self.optim.model_dump(exclude_none=True, exclude={"scheduler", "warmup_ratio", "lr"})
        schedule = {"kind": self.optim.scheduler, "warmup_ratio": self.optim.warmup_ratio}
        lr = self.optim.lr or written.get("optimizer", {}).get("learning_rate") or (1e-3 if self._scratch else 5e-5)
        ours: dict[str, Any] = {
            "epochs": self.train.epochs or (2 if self._scratch else 1),
            "optimizer": {"learning_rate": lr, **optim},
            "schedule": {key: value for key, value in schedule.items() if value is not None},
        }
        if self.train.grad_accum_steps is not None:
            ours["gradient_accumulation_steps"] = self.train.grad_accum_steps
        compiled: dict[str, Any] = lay_over(written, ours)
        return compiled

    def _precision(self) -> str:
        """See ``device.dtype`` and ``train.fp16``."""
        dtype, mixed = self.device.dtype, self.train.fp16
        if mixed is True:
            return "bf16" if dtype == "bfloat16" else "fp16"
        if mixed is False:
            return "fp32"
        return {"auto": "auto", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[dtype]
