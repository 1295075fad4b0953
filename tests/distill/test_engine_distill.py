"""A killed phase 1 goes on to the same store and weights; a second run asks the teacher for nothing; the embedded
teacher."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from embed_distill.store.segment import Segment
from embed_distill.teacher.local import LocalTeacher
from processes import run

torch.set_num_threads(1)
STEPS = 20
KILLED = """
import functools, os, signal, sys
from embed_core.observers import metrics_log

inner = metrics_log.MetricsLog.embed_step_ended

@functools.wraps(inner)
def step_ended(self, event):
    inner(self, event)
    if event.step == 14:
        os.kill(os.getpid(), signal.SIGKILL)

metrics_log.MetricsLog.embed_step_ended = step_ended
from embed_cli.main import main
main()
"""
"""`embed` that is killed at a step: a clock would not hit it on a busy machine."""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [
        json.dumps({"query": f"what of {topic} {i}", "pos": [f"{topic} {i} are told of in part {i}"], "neg": ["no"]})
        for topic in ("rivers", "engines", "gardens", "letters")
        for i in range(12)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def embed(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., str]:
    """``embed("run", …)`` in this process and the test's own directory and cache → stdout; it has to succeed."""
    monkeypatch.setenv("EMBED_CACHE", str(tmp_path / "cache"))

    def call(*arguments: str) -> str:
        code, out, err = command(*arguments)
        assert code == 0, err
        return out

    return call


def arguments(rows: Path, tiny: Path, *more: str) -> list[str]:
    settings = (
        f"model.teacher={tiny / 'teacher'}",
        f"model.student={tiny / 'student'}",
        "model.teacher_max_length=64",
        f"phase1.datasets=[{rows}]",
        f"phase2.dataset={rows}",
        "phase2.held_out_rows=8",
        f"train.max_steps={STEPS}",
        f"phases.0.train.max_steps={STEPS}",
        "checkpoint.every_steps=10",
        "tracking.report_to=[]",
        "engine.precision=fp32",
        *more,
    )
    return ["run", "--plugin", "distill", "--sanity", *(part for one in settings for part in ("--set", one))]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of the student and of its projection."""
    files = sorted(folder.rglob("*.safetensors"))
    assert len(files) > 1, "the projection is a module of its own"
    return {f"{file.relative_to(folder)}:{name}": v for file in files for name, v in load_file(file).items()}


def steps(out: Path) -> int:
    path = out / "metrics.jsonl"
    return sum('"loss"' in line for line in path.read_text().splitlines()) if path.exists() else 0


def vectors(cache: Path) -> dict[str, bytes]:
    """The files of a teacher store, which are named by their content."""
    return {file.name: file.read_bytes() for file in sorted(cache.glob("teachers/*/*.vec"))}


def stored(cache: Path) -> list[Segment]:
    """The same, opened: each as long as it has vectors."""
    return [Segment(file) for file in sorted(cache.glob("teachers/*/*.vec"))]


@pytest.mark.e2e
def test_phase_1_killed_and_resumed_gives_the_same_store_and_weights(
    embed: Callable[..., str], rows: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two share nothing: each has a cache, and so a store, of its own."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    embed(*arguments(rows, tiny), "--output-dir", str(whole))
    monkeypatch.setenv("EMBED_CACHE", str(tmp_path / "other-cache"))
    command = [sys.executable, "-c", KILLED, *arguments(rows, tiny), "--output-dir", str(killed)]
    stopped = run(command, capture_output=True, timeout=300)
    assert stopped.returncode == -signal.SIGKILL
    assert steps(killed) == 14, "in phase 1, and not where a state was just saved"
    assert not (killed / "phases" / "phase1" / "model").exists()
    told = embed("run", "--resume", "--output-dir", str(killed))
    assert "resuming after step" in told
    assert " 0 computed" in told, "the teacher's vectors are all there"
    assert len(vectors(tmp_path / "cache")) > 1
    assert vectors(tmp_path / "other-cache") == vectors(tmp_path / "cache")
    for model in ("phases/phase1/model", "model"):
        one, other = weights(whole / model), weights(killed / model)
        assert one.keys() == other.keys()
        for name, value in one.items():
            # To the bit but for what only rounding moves (the bias of keys has no other gradient), which depends on
            # where tensors lie in memory.
            torch.testing.assert_close(value, other[name], rtol=0, atol=1e-6, msg=f"{model}: {name}")
    first = weights(whole / "phases/phase1/model")
    assert any(not torch.equal(v, weights(whole / "model")[name]) for name, v in first.items()), "phase 2 trains, too"


def test_a_second_run_and_phase_2_alone_never_load_the_teacher(
    embed: Callable[..., str], rows: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    vectors_of = LocalTeacher.vectors

    def counted(self: LocalTeacher, texts: Any) -> Any:
        asked.append(len(texts))
        return vectors_of(self, texts)

    monkeypatch.setattr(LocalTeacher, "vectors", counted)
    few = "train.max_steps=2"
    first = embed(*arguments(rows, tiny, few))
    assert "teacher: loading" in first
    texts = sum(asked)
    assert texts == sum(one.count for one in stored(tmp_path / "cache")) > 0, "each text once"
    second = embed(*arguments(rows, tiny, few), "--overwrite")
    assert "teacher: loading" not in second
    assert " 0 computed" in second
    assert sum(asked) == texts, "no forward, of either phase or of the evaluations"
    settings = arguments(rows, tiny, few, "training.skip_phase1=true")
    at = settings.index(f"phases.0.train.max_steps={STEPS}")  # the only phase is another one now
    alone = embed(*settings[: at - 1], *settings[at + 1 :])
    assert "teacher: loading" not in alone
    assert sum(asked) == texts
    state = json.loads((tmp_path / "checkpoints/distilled-student-24d-default-phase2/run.json").read_text())
    assert (state["status"], state["steps"]) == ("finished", 2)
    before = json.loads((tmp_path / "checkpoints/distilled-student-24d-default/run.json").read_text())
    measured = "held-out/student-student/nDCG@10"
    assert state["evaluations"]["0"][measured] == pytest.approx(before["evaluations"]["2"][measured], abs=1e-6)


def test_the_embedded_teacher_is_trained_once(embed: Callable[..., str], rows: Path, tmp_path: Path) -> None:
    run = ["run", "--plugin", "distill", "--sanity"]
    for setting in (f"phase1.datasets=[{rows}]", f"phase2.dataset={rows}", "phase2.held_out_rows=8",
                    "model.teacher_dim=24", "model.student_dim=16", "tracking.report_to=[]"):  # fmt: skip
        run += ["--set", setting]
    first = embed(*run, "--max-steps", "2")
    assert first.count("training the embedded teacher first") == 1
    assert re.search(r"embedded teacher: step (\d+) of \1, loss", first), "its last step is shown"
    kept = list((tmp_path / "cache" / "trained").iterdir())
    assert [path.name for path in kept if path.name.startswith(".")] == [], "no run is left over"
    assert (kept[0] / "config.json").is_file()
    second = embed(*run, "--max-steps", "2", "--overwrite", "--seed", "7")
    assert "training the embedded teacher" not in second
    assert "teacher: loading" not in second
    third = embed(*run, "--max-steps", "2", "--overwrite", "--set", "model.teacher_dim=32")
    assert "training the embedded teacher" in third, "another teacher"
