"""The learning rate as a pure function of the step: nothing to save, nothing to resume wrongly."""

from __future__ import annotations

import math

from embed_core.config.run import ScheduleConfig


def warmup_steps(schedule: ScheduleConfig, total_steps: int) -> int:
    """Steps of warm-up: ``warmup_steps`` where set, else the share ``warmup_ratio`` rounded up."""
    if schedule.warmup_steps is not None:
        return schedule.warmup_steps
    return math.ceil(schedule.warmup_ratio * total_steps)


def learning_rate_factor(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """Multiplier of the learning rate for the optimizer step that follows ``step`` done ones.

    The warm-up rises linearly and reaches 1 at its last step; the decay would reach 0 at ``total_steps``.
    """
    warmup = warmup_steps(schedule, total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule.kind == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total_steps - warmup)
    if schedule.kind == "linear":
        return max(0.0, 1.0 - progress)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
