"""The whole run as one config: what every recipe compiles to and what ``--dry-run`` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from embed_core.config.base import (
    CheckpointConfig,
    DatasetConfig,
    EvaluatorConfig,
    LossConfig,
    ModelConfig,
    SamplerConfig,
    Section,
)


class OptimizerConfig(Section):
    """AdamW (Loshchilov & Hutter 2019), no weight decay on biases and normalisation weights."""

    learning_rate: float = Field(default=2e-5, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)


class ScheduleConfig(Section):
    """Learning rate over the optimizer steps: warm-up from 0, then constant, or linear or cosine decay to 0."""

    kind: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    """Share of all steps spent warming up; ignored where ``warmup_steps`` is set."""
    warmup_steps: int | None = Field(default=None, ge=0)


class TrainConfig(Section):
    """How long and how to step."""

    epochs: float = Field(default=1.0, gt=0)
    """Passes over the data; ignored where ``max_steps`` is set."""
    max_steps: int | None = Field(default=None, gt=0)
    """Optimizer steps of the whole run."""
    gradient_accumulation_steps: int = Field(default=1, gt=0)
    """Global batches per optimizer step. Each has its own in-batch negatives."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 = no clipping."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluate_every_steps: int = Field(default=0, ge=0)
    """Evaluate every so many steps, besides before the first and after the last; 0 = only those two."""
    best_metric: str | None = None
    """``evaluator/way/measure`` (higher is better) by which the best checkpoint is kept; None = the first reported."""


class EngineConfig(Section):
    """How the loop runs on the hardware. Nothing here changes the mathematics."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO: 0 replicates, 1 shards optimizer state, 2 gradients too, 3 weights too."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of weights and arithmetic; master weights and losses are fp32 always. fp16 needs CUDA."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    strategy: Literal["direct", "cached"] = "direct"
    """`direct` keeps the graphs of all chunks of a batch; `cached` (GradCache) keeps one at a time and encodes twice:
    the same gradient, for batches that do not fit."""
    token_budget: int = Field(default=1024, gt=0)
    """Tokens of one chunk, padding included. Larger suits GPUs (16384), about 1024 suits CPUs."""
    deduplicate: bool = True
    """Encode identical texts of a step once. Off, each occurrence has its own dropout (SimCSE)."""
    prefetch: int = Field(default=2, ge=0)
    """Steps tokenised ahead in a background thread; 0 = none."""


class TrackingConfig(Section):
    """Where the metrics go, besides ``metrics.jsonl`` in the output directory."""

    report_to: tuple[Literal["tensorboard", "wandb", "swanlab", "mlflow"], ...] = ("tensorboard",)
    project: str = "embed"
    log_every_steps: int = Field(default=1, gt=0)


class RunConfig(Section):
    """One run."""

    name: str = "run"
    """Names the run in trackers and the default output directory."""
    plugins: tuple[str, ...] = ()
    """Plugins this run activates; ``--plugin`` puts its names here."""
    seed: int = Field(default=42, ge=0)
    output_dir: Path | None = None
    """Where the run writes; None = ``runs/{name}-{date}-{time}``."""
    model: ModelConfig
    data: DatasetConfig
    sampler: SamplerConfig
    loss: LossConfig
    checkpoint: CheckpointConfig
    evaluation: tuple[EvaluatorConfig, ...] = ()
    train: TrainConfig = TrainConfig()
    engine: EngineConfig = EngineConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [getattr(e, "name", e.kind) for e in self.evaluation]
        twice = {n for n in names if names.count(n) > 1}
        if twice:
            raise ValueError(f"evaluators must have different names; {sorted(twice)} occurs twice")
        return self
