"""The learning rate, against numbers worked out by hand and against torch's own schedules."""

from __future__ import annotations

import math

import pytest
import torch

from embed_core.config.run import ScheduleConfig
from embed_core.train.lr_schedule import learning_rate_factor, warmup_steps


def factors(total: int, **options: object) -> list[float]:
    schedule = ScheduleConfig.model_validate(options)
    return [learning_rate_factor(schedule, step, total) for step in range(total)]


def test_linear_with_warmup_by_hand() -> None:
    assert factors(10, kind="linear", warmup_steps=3) == pytest.approx(
        [1 / 4, 2 / 4, 3 / 4, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7]
    )


def test_cosine_with_warmup_by_hand() -> None:
    halves = [0.5 * (1 + math.cos(math.pi * n / 4)) for n in range(4)]
    assert factors(6, kind="cosine", warmup_steps=2) == pytest.approx([1 / 3, 2 / 3, *halves])


def test_constant_after_warmup() -> None:
    assert factors(5, kind="constant", warmup_steps=1) == [0.5, 1, 1, 1, 1]


def test_decay_agrees_with_torch() -> None:
    for kind, make in (
        ("linear", lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 1e-12, total_iters=20)),
        ("cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20)),
    ):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        theirs, wanted = make(optimizer), []
        for _ in range(20):
            wanted.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            theirs.step()
        assert factors(20, kind=kind, warmup_steps=0) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(
    ("options", "total", "wanted"),
    [
        ({"warmup_ratio": 0.1}, 100, 10),
        ({"warmup_ratio": 0.1}, 1, 1),
        ({"warmup_ratio": 0.0}, 7, 0),
        ({"warmup_ratio": 0.5, "warmup_steps": 2}, 100, 2),
        ({"warmup_ratio": 0.5, "warmup_steps": 0}, 100, 0),
    ],
)
def test_warmup_steps(options: dict[str, float], total: int, wanted: int) -> None:
    assert warmup_steps(ScheduleConfig.model_validate(options), total) == wanted


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_never_zero_before_the_end_nor_above_one(kind: str) -> None:
    for total in (1, 2, 17):
        for warmup in (0, 1, total, total + 5):
            assert all(0 < f <= 1 for f in factors(total, kind=kind, warmup_steps=warmup)), (total, warmup)
