"""One process at a time rearranges the files of a teacher. Adding a file and reading need no lock."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = ".lock"


@contextmanager
def rearranging(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Whether the lock was got; with ``wait`` it always is. It goes with the process, so a killed one leaves none."""
    with (folder / NAME).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
