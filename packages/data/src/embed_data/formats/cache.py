"""Folders that are made once and found again, whole or not at all; those that nobody used for a month are removed."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from embed_core.errors import DataError

MANIFEST = "manifest.json"
UNUSED_SECONDS = 30 * 24 * 3600
LEFTOVER_SECONDS = 24 * 3600
"""Age at which a folder half written belongs to a run that was killed."""


def facts(folder: Path) -> dict[str, Any] | None:
    """What was noted of ``folder``; ``None`` where it is not there or a file of it is cut off. Its age starts anew."""
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


def make(folder: Path, place: str, fill: Callable[[Path], Mapping[str, Any]]) -> None:
    """Let ``fill`` write what ``place`` gives, under a temporary name, and keep it with the facts that it returns.

    A process that is killed leaves no half folder. Raises DataError where nothing can be written.
    """
    made = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
    try:
        made.mkdir(parents=True)
        clear(folder.parent)
        keep(made, folder, fill(made))
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"{folder}: the rows of {place} cannot be cached: {reason}: set EMBED_CACHE to a writable folder"
        ) from None
    finally:
        shutil.rmtree(made, ignore_errors=True)


def keep(made: Path, folder: Path, noted: Mapping[str, Any]) -> None:
    """Turn ``made`` into ``folder`` with what is to be known of it. Another process that was faster wins."""
    sizes = {path.name: path.stat().st_size for path in sorted(made.iterdir())}
    text = json.dumps({"facts": dict(noted), "sizes": sizes}, indent=1)
    (made / MANIFEST).write_text(text, encoding="utf-8")
    if folder.exists() and facts(folder) is None:
        shutil.rmtree(folder)
    if not folder.exists():
        try:
            made.rename(folder)
        except OSError:  # between the two lines it was there
            if facts(folder) is None:
                raise


def clear(home: Path) -> None:
    """Remove what is old: its files stay readable for a run that has them open."""
    now = time.time()
    for folder in home.iterdir():
        hidden = folder.name.startswith(".")
        with suppress(OSError):
            age = now - (folder if hidden else folder / MANIFEST).stat().st_mtime
            if age > (LEFTOVER_SECONDS if hidden else UNUSED_SECONDS):
                shutil.rmtree(folder, ignore_errors=True)
