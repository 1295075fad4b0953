"""The curriculum on English and Chinese text, by the command: three stages, mined between them; a kill and a resume."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_data.config import FileConfig
from processes import Popen, run

XQUAD = Path(os.environ.get("EMBED_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data") / "xquad"
ROWS = 240
STAGES = ("stage-1-in-batch", "stage-2-mined", "stage-3-mined")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not XQUAD.is_dir(), reason=f"no real data at {XQUAD}: set EMBED_TEST_DATA"),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe on an eighth of the rows, with the answers that they have."""
    folder = tmp_path_factory.mktemp("curriculum")
    with (XQUAD / "train.jsonl").open(encoding="utf-8") as lines:
        rows = [line for line in lines if json.loads(line)["lang"] in ("en", "zh")]
    (folder / "rows.jsonl").write_text("".join(rows[:: len(rows) // ROWS][:ROWS]), encoding="utf-8")
    recipe = {
        "dataset_paths": str(folder / "rows.jsonl"),
        "held_out_rows": 40,
        "model": {"from_scratch": {"vocab_size": 600, "hidden": 32, "layers": 1, "heads": 2, "key_value_heads": 1}},
        "instruction": "",
        "max_length": 64,
        "per_device_train_batch_size": 8,
        "bf16": False,
        "save_steps": 1,
        "stages": [
            {"negatives": "in-batch", "max_steps": 5, "learning_rate": 2e-3, "warmup_steps": 2},
            {"remine": {"ranks": [11, 60]}, "negatives": 2, "max_steps": 6, "hard_negatives": "own"},
            {"remine": {"ranks": [1, 20]}, "negatives": 3, "max_steps": 4, "hard_negatives": "own"},
        ],
        "tracking": {"report_to": []},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder / "run.yaml"


def command(config: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "embed_cli", "run", "--plugin", "qwen", "--config", str(config),
        "--output-dir", str(out), *more,
    ]  # fmt: skip


def finished(config: Path, out: Path, *more: str) -> str:
    return run(command(config, out, *more), check=True, timeout=400, capture_output=True).stdout


def records(out: Path) -> list[dict[str, Any]]:
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(out: Path) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in records(out) if "loss" in record}


def kill_after(step: int, config: Path, out: Path) -> None:
    with (out.parent / "killed.log").open("w") as log:
        process = Popen(command(config, out), stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 400
        while step not in losses(out):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def whole(config: Path) -> tuple[Path, str]:
    """The uninterrupted run, and what it printed."""
    return config.parent / "whole", finished(config, config.parent / "whole")


def test_three_stages_run_and_are_measured(whole: tuple[Path, str]) -> None:
    _, said = whole
    lines = said.splitlines()
    for number, (name, steps, end) in enumerate(zip(STAGES, (5, 6, 4), (5, 11, 15), strict=True), 1):
        assert f"phase {number} of 3, {name}: {steps} steps" in lines
        assert any(line.startswith(f"step {end}  {name}  ") and "nDCG@10" in line for line in lines), (end, said)
    assert any(line.startswith("step 1/15  ") for line in lines), "stages that are mined later count from the start"
    assert "answers are not known" not in said
    assert sum("remined: the model mines for" in line for line in lines) == 2


def test_no_mined_negative_holds_the_answer(whole: tuple[Path, str], config: Path) -> None:
    """The rows say what the answers are; nobody names them for the stages."""
    path = config.parent / "rows.jsonl"
    asked = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    answers = {row["query"]: [answer.casefold() for answer in row["answers"]] for row in asked}
    context = BuildContext(Registry(), cache_dir=config.parent / "cache", announce=lambda line: None)
    rows: Any = FileConfig(path=str(path), held_out_rows=40).build(context)
    holding = 0
    for stage in STAGES[1:]:
        (mined,) = (whole[0] / "phases" / stage).glob("remined-*.jsonl")
        found = [json.loads(line) for line in mined.read_text(encoding="utf-8").splitlines()]
        assert len(found) == len(rows)
        assert sum(len(row["neg"]) for row in found) > 5 * len(found)
        for number, row in enumerate(found):
            wanted = answers[rows.row(number).query]
            holding += sum(answer in text.casefold() for text in row["neg"] for answer in wanted)
    assert holding == 0


def test_killed_in_stage_2_and_resumed_is_the_uninterrupted_run(whole: tuple[Path, str], config: Path) -> None:
    out = config.parent / "killed"
    kill_after(8, config, out)
    done = records(out)[-1]
    assert done["phase"] == STAGES[1]
    assert done["step"] < 11
    said = finished(config, out, "--resume")
    assert "resuming after step" in said
    # Stage 2's rows lie in its folder; only stage 3's are mined.
    assert sum("remined: the model mines for" in line for line in said.splitlines()) == 1
    assert losses(out) == losses(whole[0])
    wanted, found = (load_file(one / "model" / "model.safetensors") for one in (whole[0], out))
    assert wanted.keys() == found.keys()
    assert all(bool((found[name] == value).all()) for name, value in wanted.items())
    last = [record["evaluation"] for record in (*records(whole[0])[-1:], *records(out)[-1:])]
    assert last[0] == last[1]
