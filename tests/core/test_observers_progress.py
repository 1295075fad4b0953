"""Progress lines of runs started from Python."""

from __future__ import annotations

from dataclasses import replace

from embed_core.events import StepEvent
from embed_core.observers.progress import ProgressLines

EVENT = StepEvent(
    rank=0,
    step=1,
    total_steps=9,
    epoch=0.5,
    loss=0.25,
    metrics={"dense": 0.5},
    learning_rate=1e-3,
    gradient_norm=None,
    seconds=0.5,
    rows=8,
    tokens=10,
    padded_tokens=12,
)


def test_first_last_and_one_in_ten_seconds() -> None:
    said: list[str] = []
    now = [0.0]
    lines = ProgressLines(said.append, clock=lambda: now[0])
    for step, moment in enumerate((0.0, 1.0, 9.9, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0), start=1):
        now[0] = moment
        lines.embed_step_ended(event=replace(EVENT, step=step))
    assert [line.split()[1] for line in said] == ["1/9", "4/9", "9/9"]
    assert said[0] == "step 1/9  loss 0.2500  dense 0.5000  16 rows/s"
    lines.embed_step_ended(event=replace(EVENT, step=9, metrics={"loss": EVENT.loss, "accuracy": 0.5}))
    assert said[-1] == "step 9/9  loss 0.2500  accuracy 0.5000  16 rows/s"


def test_every_evaluation_and_rank_0_only() -> None:
    said: list[str] = []
    lines = ProgressLines(said.append)
    evaluated = replace(EVENT, step=0, evaluation={"held-out/dense/nDCG@10": 0.125})
    lines.embed_step_ended(event=evaluated)
    lines.embed_step_ended(event=replace(evaluated, rank=1))
    lines.embed_step_ended(event=replace(EVENT, rank=1))
    assert said == ["step 0  held-out/dense/nDCG@10 0.1250"]


def test_the_phase_is_named() -> None:
    said: list[str] = []
    lines = ProgressLines(said.append)
    lines.embed_step_ended(event=replace(EVENT, phase="stage-2"))
    lines.embed_step_ended(event=replace(EVENT, phase="stage-2", evaluation={"held-out/dense/nDCG@10": 0.125}))
    assert said[0].startswith("step 1/9  stage-2  loss 0.2500")
    assert said[1] == "step 1  stage-2  held-out/dense/nDCG@10 0.1250"
