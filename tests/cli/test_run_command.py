"""`embed run`: from the command line to a run and back, in this process and on several ranks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml

import processes
from embed_cli.launch import _free_port
from embed_cli.main import app
from embed_cli.ranks import arguments_of
from embed_cli.run_command import COMMAND_LINE, command_line

torch.set_num_threads(1)
SMALL = [
    part
    for setting in (
        "model={buckets: 64, width: 8, dimension: 8}",
        "data.limit=48",
        "held_out_rows=8",
        "batch_size=8",
        "tracking.report_to=[]",
    )
    for part in ("--set", setting)
]
FLAKY = """
import os
from embed_core.errors import DataError
from embed_core.plugin.hookspecs import hookimpl

@hookimpl
def embed_step_ended(event):
    if event.rank == int(os.environ["FAIL_RANK"]) and event.step == 2 and event.evaluation is None:
        if os.environ["FAIL_HOW"] == "kill":
            os.kill(os.getpid(), 9)
        raise DataError("rows.jsonl:7: planted")

@hookimpl
def embed_run_ended(event):
    with open(os.environ["FAIL_LOG"], "a") as log:
        log.write(f"{event.rank} {type(event.error).__name__}\\n")
"""


@pytest.fixture
def embed(command: Callable) -> Callable:
    return command


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def test_a_dry_run_prints_what_loads_as_itself(embed: Callable, tmp_path: Path) -> None:
    arguments = ["--set", "learning_rate=1e-5", "--set", "evaluation.0.name=mine", "--seed", "7", "--max-steps", "3"]
    code, first, err = embed("run", "--plugin", "hello", "--dry-run", *arguments)
    assert (code, err) == (0, "")
    (tmp_path / "run.yaml").write_text(first)
    assert embed("run", "--config", "run.yaml", "--dry-run") == (0, first, "")
    (tmp_path / "run.json").write_text(json.dumps(yaml.safe_load(first)))
    assert embed("run", "--config", "run.json", "--dry-run") == (0, first, "")
    resolved = yaml.safe_load(first)
    assert resolved["plugins"] == ["hello"]
    assert resolved["train"]["optimizer"]["learning_rate"] == 1e-5
    assert (resolved["seed"], resolved["train"]["max_steps"], resolved["evaluation"][0]["name"]) == (7, 3, "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "run.yaml"], "nothing was trained"


def test_a_file_may_name_its_plugins_and_mix_keys(embed: Callable, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("plugins: [hello]\nepochs: 2\nengine: {zero_stage: 1}\n")
    code, out, _ = embed("run", "--config", "mine.yaml", "--dry-run", "--set", "engine.zero_stage=2")
    assert code == 0
    resolved = yaml.safe_load(out)
    assert (resolved["train"]["epochs"], resolved["engine"]["zero_stage"]) == (2.0, 2)


def test_dry_run_counts_the_ranks(embed: Callable) -> None:
    sizes = []
    for ranks in ("1", "3"):
        _, out, _ = embed("run", "--plugin", "bge", "--dry-run", "--nproc", ranks)
        sizes.append(yaml.safe_load(out)["sampler"]["batch_size"])
    assert sizes[1] == 3 * sizes[0]


def test_config_yaml_runs_again_identically(embed: Callable, tmp_path: Path) -> None:
    first = ["--plugin", "hello", *SMALL, "--max-steps", "3", "--seed", "5", "--output-dir", "x"]
    code, out, err = embed("run", *first)
    assert code == 0, err
    assert "finished 3 steps; the model is in x/model" in out
    code, _, err = embed("run", "--config", "x/config.yaml", "--output-dir", "y")
    assert code == 0, err
    assert losses(tmp_path / "y") == losses(tmp_path / "x")
    assert len(losses(tmp_path / "x")) == 3
    one, other = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "xy")
    assert one == other
    card = (tmp_path / "x" / "model" / "README.md").read_text()
    assert "embed run --plugin hello --set" in card


def test_resume_takes_the_saved_config(embed: Callable, tmp_path: Path) -> None:
    first = [*SMALL, "--max-steps", "2", "--seed", "5", "--output-dir", "x", "--set", "checkpoint.every_steps=1"]
    assert embed("run", "--plugin", "hello", *first)[0] == 0
    code, out, err = embed("run", "--resume", "--output-dir", "x", "--max-steps", "4")
    assert code == 0, err
    assert "resuming after step 2" in out
    assert len(losses(tmp_path / "x")) == 4
    code, _, err = embed("run", "--resume", "--output-dir", "x")
    assert (code, err.count("\n")) == (2, 1)
    assert "has done 4 steps and 4 were asked for: raise --max-steps to train on" in err


def test_sanity_is_the_same_recipe_in_miniature(embed: Callable, tmp_path: Path) -> None:
    code, out, err = embed(
        "run", "--plugin", "hello", "--sanity", "--output-dir", "s", "--set", "tracking.report_to=[]"
    )
    assert code == 0, err
    assert "finished 4 steps" in out
    assert sorted(path.name for path in (tmp_path / "s/checkpoints").iterdir()) == ["step-00000002", "step-00000004"]
    assert json.loads((tmp_path / "s" / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK, WORLD_SIZE and LOCAL_RANK must be numbers: "),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 and WORLD_SIZE 2: ranks are numbered from 0 to WORLD_SIZE - 1"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is '2' and RANK is not set: start the ranks with "),
    ],
)
def test_nonsense_from_a_launcher(
    embed: Callable, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, _, err = embed("run", "--plugin", "hello", "--dry-run")
    assert code == 2
    assert err.startswith(f"error: {message}")
    assert len(err.splitlines()) == 1


def test_ranks_are_told_what_the_user_said(monkeypatch: pytest.MonkeyPatch) -> None:
    run: Any = typer.main.get_command(app)
    said = [
        "--plugin",
        "a",
        "--plugin",
        "b",
        "--config",
        "c.yaml",
        "--set",
        "x=1",
        "--max-steps",
        "3",
        "--seed",
        "0",
        "--sanity",
        "--resume",
    ]
    context = run.commands["run"].make_context("run", [*said, "--set", "y=[1, 2]", "--nproc", "2"])
    words = "--plugin a --plugin b --config c.yaml --set x=1 --set|y=[1, 2]|--output-dir out --max-steps 3 --seed 0"
    head, middle, tail = words.split("|")
    found = arguments_of(context, output_dir=Path("out"))
    assert found == [*head.split(), middle, *tail.split(), "--sanity", "--resume"]
    assert arguments_of(run.commands["run"].make_context("run", ["--overwrite"])) == ["--overwrite"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/embed", "run", "--set", "a=[1, 2]"])
    monkeypatch.delenv(COMMAND_LINE, raising=False)
    assert command_line() == "embed run --set 'a=[1, 2]'"
    monkeypatch.setenv(COMMAND_LINE, "embed run --nproc 2")
    assert command_line() == "embed run --nproc 2"


def start(*command: str, site: Path | None = None, popen: Any = processes.Popen, **variables: str) -> Any:
    """The process of a command, by default a forked one."""
    path = {} if site is None else {"PYTHONPATH": str(site)}
    return popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", **path, **variables},
        start_new_session=True,
    )


def finished(process: Any) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun's ranks are in sessions of their own: it stops them itself
        process.wait(timeout=60)
        raise
    return process.returncode, out, err


@pytest.fixture
def flaky(tmp_path: Path) -> Path:
    """A plugin that fails at step 2 on ``$FAIL_RANK``."""
    info = tmp_path / "site" / "embed_flaky-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: embed-flaky\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[embed]\nflaky = flaky_plugin\n")
    (info.parent / "flaky_plugin.py").write_text(FLAKY)
    return info.parent


@pytest.mark.parametrize(("rank", "how"), [(0, "raise"), (1, "raise"), (1, "kill")])
def test_one_of_two_ranks_fails(tmp_path: Path, flaky: Path, rank: int, how: str) -> None:
    run = ["run", "--plugin", "hello", "--plugin", "flaky", *SMALL, "--max-steps", "50", "--nproc", "2"]
    command = [sys.executable, "-m", "embed_cli", *run, "--output-dir", str(tmp_path / "out")]
    log = tmp_path / "log"
    code, _, err = finished(start(*command, site=flaky, FAIL_RANK=str(rank), FAIL_HOW=how, FAIL_LOG=str(log)))
    lines = err.splitlines()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "failed"
    if rank == 0:
        assert (code, lines) == (2, ["error: rows.jsonl:7: planted"])
        assert sorted(log.read_text().splitlines()) == ["0 DataError", "1 RankLostError"]
        return
    assert lines[0] == "rank 0 stopped: another rank stopped before it, whose message says why"
    if how == "raise":
        assert (code, lines[1:]) == (2, ["error: rows.jsonl:7: planted"])
        assert sorted(log.read_text().splitlines()) == ["0 RankLostError", "1 DataError"]
    else:
        assert code == 137
        assert lines[1:] == [
            "error: rank 1 was killed by SIGKILL (out of memory?): `--resume` continues from the last checkpoint"
        ]
        assert log.read_text() == "0 RankLostError\n"


@pytest.mark.parametrize(("number", "wanted"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_so_and_notes_it(tmp_path: Path, number: int, wanted: int) -> None:
    out = tmp_path / "out"
    run = ["run", "--plugin", "hello", *SMALL, "--max-steps", "1000000", "--output-dir", str(out)]
    process = start(sys.executable, "-m", "embed_cli", *run)
    deadline = time.monotonic() + 60
    metrics = out / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 5:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    code, shown, err = finished(process)
    assert code == wanted, err
    assert "Traceback" not in err
    assert "stopped after " in shown
    assert json.loads((out / "run.json").read_text())["status"] == "failed"
    if number == signal.SIGINT:
        assert "interrupted: `embed run --resume --output-dir " in shown


def check_two_ranks(tmp_path: Path, command: list[str]) -> None:
    """By a launcher that starts Python itself, so by real processes only."""
    run = ["run", "--plugin", "hello", *SMALL, "--max-steps", "3", "--output-dir", str(tmp_path / "out")]
    code, out, err = finished(start(*command, *run, popen=partial(subprocess.Popen, text=True)))
    assert code == 0, err
    assert out.count("finished 3 steps; the model is in ") == 1, "rank 0 alone speaks"
    assert len(losses(tmp_path / "out")) == 3
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()


@pytest.mark.e2e
def test_under_torchrun(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--master-port", str(_free_port())]
    check_two_ranks(tmp_path, [*torchrun, "--nproc-per-node", "2", "-m", "embed_cli"])


@pytest.mark.e2e
@pytest.mark.skipif(shutil.which("deepspeed", path=str(Path(sys.executable).parent)) is None, reason="no launcher")
def test_under_the_deepspeed_launcher_with_a_hostfile(tmp_path: Path) -> None:
    (tmp_path / "hostfile").write_text("localhost slots=2\n")
    launcher = [
        sys.executable,
        str(Path(sys.executable).parent / "deepspeed"),
        "--hostfile",
        str(tmp_path / "hostfile"),
    ]
    alone = ["--no_ssh", "--node_rank", "0", "--master_addr", "127.0.0.1", "--master_port", str(_free_port())]
    check_two_ranks(tmp_path, [*launcher, *alone, "--module", "embed_cli"])
