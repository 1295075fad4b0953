"""Starts N ranks on this machine, like ``torchrun`` but without its long report when a rank stops with a user error."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, NoReturn

GRACE_SECONDS = 15.0
"""Time for the other ranks to stop by themselves after one has failed or the user has interrupted."""
RANK_LOST = 76
"""Exit code of a rank that stopped because another had (``EX_PROTOCOL``): it is never the cause."""


def launch(command: Sequence[str], ranks: int) -> int:
    """Run ``command`` once per rank; returns the exit code of the rank that failed first, or 0.

    Rank 0 has the terminal. What another rank wrote to stderr is shown if that rank is the one that failed.
    """
    port = _free_port()
    with ExitStack() as files:
        logs = [files.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8")) for _ in range(1, ranks)]
        return _supervise(command, ranks, port, [None, *logs])


def _supervise(command: Sequence[str], ranks: int, port: int, logs: Sequence[IO[str] | None]) -> int:
    with _stopped_by_sigterm():
        processes = [_start(command, rank, ranks, port, log) for rank, log in enumerate(logs)]
        try:
            codes = _wait(processes)
        except KeyboardInterrupt:
            # The terminal interrupts the ranks too: they need time to save their state and release resources.
            _wait_for_all(processes, GRACE_SECONDS)
            raise
        finally:
            _stop(processes)
    failed = _cause(codes)
    if failed is None:
        return 0
    code = codes[failed]
    assert code is not None
    _report_failure(failed, code, logs[failed])
    return 128 - code if code < 0 else code  # death by a signal, as a shell reports it


def _start(command: Sequence[str], rank: int, ranks: int, port: int, log: IO[str] | None) -> subprocess.Popen[bytes]:
    environment = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    # Without a limit every rank would start a thread per core.
    threads = str(max(1, (os.cpu_count() or 1) // ranks))
    quiet = subprocess.DEVNULL if log is not None else None
    return subprocess.Popen(
        list(command), env={"OMP_NUM_THREADS": threads, **os.environ, **environment}, stdout=quiet, stderr=log
    )


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> list[int | None]:
    """Exit codes, once all ranks have ended, or after a failure and GRACE_SECONDS; None = still running."""
    deadline: float | None = None
    while True:
        codes = [process.poll() for process in processes]
        if deadline is None and any(codes):
            deadline = time.monotonic() + GRACE_SECONDS
        if None not in codes or (deadline is not None and time.monotonic() > deadline):
            return codes
        time.sleep(0.05)


def _wait_for_all(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _cause(codes: Sequence[int | None]) -> int | None:
    """The rank to blame: the lowest that failed by itself, not because it lost its connection to another."""
    failed = [rank for rank, code in enumerate(codes) if code]
    blamed = [rank for rank in failed if codes[rank] != RANK_LOST]
    return next(iter(blamed or failed), None)


def _report_failure(rank: int, code: int, log: IO[str] | None) -> None:
    """Report the failure of a rank, as far as the terminal does not show it yet."""
    if log is not None:
        log.seek(0)
        lines = log.read().splitlines()
        # A user error is one line; the rank's other output does not help then.
        shown = [line for line in lines if line.startswith("error: ")] if code == 2 else []
        if lines:
            sys.stderr.write("".join(f"{line}\n" for line in shown or [f"rank {rank} failed:", *lines]))
    if code < 0:
        # The kernel kills with SIGKILL when memory runs out; a crash in a library gives another signal.
        memory = " (out of memory?)" if -code == signal.SIGKILL else ""
        sys.stderr.write(
            f"error: rank {rank} was killed by {signal.Signals(-code).name}{memory}: "
            "`--resume` continues from the last checkpoint\n"
        )


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """A scheduler sends SIGTERM to this process alone: turn it into an exit that stops the ranks first."""

    def stop(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
