"""``metrics.jsonl``: its lines, its resume, its strictness."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from embed_core.errors import CheckpointError
from embed_core.events import RunEvent, StepEvent
from embed_core.observers.metrics_log import MetricsLog


def _step(step: int, **changes: Any) -> StepEvent:
    facts: dict[str, Any] = {
        "rank": 0,
        "step": step,
        "total_steps": 9,
        "epoch": 0.5,
        "loss": 2.0,
        "metrics": {"dense": 1.5},
        "learning_rate": 1e-5,
        "gradient_norm": 0.25,
        "seconds": 0.5,
        "rows": 8,
        "tokens": 75,
        "padded_tokens": 100,
    }
    return StepEvent(**(facts | changes))


def _strict(line: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(line, parse_constant=refuse)


def _read(path: Path) -> list[Any]:
    return [_strict(line) for line in path.read_text().splitlines()]


def test_a_step_and_an_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"
    log = MetricsLog(path)
    log.embed_step_ended(_step(0, evaluation={"held-out/dense/nDCG@10": 0.3}))
    log.embed_step_ended(_step(1, flops=3e9, peak_flops=12e9))
    # Every line is there at once, not when the file is closed.
    assert _read(path) == [
        {"step": 0, "epoch": 0.5, "evaluation": {"held-out/dense/nDCG@10": 0.3}},
        {
            "step": 1,
            "epoch": 0.5,
            "loss": 2.0,
            "terms": {"dense": 1.5},
            "lr": 1e-5,
            "grad_norm": 0.25,
            "seconds": 0.5,
            "rows": 8,
            "tokens": 75,
            "rows_per_s": 16.0,
            "tokens_per_s": 150.0,
            "padding_share": 0.25,
            "mfu": 0.5,
        },
    ]
    log.embed_run_ended(RunEvent(0, tmp_path, 1, None, None))
    log.embed_step_ended(_step(2))
    assert len(_read(path)) == 2


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path).embed_step_ended(
        _step(1, loss=math.nan, metrics={"dense": -math.inf}, gradient_norm=None, seconds=0.0, padded_tokens=0)
    )
    (line,) = _read(path)
    assert line["loss"] is line["terms"]["dense"] is line["grad_norm"] is None
    assert line["rows_per_s"] == line["padding_share"] == 0.0


def test_only_every_so_many_steps_but_the_ends_and_evaluations(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, every_steps=4)
    for step in range(1, 10):
        log.embed_step_ended(_step(step))
    log.embed_step_ended(_step(7, evaluation={"a/b/c": 1.0}))
    assert [line["step"] for line in _read(path)] == [1, 4, 8, 9, 7]


def test_a_resume_drops_what_is_run_again_and_what_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(1, 6):
        log.embed_step_ended(_step(step))
    with path.open("a") as file:
        file.write('{"step": 2, "lo')  # killed in the middle of a line
    log = MetricsLog(path, resumed_step=3)
    log.embed_step_ended(_step(4, loss=9.0))
    assert [(line["step"], line["loss"]) for line in _read(path)] == [(1, 2.0), (2, 2.0), (3, 2.0), (4, 9.0)]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_resume_without_a_file_and_a_new_run_over_an_old_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path, resumed_step=3).embed_step_ended(_step(4))
    assert [line["step"] for line in _read(path)] == [4]
    MetricsLog(path).embed_step_ended(_step(1))
    assert [line["step"] for line in _read(path)] == [1]


def test_only_rank_0_writes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    other = MetricsLog(path, rank=1)
    other.embed_step_ended(_step(1, rank=1))
    other.embed_run_ended(RunEvent(1, tmp_path, 1, None, None))
    assert not path.exists()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "metrics.jsonl"
    with pytest.raises(CheckpointError) as caught:
        MetricsLog(path)
    assert re.fullmatch(
        re.escape(str(path)) + r": the metrics cannot be written \((File exists|Not a directory)\): "
        "choose another output_dir",
        str(caught.value),
    )
