"""Writes files and folders that exist whole or not at all, also where other processes write the same ones."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def beside(path: Path) -> Path:
    """A unique hidden name next to ``path``. A process id is not unique: threads share it, other machines repeat it."""
    return path.with_name(f".{path.name}.{uuid4().hex[:16]}.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write ``path`` under, renamed when the block has ended well and removed when not. Raises OSError."""
    temporary = beside(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raises OSError where no file can be made in ``folder``; asked with a real one, since root passes every test of
    permissions."""
    with tempfile.TemporaryFile(dir=folder, prefix=".embed-write-test-"):
        pass
