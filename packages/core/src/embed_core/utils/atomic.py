"""Files and folders that are there whole or not at all, whoever else writes beside this process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def beside(path: Path) -> Path:
    """A hidden name next to ``path`` that nobody else has: threads share a process id, and machines on one disk may."""
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
