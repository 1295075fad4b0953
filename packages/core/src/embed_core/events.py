"""The events that a run sends to its observers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["RunEvent", "StepEvent"]


@dataclass(frozen=True, slots=True)
class StepEvent:
    """One optimizer step, or (``step`` = steps done, ``evaluation`` set) one evaluation between two steps."""

    rank: int
    step: int
    """Optimizer steps done, this one included."""
    total_steps: int
    """Steps of the whole run; a phase whose data is made by earlier phases counts as if it had the run's own data."""
    epoch: float
    loss: float
    metrics: Mapping[str, float]
    """The loss's terms, averaged over the step's micro-batches."""
    learning_rate: float
    gradient_norm: float | None
    """Norm before clipping."""
    seconds: float
    """Wall-clock seconds of this step."""
    rows: int
    """Rows of the global batch(es) of this step."""
    tokens: int
    """Real (non-padding) tokens encoded, all ranks, identical texts counted once."""
    padded_tokens: int
    """Tokens the hardware saw, padding included, all ranks."""
    phase: str = ""
    """Name of the run's phase; empty in a run without phases."""
    evaluation: Mapping[str, float] | None = None
    """Metrics ``evaluator/way/measure`` where this event reports an evaluation."""
    flops: float | None = None
    """Floating-point operations of the model in this step, all ranks, one forward and one backward without padding;
    ``None`` where the model's cost is not known."""
    peak_flops: float | None = None
    """Peak FLOP/s of all ranks' devices in the run's precision; ``None`` where that is not known."""

    @property
    def terms(self) -> dict[str, float]:
        """The loss's terms to show beside it, without the one that is the loss itself."""
        return {name: value for name, value in self.metrics.items() if name != "loss" or value != self.loss}

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation of this step, 0 to 1; ``None`` where it is not known."""
        if self.flops is None or not self.peak_flops or self.seconds <= 0:
            return None
        return self.flops / (self.seconds * self.peak_flops)


@dataclass(frozen=True, slots=True)
class RunEvent:
    """The end of a run."""

    rank: int
    output_dir: Path
    steps: int
    error: BaseException | None
    export_dir: Path | None
    """Where the model was exported; ``None`` when the run failed first."""
    evaluations: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    """Step → metrics; step 0 is before training."""
