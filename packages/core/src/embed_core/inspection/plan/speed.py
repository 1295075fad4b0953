"""Estimates a planned run's FLOPs and speed: at its devices' peak, realistically, and as measured."""

from __future__ import annotations

from embed_core.config.run import RunConfig
from embed_core.inspection.plan.data_profile import DataProfile
from embed_core.inspection.plan.report import SpeedView, Strategy
from embed_core.inspection.plan.target import Target
from embed_core.profiling import flops, throughput
from embed_core.profiling.activation_memory import ChunkProbe
from embed_core.profiling.loss_memory import LossCost
from embed_core.train.trainer import Pace

REALISTIC = 0.4
"""Share of a device's peak that a well-fed training step reaches."""


def speed_of(
    found: DataProfile,
    cost: flops.TransformerCost | None,
    probe: ChunkProbe,
    target: Target,
    config: RunConfig,
    strategy: Strategy,
    loss: LossCost,
    pace: Pace,
) -> SpeedView:
    """FLOPs by ``cost`` where it is known, else as a chunk runs; speed as chunks run where the device is here."""
    encoded, ranks, engine = found.hosts[0].encoded, len(found.hosts), config.engine
    tokens, squares = found.tokens / found.batches, found.squares / found.batches
    if cost is not None:
        forward, backward = cost.forward(tokens, squares), cost.backward(tokens, squares)
    else:
        forward, backward = (tokens * per_token for per_token in throughput.counted_flops(probe, encoded[:8]))
    again = (strategy == "cached") + flops.recomputes(probe.model)
    whole = backward + (1 + again) * forward
    peak = target.device.peak(engine.precision)
    ceiling = None if peak is None or not whole else ranks * peak * tokens / whole
    measured = None
    if target.here:
        rate = throughput.tokens_per_second(probe, encoded, engine.chunk_tokens, twice=strategy == "cached")
        measured = ranks * rate
    realistic = None if ceiling is None else REALISTIC * ceiling
    per_step, rate_known = tokens * pace.draws_per_step, measured or realistic
    loss_seconds = loss.seconds if target.here else None
    seconds = None
    if rate_known is not None:
        seconds = pace.total_steps * (per_step / rate_known + pace.draws_per_step * (loss_seconds or 0.0))
    return SpeedView(
        model_flops_per_step=(forward + backward) * pace.draws_per_step,
        flops_per_step=whole * pace.draws_per_step,
        flops_by_shape=cost is not None,
        ceiling=ceiling,
        realistic=realistic,
        measured=measured,
        loss_seconds=loss_seconds,
        steps=pace.total_steps,
        tokens_per_step=per_step,
        seconds=seconds,
    )
