"""Starting ranks: exit codes, whose message is shown, and that nothing is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from embed_cli import launch as launching
from embed_cli.launch import RANK_LOST, launch

RANK = "import os, sys, time; rank = int(os.environ['RANK'])\n"


def start(code: str, ranks: int = 2) -> int:
    return launch([sys.executable, "-c", RANK + code], ranks)


def test_success_and_what_a_rank_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = f"""
names = ['RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT', 'OMP_NUM_THREADS']
open({str(tmp_path)!r} + f'/{{rank}}', 'w').write(' '.join(os.environ[n] for n in names))"""
    assert start(code, 3) == 0
    told = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [t[:5] for t in told] == [[str(r), str(r), "3", "3", "127.0.0.1"] for r in range(3)]
    assert len({t[5] for t in told}) == 1
    assert all(1 <= int(t[6]) <= max(1, (os.cpu_count() or 1) // 3) for t in told)


def test_only_rank_0_has_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert start("print('out', rank); print('err', rank, file=sys.stderr)") == 0
    assert capfd.readouterr() == ("out 0\n", "err 0\n")


@pytest.mark.parametrize("failing", [0, 1])
def test_the_exit_code_is_that_of_the_rank_that_failed(capfd: pytest.CaptureFixture[str], failing: int) -> None:
    code = f"mine = rank == {failing}; mine and print('why', file=sys.stderr); mine or time.sleep(0.3)"
    assert start(f"{code}; sys.exit(7 * mine)") == 7
    error = capfd.readouterr().err
    assert error == ("why\n" if failing == 0 else "rank 1 failed:\nwhy\n")


def test_a_user_error_of_another_rank_is_its_line_alone(capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        start("print('noise', file=sys.stderr); rank and (print('error: a fault', file=sys.stderr), sys.exit(2))") == 2
    )
    assert capfd.readouterr().err == "noise\nerror: a fault\n"


def test_a_rank_that_lost_the_others_is_not_the_cause(capfd: pytest.CaptureFixture[str]) -> None:
    code = f"sys.exit({RANK_LOST}) if rank == 0 else (time.sleep(0.4), print('why', file=sys.stderr), sys.exit(1))"
    assert start(code) == 1
    assert capfd.readouterr().err == "rank 1 failed:\nwhy\n"
    assert start(f"sys.exit({RANK_LOST})") == RANK_LOST


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_is_named(capfd: pytest.CaptureFixture[str], killed: int) -> None:
    assert start(f"os.kill(os.getpid(), 9) if rank == {killed} else sys.exit({RANK_LOST})") == 128 + 9
    error = capfd.readouterr().err
    assert error.startswith(f"error: rank {killed} was killed by SIGKILL (out of memory?): `--resume` continues from")
    assert len(error.splitlines()) == 1
    assert start("rank and os.kill(os.getpid(), 6)") == 128 + 6
    assert capfd.readouterr().err.startswith("error: rank 1 was killed by SIGABRT: `--resume` continues")


def test_ranks_that_hang_after_a_failure_are_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launching, "GRACE_SECONDS", 0.3)
    pid = tmp_path / "pid"
    # An hour: were the other rank waited for, this test would not end.
    assert start(f"rank or sys.exit(3); open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(3600)") == 3
    if pid.exists():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_launcher_alone_stops_the_ranks(tmp_path: Path, number: int, code: int) -> None:
    body = RANK + f"open({str(tmp_path)!r} + f'/{{rank}}', 'w').write(str(os.getpid())); time.sleep(60)"
    program = (
        "import signal, sys\nfrom embed_cli import launch\nlaunch.GRACE_SECONDS = 0.5\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"try: sys.exit(launch.launch([sys.executable, '-c', {body!r}], 2))\n"
        "except KeyboardInterrupt: sys.exit(130)"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 20
    files = [tmp_path / "0", tmp_path / "1"]
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=20) == code
    for file in files:
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)
