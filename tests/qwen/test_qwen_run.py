"""Whole runs of a curriculum with another plugin's model: stages, mining between them, a kill and a resume."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from embed_core.config.document import Document
from embed_core.config.resolve import Request
from embed_core.config.resolve import resolve as resolve_run
from embed_core.distributed.process_group import leave
from embed_core.events import StepEvent
from embed_core.plugin.hookspecs import hookimpl
from embed_core.plugin.manager import activate
from embed_core.train.run import Options, run

torch.set_num_threads(1)

TOPICS = ("rivers", "engines", "gardens", "letters", "bridges", "winters", "markets", "planets")
STAGES = [
    {"negatives": "in-batch", "max_steps": 3, "learning_rate": 4e-3, "warmup_steps": 1},
    {"difficulty": {"by": "share", "band": [0.5, 1]}, "negatives": 2, "max_steps": 2, "learning_rate": 3e-3},
    {"remine": {"ranks": [1, 9]}, "negatives": 3, "max_steps": 3, "learning_rate": 2e-3, "warmup_steps": 0},
]
NAMES = ["stage-1-in-batch", "stage-2-share-0.5-1", "stage-3-mined"]


class Watcher:
    """Keeps what observers are told; stops the run after step ``kill``, as a kill would."""

    def __init__(self, kill: int | None = None) -> None:
        self.kill, self.steps, self.evaluations, self.lines = kill, list[StepEvent](), list[StepEvent](), list[str]()

    @hookimpl
    def embed_step_ended(self, event: StepEvent) -> None:
        (self.steps if event.evaluation is None else self.evaluations).append(event)
        if event.evaluation is None and event.step == self.kill:
            raise Killed

    @property
    def losses(self) -> dict[int, float]:
        return {event.step: event.loss for event in self.steps}


class Killed(BaseException):
    """Nothing is tidied up after it."""


Go = Callable[..., Watcher]


@pytest.fixture
def go(tmp_path: Path) -> Iterator[Go]:
    """``go("out", kill=4, resume=True)`` → what observers saw."""
    rows = [
        {
            "query": f"what of {topic} number {i}",
            "pos": [f"{topic} {i} " + " ".join(f"{topic[:2]}{i}{k}{topic[-2:]}" for k in range(8))],
            "neg": [f"{topic} {k} are told of in short" for k in range(6) if k != i],
        }
        for topic in TOPICS
        for i in range(6)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def start(out: str, kill: int | None = None, stages: Any = STAGES, **options: Any) -> Watcher:
        manager, registry = activate(["hello", "qwen"])
        config = {
            "output_dir": str(tmp_path / out),
            "plugins": ["hello", "qwen"],
            "model": {"kind": "hello", "buckets": 64, "width": 8, "dimension": 8},
            "data": {"kind": "retrieval", "path": str(path), "held_out_rows": 8, "negatives": 1},
            "sampler": {"kind": "curriculum", "batch_size": 8, "stages": stages},
            "loss": {"kind": "infonce", "temperature": 0.1},
            "checkpoint": {"kind": "hello", "every_steps": 1, "every_minutes": 0},
            "evaluation": [{"kind": "retrieval", "measures": ["nDCG@10"]}],
            "engine": {"precision": "fp32"},
            "tracking": {"report_to": []},
        }
        watcher = Watcher(kill)
        manager.register(watcher)
        request = resolve_run(registry, Request(None, Document(data=config)))
        run(request, manager, registry, Options(announce=watcher.lines.append, **options))
        return watcher

    yield start
    leave()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_stages_switch_at_exact_steps_and_are_told(go: Go, tmp_path: Path) -> None:
    seen = go("out")
    assert [event.phase for event in seen.steps] == [NAMES[0]] * 3 + [NAMES[1]] * 2 + [NAMES[2]] * 3
    assert [event.step for event in seen.evaluations] == [0, 3, 5, 8]
    rates = [event.learning_rate for event in seen.steps]
    assert [max(rates[:3]), max(rates[3:5]), max(rates[5:])] == pytest.approx([4e-3, 3e-3, 2e-3])
    assert [line for line in seen.lines if line.startswith("phase ")] == [
        f"phase {n} of 3, {name}: {steps} steps" for n, name, steps in zip((1, 2, 3), NAMES, (3, 2, 3), strict=True)
    ]
    told = [line for line in seen.lines if "banded" in line]
    assert [line.split(",")[0] for line in told] == NAMES[1:]
    assert "share 0.5-1: 40 of 40 rows have 2.0 negatives on average" in told[0]
    for name, end in ((NAMES[0], 3), (NAMES[1], 5)):
        assert (tmp_path / "out/phases" / name / "model/model.safetensors").is_file(), end
    assert len(list((tmp_path / "out/phases" / NAMES[2]).glob("remined-*.jsonl"))) == 1


def test_a_stage_that_finds_nothing_to_mine_goes_on(go: Go) -> None:
    """It would be a pity to stop after hours of earlier stages."""
    nothing = {**STAGES[2], "remine": {"ranks": [1, 9], "absolute_margin": 100.0}}
    seen = go("out", stages=[STAGES[0], nothing])
    (line,) = (line for line in seen.lines if "banded" in line)
    assert line.startswith("stage-2-mined, banded: no row of rows.jsonl has a negative in the band (all negatives of")
    assert line.endswith("; this stage learns from the batch alone")
    assert len(seen.steps) == 6


def test_a_stage_starts_from_the_weights_of_the_one_before(go: Go, tmp_path: Path) -> None:
    """With no learning to speak of, the second stage ends where the first did."""
    still = [STAGES[0], {**STAGES[1], "learning_rate": 1e-30}]
    go("out", stages=still)
    before, after = (weights(tmp_path / "out" / place) for place in (f"phases/{NAMES[0]}/model", "model"))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-9)
    go("one", stages=STAGES[:1])
    assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path / "one/model").items())


def test_hard_negatives_of_the_stage_reach_the_loss(go: Go) -> None:
    """More candidates a query: the same batch, weights and rows cost more with negatives than without."""
    still = {"max_steps": 1, "learning_rate": 1e-30}
    seen = go("out", stages=[{**still, "negatives": "in-batch"}, {**still, "negatives": 4}])
    without, with_them = seen.losses.values()
    assert with_them > without + 0.1
    tokens = [event.tokens for event in seen.steps]
    assert tokens[1] > 1.5 * tokens[0]


@pytest.mark.parametrize("step", [4, 5, 7])
def test_killed_in_a_stage_and_resumed_is_the_uninterrupted_run(go: Go, tmp_path: Path, step: int) -> None:
    whole = go("whole")
    with pytest.raises(Killed):
        go("killed", kill=step)
    rest = go("killed", resume=True)
    assert rest.losses == {n: loss for n, loss in whole.losses.items() if n >= step}
    assert [event.phase for event in rest.steps] == [event.phase for event in whole.steps if event.step >= step]
    left, right = weights(tmp_path / "killed/model"), weights(tmp_path / "whole/model")
    assert all(torch.equal(value, right[name]) for name, value in left.items())
    mined = [line for line in rest.lines if "the model mines" in line]
    assert len(mined) == (0 if step == 7 else 1)
