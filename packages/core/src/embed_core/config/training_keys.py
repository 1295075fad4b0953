"""Keys about training that recipes share: each is defined once, and compiles to the same place in every recipe.

A recipe inherits the sections it offers; :class:`TrainingKeys` is all of them. A recipe may have other defaults
(``Recipe.defaults``, ``Recipe.by_model``), never another meaning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from embed_core.config.recipe import Recipe
from embed_core.config.retrieval_keys import ModelKeys


class SeedKeys(Recipe):
    """The run's seed."""

    seed: int = Field(default=42, ge=0)
    """Seeds everything that is random: the rows drawn and their order, new weights, dropout."""


class OutputKeys(SeedKeys):
    """What the run is called and where it writes."""

    output_dir: Path | None = None
    """Where the run writes; None = ``runs/NAME-DATE-TIME``."""

    def compile_output(self) -> dict[str, Any]:
        """``name``, ``seed`` and ``output_dir`` of the run."""
        output = {} if self.output_dir is None else {"output_dir": str(self.output_dir)}
        return {"name": self.name, "seed": self.seed, **output}


class OptimizationKeys(Recipe):
    """AdamW, how many steps there are, and when to evaluate."""

    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate, reached after the warm-up."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW; none on biases, normalisation weights and a learned scale."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 = no clipping."""
    max_steps: int | None = Field(default=None, gt=0)
    """Optimizer steps, whatever the epochs; in a run of several phases or stages, of each."""
    gradient_accumulation_steps: int = Field(default=1, gt=0)
    """Batches per optimizer step. Each has its own in-batch negatives."""
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps spent warming up."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps spent warming up, whatever the ratio: 0 = no warm-up; None = by the ratio."""
    eval_steps: int = Field(default=0, ge=0)
    """Evaluate every so many steps, besides before the first and after the last; 0 = only those two."""

    def compile_train(self, *, epochs: float, learning_rate: float, schedule: str) -> dict[str, Any]:
        """``train`` of the run. What differs by recipe and model is passed: how long, how fast, and which decay."""
        return {
            "epochs": epochs,
            "max_steps": self.max_steps,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "gradient_clipping": self.max_grad_norm,
            "evaluate_every_steps": self.eval_steps,
            "optimizer": {"learning_rate": learning_rate, "weight_decay": self.weight_decay},
            "schedule": {"kind": schedule, "warmup_ratio": self.warmup_ratio, "warmup_steps": self.warmup_steps},
        }


class TrainerKeys(OptimizationKeys):
    """Epochs, batch size and schedule by the names that transformers' Trainer gives them."""

    num_train_epochs: float | None = Field(default=None, gt=0)
    """Passes over the data."""
    per_device_train_batch_size: int | None = Field(default=None, gt=0)
    """Rows per rank and batch; the rows of all ranks are each other's in-batch negatives."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate goes on after the warm-up: decays to 0, or stays."""


class PrecisionKeys(Recipe):
    """Arithmetic and memory."""

    fp16: bool = False
    """Train in fp16, weights included, beside fp32 master weights (CUDA only)."""
    bf16: bool | None = None
    """true = multiply in bf16, over fp32 weights; false = fp32; None = bf16 where the hardware multiplies it natively,
    else fp32."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: about a third more arithmetic, less memory."""

    @field_validator("bf16")
    @classmethod
    def _one_precision(cls, bf16: bool | None, info: ValidationInfo) -> bool | None:
        if bf16 and info.data.get("fp16"):
            raise ValueError("fp16 and bf16 are both true: choose one of them")
        return bf16

    def compile_engine(self) -> dict[str, Any]:
        """``precision`` and ``gradient_checkpointing`` of the run's ``engine``."""
        precision = "fp16" if self.fp16 else {None: "auto", True: "bf16", False: "fp32"}[self.bf16]
        return {"precision": precision, "gradient_checkpointing": self.gradient_checkpointing}


class CheckpointKeys(Recipe):
    """When training states are saved, and how many are kept."""

    save_steps: int | None = Field(default=None, ge=0)
    """Save the training state every so many steps; None or 0 = every 10 minutes."""
    save_total_limit: int = Field(default=2, ge=1)
    """Training states kept, besides the best one."""

    def compile_checkpoint(self) -> dict[str, Any]:
        """``checkpoint`` of the run, all but the layout."""
        by_steps = {"every_steps": self.save_steps, "every_minutes": 0} if self.save_steps else {}
        return {"keep_last": self.save_total_limit, **by_steps}


class LoggingKeys(Recipe):
    """How often metrics are logged."""

    logging_steps: int = Field(default=1, gt=0)
    """Log every so many steps."""

    def compile_tracking(self) -> dict[str, Any]:
        """``log_every_steps`` of the run's ``tracking``."""
        return {"log_every_steps": self.logging_steps}


class TrainingKeys(ModelKeys, OutputKeys, TrainerKeys, PrecisionKeys, CheckpointKeys, LoggingKeys):
    """Every section above, and the model: what a recipe with the names of transformers' Trainer inherits."""

    def compile_training(self) -> dict[str, Any]:
        """All of the run but its components."""
        train = self.compile_train(
            epochs=self.chosen("num_train_epochs"),
            learning_rate=self.chosen("learning_rate"),
            schedule=self.lr_scheduler_type,
        )
        tracking = self.compile_tracking()
        return {**self.compile_output(), "train": train, "engine": self.compile_engine(), "tracking": tracking}

    def batch_size(self, world_size: int) -> int:
        """Rows of one global batch."""
        return int(self.chosen("per_device_train_batch_size")) * world_size
