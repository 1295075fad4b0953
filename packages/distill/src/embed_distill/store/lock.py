"""The lock for rearranging a teacher's files, held by one process at a time. Adding and reading files need no lock."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = ".lock"


@contextmanager
def rearranging(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Yields whether the lock was acquired; with ``wait`` it always is. A killed process releases its lock."""
    with (folder / NAME).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
