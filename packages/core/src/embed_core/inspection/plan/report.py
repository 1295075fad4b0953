"""The result of `embed plan` as plain data, the same on the screen and in its JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from embed_core.inspection.plan.data_profile import ColumnView
from embed_core.profiling.flops import Parameters
from embed_core.profiling.throughput import LargestChunk

Strategy = Literal["direct", "cached"]


@dataclass(frozen=True, slots=True)
class DeviceView:
    """The device of a rank."""

    name: str
    here: bool
    """Whether it is this machine's own, so that chunks really ran on it."""
    memory: float
    """Bytes of its memory."""
    usable: float
    """Bytes that tensors can fill."""
    peak_flops: float | None
    """FLOP/s in the run's precision, dense; ``None`` where it has no units for it."""
    peak_measured: bool
    """Whether the peak was measured with matrix products, rather than taken from the vendor's data sheet."""


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """Bytes that one rank holds for one purpose."""

    name: str
    bytes: float


@dataclass(frozen=True, slots=True)
class StrategyView:
    """The memory that a strategy needs on one rank."""

    name: Strategy
    activations: float
    """Peak bytes during the backward: of the whole share (direct) or of the largest chunk (cached)."""
    total: float
    """Bytes together with everything else."""
    fits: bool


@dataclass(frozen=True, slots=True)
class DataView:
    """Means over the first batches, of all ranks together."""

    batches: int
    rows: float
    texts: float
    tokens: float
    """Tokens that are encoded, without padding."""
    padding_share: float
    """The share of padding among all tokens that the hardware sees, 0 to 1."""
    repeated_share: float
    """The share of texts that need no encoding because an equal text is encoded."""
    columns: tuple[ColumnView, ...]


@dataclass(frozen=True, slots=True)
class SpeedView:
    """Speed of all ranks together with the chosen strategy, without evaluations, checkpoints and the optimizer."""

    model_flops_per_step: float
    """FLOPs of one forward and one backward, without padding."""
    flops_per_step: float
    """FLOPs with the forwards that are computed again."""
    flops_by_shape: bool
    """Whether FLOPs follow from weights and lengths; else they were counted while one chunk ran."""
    ceiling: float | None
    """Tokens per second at the devices' peak."""
    realistic: float | None
    """Tokens per second at the share :data:`embed_core.inspection.plan.speed.REALISTIC` of that peak."""
    measured: float | None
    """Tokens per second of chunks that ran here."""
    loss_seconds: float | None
    """Seconds that the loss of one global batch takes, measured here."""
    steps: int
    tokens_per_step: float
    seconds: float | None
    """Seconds of all steps, by ``measured`` where there is such a number, else by ``realistic``."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a run."""

    name: str
    device: DeviceView
    ranks: int
    precision: str
    zero_stage: int
    """The effective stage: half precision has at least 1."""
    token_budget: int
    checkpointing: bool
    parameters: Parameters
    memory: tuple[MemoryPart, ...]
    """The memory that both strategies hold."""
    strategies: tuple[StrategyView, ...]
    strategy: Strategy
    """The strategy that the run takes."""
    largest_chunk: LargestChunk
    data: DataView
    speed: SpeedView
    notes: tuple[str, ...]
    """Notes on figures that were extrapolated rather than measured."""
