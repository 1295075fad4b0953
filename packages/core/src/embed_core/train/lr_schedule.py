"""Learning-rate schedules. A rate is a pure function of the step, so there is no state to save or to resume.

The names of the schedules are the values of ``train.schedule.kind`` (:class:`embed_core.config.run.ScheduleConfig`).
"""

from __future__ import annotations

import math

from embed_core.config.run import ScheduleConfig


def warmup_steps(schedule: ScheduleConfig, total_steps: int) -> int:
    """The number of warm-up steps: ``warmup_steps`` where set, else ``warmup_ratio`` of all steps, rounded up."""
    if schedule.warmup_steps is not None:
        return schedule.warmup_steps
    return math.ceil(schedule.warmup_ratio * total_steps)


def learning_rate_factor(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """The multiplier of the learning rate for the optimizer step after ``step`` steps.

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
