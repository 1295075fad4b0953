"""Folders that are made once and found again, and tables of columns in such folders: ``EMBED_CACHE/rows/KEY/``.

A folder is written under a temporary name and renamed when it is complete, so that a process that is killed leaves no
half folder. Folders that no run has used for a month are removed.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embed_core.datasets.index.columns import Column, ColumnWriter, cannot_write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

Writers = dict[str, ColumnWriter]
MANIFEST = "manifest.json"
UNUSED_SECONDS = 30 * 24 * 3600
LEFTOVER_SECONDS = 24 * 3600
"""Age at which a half-written folder belongs to a run that was killed."""


@dataclass(frozen=True)
class Table:
    """Columns, and facts about them."""

    columns: Mapping[str, Column]
    facts: Mapping[str, Any]


def facts(folder: Path) -> dict[str, Any] | None:
    """The facts that ``folder`` was kept with; ``None`` where it is not there or one of its files has another size.
    The month after which an unused folder is removed begins again."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes, noted = manifest["sizes"], manifest["facts"]
        if any((folder / name).stat().st_size != size for name, size in sizes.items()):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    with suppress(OSError):  # somebody else's cache, or a read-only one
        os.utime(folder / MANIFEST)
    return noted if isinstance(noted, dict) else None


def make(folder: Path, what: str, fill: Callable[[Path], Mapping[str, Any]]) -> None:
    """Let ``fill`` write into a new folder, and keep it as ``folder`` with the facts that it returns.

    Raises DataError, which says that ``what`` cannot be cached, where nothing can be written.
    """
    try:
        with _new(folder.parent) as made:
            _keep(made, folder, fill(made))
    except OSError as error:
        raise cannot_write(folder, error, what) from None


def find(root: Path, key: str, schema: Mapping[str, str]) -> Table | None:
    """The table kept as ``key``, or None where there is none, or where a column has not the checksum it was written
    with."""
    folder = root / "rows" / key
    noted = facts(folder)
    try:
        if noted is None or any(_checksum(folder / name) != noted["checksums"][name] for name in schema):
            shutil.rmtree(folder, ignore_errors=True)  # damaged
            return None
        columns = {name: Column(folder / name, dtype) for name, dtype in schema.items()}
        return Table(columns, noted["facts"])
    except (OSError, KeyError, TypeError):
        return None


def build(
    schema: Mapping[str, str], fill: Callable[[Writers], Mapping[str, Any]], root: Path | None, key: str | None
) -> Table:
    """A new table of what ``fill`` writes; it returns the facts, which must fit into JSON.

    ``root`` None builds in memory; ``key`` None builds on disk, for this process only. Raises DataError where the
    cache cannot be written.
    """
    if root is None:
        writers = {name: ColumnWriter(dtype, None) for name, dtype in schema.items()}
        filled = fill(writers)
        return Table({name: writer.finish() for name, writer in writers.items()}, filled)
    writers = {}
    try:
        with _new(root / "rows") as made:
            writers.update((name, ColumnWriter(dtype, made / name)) for name, dtype in schema.items())
            filled = fill(writers)
            # Opened before the rename: the files stay readable whatever becomes of the folder.
            table = Table({name: writer.finish() for name, writer in writers.items()}, filled)
            if key is not None:
                sums = {name: writer.checksum for name, writer in writers.items()}
                _keep(made, root / "rows" / key, {"checksums": sums, "facts": filled})
            return table
    except OSError as error:
        raise cannot_write(root / "rows", error) from None
    finally:
        for writer in writers.values():
            writer.close()


@contextmanager
def _new(home: Path) -> Iterator[Path]:
    """An empty folder under ``home``, removed at the end unless it was renamed."""
    made = home / f".{uuid.uuid4().hex}"
    made.mkdir(parents=True)
    _clear(home)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _keep(made: Path, folder: Path, noted: Mapping[str, Any]) -> None:
    """Rename ``made`` to ``folder``, with a manifest of ``noted`` and all sizes. A process that was faster wins."""
    sizes = {path.name: path.stat().st_size for path in sorted(made.iterdir())}
    (made / MANIFEST).write_text(json.dumps({"facts": dict(noted), "sizes": sizes}), encoding="utf-8")
    if facts(folder) is not None:
        return
    shutil.rmtree(folder, ignore_errors=True)
    try:
        made.rename(folder)
    except OSError:  # it is there since the line before
        if facts(folder) is None:
            raise


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            checksum = zlib.crc32(data, checksum)
    return checksum


def _clear(home: Path) -> None:
    """Remove old folders. A run that has their files open can still read them."""
    now = time.time()
    for folder in home.iterdir():
        hidden = folder.name.startswith(".")
        with suppress(OSError):
            age = now - (folder if hidden else folder / MANIFEST).stat().st_mtime
            if age > (LEFTOVER_SECONDS if hidden else UNUSED_SECONDS):
                shutil.rmtree(folder, ignore_errors=True)
