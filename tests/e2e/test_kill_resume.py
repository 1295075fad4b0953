"""Kill -9 in the middle, resume: the same losses, to the bit, as a run that was never interrupted."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from subprocess import DEVNULL

import pytest

from processes import Popen, run

pytestmark = pytest.mark.e2e
EMBED = [sys.executable, "-m", "embed_cli"]
STEPS = 60


def arguments(out: Path, ranks: int) -> list[str]:
    settings = ["checkpoint.every_steps=15", "train.evaluate_every_steps=0", "evaluation=[]"]
    sets = [part for setting in settings for part in ("--set", setting)]
    return [
        "run",
        "--plugin",
        "hello",
        "--max-steps",
        str(STEPS),
        "--output-dir",
        str(out),
        *sets,
        "--nproc",
        str(ranks),
    ]


def losses(out: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def kill_in_the_middle(out: Path, ranks: int) -> None:
    process = Popen([*EMBED, *arguments(out, ranks)], stdout=DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    metrics = out / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 25:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("ranks", [1, 2])
def test_resume_repeats_the_uninterrupted_run_to_the_bit(tmp_path: Path, ranks: int) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run([*EMBED, *arguments(whole, ranks)], check=True, timeout=200, stdout=DEVNULL)
    kill_in_the_middle(killed, ranks)
    before = len(losses(killed))
    assert before < STEPS
    assert (killed / "run.json").read_text().count('"running"') == 1
    resume = [*EMBED, *arguments(killed, ranks), "--resume"]
    answer = run(resume, check=True, timeout=200, capture_output=True)
    assert "resuming after step" in answer.stdout
    assert losses(killed) == losses(whole)
    exported = [(folder / "model").rglob("*.safetensors") for folder in (whole, killed)]
    one, other = ([path.read_bytes() for path in sorted(files)] for files in exported)
    assert one == other
    assert one
