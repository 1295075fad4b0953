"""The device of a planned run, this machine's or one of the table, and the meaning of `auto` on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from embed_core.acceleration.auto import CUDA_TOKENS, resolve_auto
from embed_core.config.run import EngineConfig
from embed_core.distributed.process_group import Ranks
from embed_core.errors import ConfigError
from embed_core.hardware import specs


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """The options of `embed plan`."""

    device: str | None = None
    """A name of :data:`embed_core.hardware.specs.TABLE` or ``cpu``; ``None`` is this machine's."""
    ranks: int = 1
    zero_stage: int | None = None
    """``None`` takes the config's."""
    batches: int = 4
    """The number of first batches to profile."""


@dataclass(frozen=True, slots=True)
class Target:
    """The device of each rank."""

    device: specs.Device
    here: bool
    """Whether the device is this machine's own."""
    ranks: Ranks
    """The ranks that chunks run as: on the device itself, or on this machine's CPU in its place."""

    @property
    def on_gpu(self) -> bool:
        """Whether the run would be on GPUs."""
        return self.ranks.on_cuda or not self.here


def target_of(engine: EngineConfig, request: PlanRequest) -> tuple[Target, EngineConfig]:
    """The device, and ``engine`` with what `auto` means there.

    Raises ConfigError for an unknown device, or a precision that it lacks.
    """
    if request.zero_stage is not None:
        engine = engine.model_copy(update={"zero_stage": request.zero_stage})
    cpu, gpu = (ranks_of(request.ranks, on_gpu=on_gpu) for on_gpu in (False, True))
    has_gpu = torch.cuda.is_available()
    if request.device in (None, "cpu"):
        use_gpu = request.device is None and has_gpu and engine.device != "cpu"
        return _local(engine, gpu if use_gpu else cpu)
    device = specs.named(str(request.device))
    if has_gpu and device == specs.known_as(torch.cuda.get_device_name(0)):
        return _local(engine, gpu)
    precision = engine.precision
    if precision == "auto":
        precision = "bf16" if device.bf16 else "fp32"
    budget = CUDA_TOKENS if engine.token_budget == "auto" else engine.token_budget
    engine = engine.model_copy(update={"precision": precision, "token_budget": budget})
    if device.peak(precision) is None:
        raise ConfigError(
            f"engine.precision: {precision!r} is nothing that {device.name} multiplies: use fp16 or fp32, or plan for "
            "another --device"
        )
    return Target(device, here=False, ranks=ranks_of(1, on_gpu=False)), engine


def _local(engine: EngineConfig, ranks: Ranks) -> tuple[Target, EngineConfig]:
    if engine.precision == "fp16" and not ranks.on_cuda:
        raise ConfigError("engine.precision: 'fp16' needs CUDA: use bf16 or fp32 on this machine, or name a --device")
    engine = resolve_auto(engine, ranks)
    device = specs.local(ranks, engine.precision)
    return Target(device, here=True, ranks=ranks_of(1, on_gpu=ranks.on_cuda)), engine


def ranks_of(count: int, *, on_gpu: bool) -> Ranks:
    """Rank 0 of ``count``."""
    return Ranks(0, count, 0, "cuda:0" if on_gpu else "cpu")
