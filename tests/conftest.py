"""What the tests of all packages share. ``tests/README.md`` says how the suite is laid out."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


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
