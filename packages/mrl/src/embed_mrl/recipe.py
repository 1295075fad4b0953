"""The training keys that users of Matryoshka training know, compiled into a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from embed_core.config.document import lay_over
from embed_core.config.recipe import Recipe
from embed_core.models.from_scratch import FROM_SCRATCH
from embed_mrl.dims import checked, checked_choice, checked_count, checked_weights

PYDOCS = "pydocs"
SANITY_WIDTH = 32


class MRLRecipe(Recipe):
    """An encoder with one dense vector that may be cut, trained by InfoNCE at every dimension.

    A key left at None takes a default that suits the model: one for ``from-scratch``, one for a model that is loaded.
    """

    name: ClassVar[str] = "mrl"

    model_name_or_path: str = FROM_SCRATCH
    """A model directory, a model of the hub, or ``from-scratch``."""
    mrl_dims: tuple[int, ...] | None = None
    """Dimensions that are trained, the full one besides; a ``from-scratch`` model is as wide as the largest. None = the
    full one and its halves, at most four, from 16."""
    mrl_weights: tuple[float, ...] | None = None
    """Weight of the loss at each of ``mrl_dims``; None = 1 each."""
    n_dims_per_step: int = Field(default=-1, ge=-1)
    """Dimensions trained in one step, the full one among them, the others drawn anew; -1 = all."""
    truncate_dim: int | None = Field(default=None, gt=0)
    """Dimensions that the exported model gives in sentence-transformers unless told otherwise; None = all."""
    train_data: str | tuple[str, ...] = PYDOCS
    """Rows of any format: a file, a folder of files or of such folders, a BEIR folder, a dataset of the hub, or several
    of them; or ``pydocs``: the documentation of installed Python packages."""
    eval_data: tuple[str, ...] = ()
    """BEIR folders to evaluate on, before and after training; none = the rows held out."""
    held_out_rows: int | None = Field(default=None, ge=0)
    """Training rows held out to evaluate on; None = 400 of ``pydocs``, a tenth of other data (at most 200) unless
    ``eval_data`` is given."""
    output_dir: Path | None = None
    """Where the run writes; None = ``runs/mrl-DATE-TIME``."""
    seed: int = Field(default=42, ge=0)
    """Of the data order, the dimensions drawn, the random weights and dropout."""

    max_length: int | None = Field(default=None, ge=3)
    """Tokens of a text; None = 192 from scratch, else 256."""
    query_max_length: int | None = Field(default=None, ge=3)
    """Tokens of a query; None = ``max_length``."""
    query_prompt: str | None = None
    """Put before queries whose row has no prompt; None = as saved with the model."""
    passage_prompt: str | None = None
    """Put before passages; None = as saved with the model."""
    pooling: Literal["cls", "mean", "last_token"] | None = None
    """Where the vector comes from; None = as saved with the model, else ``mean``."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""
    negatives: int = Field(default=7, ge=0)
    """Hard negatives drawn per row, of rows that have any."""
    temperature: float = Field(default=0.02, gt=0)
    """Similarities are divided by it, at every dimension."""

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
    bf16: bool | None = None
    """Multiply in bf16, over fp32 weights; None = where the hardware does so natively, false = fp32."""

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
    """Laid over the compiled ``data``; ``data.path`` is ``train_data``."""

    @field_validator("mrl_dims")
    @classmethod
    def _dims(cls, dims: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return checked(dims, "mrl_dims")

    @field_validator("mrl_weights")
    @classmethod
    def _weights(cls, weights: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        return checked_weights(weights, info.data.get("mrl_dims"), "mrl_")

    @field_validator("n_dims_per_step")
    @classmethod
    def _count(cls, count: int) -> int:
        return checked_count(count)

    @field_validator("truncate_dim")
    @classmethod
    def _truncate_dim(cls, dim: int | None, info: ValidationInfo) -> int | None:
        return checked_choice(dim, info.data.get("mrl_dims"), "mrl_")

    @field_validator("bf16")
    @classmethod
    def _one_precision(cls, bf16: bool | None, info: ValidationInfo) -> bool | None:
        if bf16 and info.data.get("fp16"):
            raise ValueError("fp16 and bf16 are both true: choose one of them")
        return bf16

    def compile(self, world_size: int) -> dict[str, Any]:
        """See :meth:`embed_core.config.recipe.Recipe.compile`."""
        output = {} if self.output_dir is None else {"output_dir": str(self.output_dir)}
        rows = self.per_device_train_batch_size or (64 if self._scratch else 32)
        return {
            "name": self.name,
            "seed": self.seed,
            **output,
            "model": lay_over(self._model(), self.model),
            "data": lay_over(self._data(), self.data),
            "sampler": {"kind": "no-duplicates", "batch_size": rows * world_size},
            "loss": self._loss(),
            "checkpoint": self._checkpoint(),
            "evaluation": self._evaluation(),
            "train": self._train(),
            "engine": {"precision": self._precision(), "gradient_checkpointing": self.gradient_checkpointing},
            "tracking": {"log_every_steps": self.logging_steps},
        }

    def sanity(self) -> dict[str, Any]:
        """A model of some thousand weights and a hundred rows; what the user set stays."""
        hidden = {} if self.mrl_dims else {"hidden": SANITY_WIDTH}
        tiny = {
            "model": {"from_scratch": {"vocab_size": 500, "layers": 1, "heads": 2, **hidden}},
            "data": {"limit": 128},
        }
        limits = {"query_limit": 32, "corpus_limit": 64}
        overlay: dict[str, Any] = _without(tiny, {"model": self.model, "data": self.data})
        return overlay | {"evaluation": [one | limits for one in self._evaluation()]}

    @property
    def _scratch(self) -> bool:
        return str(self.model.get("name_or_path", self.model_name_or_path)) == FROM_SCRATCH

    def _precision(self) -> str:
        if self.fp16:
            return "fp16"
        return {None: "auto", True: "bf16", False: "fp32"}[self.bf16]

    def _model(self) -> dict[str, Any]:
        longest = self.max_length or (192 if self._scratch else 256)
        shape = {"from_scratch": {"hidden": max(self.mrl_dims)}} if self.mrl_dims else {}
        return {
            "kind": "transformers-encoder",
            "name_or_path": self.model_name_or_path,
            "pooling": self.pooling,
            "trust_remote_code": self.trust_remote_code,
            "query_max_length": self.query_max_length or longest,
            "passage_max_length": longest,
            "query_prompt": self.query_prompt,
            "passage_prompt": self.passage_prompt,
            **shape,
        }

    def _data(self) -> dict[str, Any]:
        return {
            "kind": "auto",
            "path": self.train_data,
            "negatives": self.negatives,
            "held_out_rows": self._held_out_rows(),
        }

    def _held_out_rows(self) -> int | None:
        if self.held_out_rows is not None or self.data.get("path", self.train_data) == PYDOCS:
            return self.held_out_rows
        return 0 if self.eval_data else None

    def _loss(self) -> dict[str, Any]:
        return {
            "kind": "matryoshka",
            "inner": {"kind": "infonce", "temperature": self.temperature},
            "dims": self._listed(self.mrl_dims),
            "weights": self._listed(self.mrl_weights),
            "n_dims_per_step": self.n_dims_per_step,
        }

    def _checkpoint(self) -> dict[str, Any]:
        by_steps = {} if self.save_steps is None else {"every_steps": self.save_steps, "every_minutes": 0}
        return {
            "kind": "matryoshka",
            "dims": self._listed(self.mrl_dims),
            "truncate_dim": self.truncate_dim,
            "keep_last": self.save_total_limit,
            **by_steps,
        }

    def _evaluation(self) -> list[dict[str, Any]]:
        one = {"kind": "dimensions", "dims": self._listed(self.mrl_dims)}
        if self.eval_data:
            return [{**one, "path": path} for path in self.eval_data]
        held_out = self.data.get("held_out_rows", self._held_out_rows())
        return [] if held_out == 0 else [one]

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

    @staticmethod
    def _listed(values: tuple[Any, ...] | None) -> list[Any] | None:
        return None if values is None else list(values)


def _without(overlay: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``overlay`` less the keys that ``given`` sets, at every depth."""
    kept: dict[str, Any] = {}
    for key, value in overlay.items():
        if isinstance(value, Mapping) and isinstance(given.get(key, {}), Mapping):
            kept[key] = _without(value, given.get(key, {}))
        elif key not in given:
            kept[key] = value
    return kept
