"""What `embed plan` tells: plain data, the same on the screen and in its JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from embed_core.inspection.plan.data_profile import ColumnView
from embed_core.profiling.flops import Parameters
from embed_core.profiling.throughput import LargestChunk

Strategy = Literal["direct", "cached"]


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One device per rank."""

    name: str
    here: bool
    """Whether it is this machine's own, so that chunks really ran on it."""
    memory: float
    """Bytes."""
    usable: float
    """Bytes that tensors can fill."""
    peak_flops: float | None
    """FLOP/s in the run's precision, dense; ``None`` where it has no units for it."""
    peak_measured: bool
    """By matrix products, rather than from the vendor's data sheet."""


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """Bytes of one rank."""

    name: str
    bytes: float


@dataclass(frozen=True, slots=True)
class StrategyView:
    """A strategy's need of one rank."""

    name: Strategy
    activations: float
    """Bytes at most during the backward: of the whole share (direct) or of the largest chunk (cached)."""
    total: float
    """Bytes with everything else."""
    fits: bool


@dataclass(frozen=True, slots=True)
class DataView:
    """Means over the first batches, of all ranks together."""

    batches: int
    rows: float
    texts: float
    tokens: float
    """Encoded, without padding."""
    padding_share: float
    """Of all tokens that the hardware sees, 0 to 1."""
    repeated_share: float
    """Texts that are encoded already, of all texts."""
    columns: tuple[ColumnView, ...]


@dataclass(frozen=True, slots=True)
class SpeedView:
    """Of all ranks together, for the chosen strategy. Evaluations, checkpoints and the optimizer come on top."""

    model_flops_per_step: float
    """One forward and one backward, without padding."""
    flops_per_step: float
    """With the forwards that are computed again."""
    flops_by_shape: bool
    """From weights and lengths; else counted as one chunk ran."""
    ceiling: float | None
    """Tokens per second at the devices' peak."""
    realistic: float | None
    """At :data:`embed_core.inspection.plan.speed.REALISTIC` of it."""
    measured: float | None
    """Tokens per second of chunks that ran here."""
    loss_seconds: float | None
    """Of one global batch, measured here."""
    steps: int
    tokens_per_step: float
    seconds: float | None
    """Of all steps, by ``measured`` where there is such a number, else by ``realistic``."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A run before it starts."""

    name: str
    device: DeviceView
    ranks: int
    precision: str
    zero_stage: int
    """The effective one: half precision has at least 1."""
    token_budget: int
    checkpointing: bool
    parameters: Parameters
    memory: tuple[MemoryPart, ...]
    """What both strategies hold."""
    strategies: tuple[StrategyView, ...]
    strategy: Strategy
    """The one that the run takes."""
    largest_chunk: LargestChunk
    data: DataView
    speed: SpeedView
    notes: tuple[str, ...]
    """What was not measured but extrapolated."""
