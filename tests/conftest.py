"""What the tests of all packages share. ``tests/README.md`` says how the suite is laid out."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Workers share the machine with what else runs on it: how long an example takes says nothing.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")


def pytest_xdist_auto_num_workers() -> int:
    """``-n auto``: as many workers as this process may use cores, which a container or ``taskset`` can limit."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def pytest_collection_finish() -> None:
    """What importing the tests has made stays: the garbage collector, which runs call, need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _commands_are_those_of_the_module() -> Iterator[None]:
    """A command line adds the plugins' commands to the one app of its process; in tests many follow each other."""
    from embed_cli.main import app

    commands, groups = list(app.registered_commands), list(app.registered_groups)
    yield
    app.registered_commands[:], app.registered_groups[:] = commands, groups


@pytest.fixture
def forked_ranks() -> Iterator[None]:
    """Ranks that commands of this test start are forks of a process that has imported torch already."""
    import processes

    with processes.forked_ranks():
        yield


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """``command("run", …)`` runs ``embed run …`` in this process and in ``tmp_path`` → exit code, stdout, stderr."""
    from embed_cli.main import main
    from embed_cli.run_command import COMMAND_LINE
    from embed_core.distributed.process_group import leave

    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["embed", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        output = capfd.readouterr()
        return code, output.out, output.err

    yield call
    os.environ.pop(COMMAND_LINE, None)
    leave()
