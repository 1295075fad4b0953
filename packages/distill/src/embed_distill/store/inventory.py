"""Lists a store: every teacher's folder, its size and last use; and removes what is not needed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embed_core.errors import DataError, did_you_mean
from embed_distill.store.compact import readable
from embed_distill.store.complete import forget
from embed_distill.store.lock import rearranging
from embed_distill.store.store import FACTS

DAY = 24 * 3600
DEFAULT_FOLDER = "teachers"
"""Folder of the store in the cache directory."""


def store_root(store: str | None, cache_dir: Path) -> Path:
    """The store's folder: ``store``, else ``teachers`` in the cache directory."""
    return Path(store).expanduser() if store else cache_dir / DEFAULT_FOLDER


@dataclass(frozen=True)
class Kept:
    """The facts of one teacher's folder."""

    folder: Path
    teacher: str
    """The name that its first user gave it."""
    dtype: str
    width: int
    """Values of a vector; 0 where there are no vectors yet."""
    vectors: int
    files: int
    bytes: int
    used: float
    """When a run last read from it or wrote to it, seconds since 1970."""

    @property
    def name(self) -> str:
        """Name of the folder; `--teacher` takes it, or the teacher's own name."""
        return self.folder.name


def kept(root: Path, names: Sequence[str] = ()) -> list[Kept]:
    """The teachers of a store, the largest first; with ``names``, only those. Raises DataError for an unknown name."""
    folders = [path.parent for path in sorted(root.glob(f"*/{FACTS}"))]
    found = sorted(map(_kept, folders), key=lambda one: (-one.bytes, one.name))
    known = {one.name for one in found} | {one.teacher for one in found}
    for name in names:
        if name not in known:
            raise DataError(
                f"--teacher {name!r}: the store {str(root)!r} has no such teacher: {did_you_mean(name, known)}"
            )
    return [one for one in found if not names or {one.name, one.teacher} & set(names)]


@dataclass(frozen=True)
class Removed:
    """Files that :func:`collect` removed, or with ``dry_run`` would have removed."""

    teacher: str
    files: int
    bytes: int
    reason: str


def collect(root: Path, *, unused_days: float | None, keep: Sequence[str], dry_run: bool = False) -> list[Removed]:
    """Remove files that no run has read for ``unused_days``, and, where ``keep`` is given, every other teacher.

    Raises DataError for a name in ``keep`` without a folder: a typing error must not remove what was to be kept.
    """
    wanted = {one.name for one in kept(root, keep)} if keep else None
    removed: list[Removed] = []
    for one in kept(root):
        if wanted is not None and one.name not in wanted:
            removed.append(Removed(one.teacher, one.files, one.bytes, "not kept"))
            if not dry_run:
                shutil.rmtree(one.folder)
        elif unused_days is not None:
            removed += _unused(one, time.time() - unused_days * DAY, unused_days, dry_run=dry_run)
    return removed


def _unused(one: Kept, since: float, days: float, *, dry_run: bool) -> list[Removed]:
    with rearranging(one.folder, wait=True):
        old = [segment for segment in readable(one.folder) if segment.path.stat().st_mtime < since]
        if not old:
            return []
        if not dry_run:
            for segment in old:
                segment.path.unlink(missing_ok=True)
            forget(one.folder)
    if len(old) == one.files and not dry_run:
        shutil.rmtree(one.folder)
    return [Removed(one.teacher, len(old), sum(segment.bytes for segment in old), f"not used for {days:g} days")]


def _kept(folder: Path) -> Kept:
    try:
        facts: Any = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        facts = {}
    segments = readable(folder)
    return Kept(
        folder=folder,
        teacher=str(facts.get("teacher", folder.name)),
        dtype=str(facts.get("stored", "?")),
        width=segments[0].width if segments else 0,
        vectors=sum(one.count for one in segments),
        files=len(segments),
        bytes=sum(one.bytes for one in segments),
        used=max((one.path.stat().st_mtime for one in segments), default=folder.stat().st_mtime),
    )
