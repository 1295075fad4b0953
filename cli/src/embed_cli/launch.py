"""Start N ranks on this machine: ``torchrun`` without its wall of text when a rank stops with a user error."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO

GRACE_SECONDS = 15.0
"""How long the other ranks may take to stop by themselves once one has failed."""


def launch(command: Sequence[str], ranks: int) -> int:
    """Run ``command`` once per rank; the exit code is that of the first rank that failed, else 0.

    Rank 0 has the terminal. What another rank wrote to stderr is shown when it failed and rank 0 did not say why.
    """
    port = _free_port()
    with ExitStack() as files:
        logs = [files.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8")) for _ in range(1, ranks)]
        return _supervise(command, ranks, port, [None, *logs])


def _supervise(command: Sequence[str], ranks: int, port: int, logs: Sequence[IO[str] | None]) -> int:
    processes = [_start(command, rank, ranks, port, log) for rank, log in enumerate(logs)]
    try:
        first = _wait(processes)
    except KeyboardInterrupt:
        _stop(processes)
        raise
    if first is None:
        return 0
    code_of_0 = processes[0].poll()
    _stop(processes)
    log = logs[first]
    if log is not None and code_of_0 in (None, 0):
        log.seek(0)
        sys.stderr.write(f"rank {first} failed:\n{log.read()}")
    return _exit_code(processes[first].returncode)


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


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """The rank that failed first (after the others had time to stop by themselves), or None when all succeeded."""
    first: int | None = None
    deadline = 0.0
    while True:
        codes = [process.poll() for process in processes]
        if first is None:
            first = next((rank for rank, code in enumerate(codes) if code), None)
            deadline = time.monotonic() + GRACE_SECONDS
        if None not in codes or (first is not None and time.monotonic() > deadline):
            return first
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


def _exit_code(code: int) -> int:
    """A death by signal as a shell reports it."""
    return 128 - code if code < 0 else code


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
