"""Tables of columns that are built once and found again: ``EMBED_CACHE/rows/KEY/`` with a file per column.

A table is written under a temporary name and renamed when complete; it is used only where every file has the size and
the checksum it was written with, else it is built anew. Tables that no run has used for a month are removed.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embed_core.datasets.index.columns import Column, ColumnWriter, cannot_write

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

Writers = dict[str, ColumnWriter]
FACTS = "facts.json"
UNUSED_SECONDS = 30 * 24 * 3600
LEFTOVER_SECONDS = 24 * 3600
"""Age at which a table half written belongs to a run that was killed."""


@dataclass(frozen=True)
class Table:
    """Columns, and what else is to be remembered of them."""

    columns: Mapping[str, Column]
    facts: Mapping[str, Any]


def find(root: Path, key: str, schema: Mapping[str, str]) -> Table | None:
    """The table kept as ``key``, or None where there is none or it is damaged. Its age starts anew."""
    folder = root / "rows" / key
    try:
        written = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        for name in schema:
            if _checksum(folder / name) != written["columns"][name]:
                return None
        columns = {name: Column(folder / name, dtype) for name, dtype in schema.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    with suppress(OSError):  # somebody else's cache, or a read-only one
        os.utime(folder / FACTS)
    return Table(columns, written["facts"])


def build(
    schema: Mapping[str, str], fill: Callable[[Writers], Mapping[str, Any]], root: Path | None, key: str | None
) -> Table:
    """A new table of what ``fill`` writes; it returns the facts, which must fit into JSON.

    ``root`` None builds in memory; ``key`` None builds on disk, for this process only. Raises DataError where the
    cache cannot be written.
    """
    if root is None:
        writers = {name: ColumnWriter(dtype, None) for name, dtype in schema.items()}
        facts = fill(writers)
        return Table({name: writer.finish() for name, writer in writers.items()}, facts)
    home = root / "rows"
    made = home / f".{uuid.uuid4().hex}"
    try:
        made.mkdir(parents=True)
        _clear(home)
    except OSError as error:
        raise cannot_write(home, error) from None
    writers = {}
    try:
        writers.update((name, ColumnWriter(dtype, made / name)) for name, dtype in schema.items())
        facts = fill(writers)
        # Opened before the rename: the files stay readable whatever becomes of the folder.
        table = Table({name: writer.finish() for name, writer in writers.items()}, facts)
        if key is not None:
            _keep(made, home / key, writers, facts)
    except OSError as error:
        raise cannot_write(made, error) from None
    finally:
        for writer in writers.values():
            writer.close()
        shutil.rmtree(made, ignore_errors=True)
    return table


def _keep(made: Path, folder: Path, writers: Writers, facts: Mapping[str, Any]) -> None:
    sums = {name: [writer.bytes, writer.checksum] for name, writer in writers.items()}
    (made / FACTS).write_text(json.dumps({"columns": sums, "facts": facts}), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)  # damaged, or there would be nothing to build
    with suppress(OSError):  # another process was faster, with the same content
        made.rename(folder)


def _checksum(path: Path) -> list[int]:
    size, checksum = 0, 0
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            size, checksum = size + len(data), zlib.crc32(data, checksum)
    return [size, checksum]


def _clear(home: Path) -> None:
    now = time.time()
    for folder in home.iterdir():
        hidden = folder.name.startswith(".")
        with suppress(OSError):
            age = now - (folder if hidden else folder / FACTS).stat().st_mtime
            if age > (LEFTOVER_SECONDS if hidden else UNUSED_SECONDS):
                shutil.rmtree(folder, ignore_errors=True)
