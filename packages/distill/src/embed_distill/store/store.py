"""The vectors of one teacher, kept in a folder of :mod:`segments <embed_distill.store.segment>`."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embed_core.errors import DataError
from embed_core.utils.atomic import replacing
from embed_distill.store.codec import decoded, encoded
from embed_distill.store.compact import MANY_WHILE_RUNNING, compact
from embed_distill.store.segment import SUFFIX, DamagedError, Segment, write_segment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from embed_core.protocols import Announce
    from embed_distill.store.codec import Dtype
    from embed_distill.store.keys import Keys

FACTS = "teacher.json"


class VectorStore:
    """Gets and puts vectors by key. It is safe for threads and for any number of processes at once.

    A file is there whole or not at all, so a process may be killed at any time. An entry with a wrong checksum counts
    as missing: the caller computes it again and adds it. Raises DataError where the folder cannot be written.
    """

    def __init__(self, folder: Path, dtype: Dtype, facts: Mapping[str, Any], announce: Announce) -> None:
        """``facts`` describe the teacher, for people who look into the folder."""
        self.folder, self.dtype, self._announce = folder, dtype, announce
        self.damaged = 0
        """Number of entries and files that were found damaged."""
        self._lock = threading.Lock()
        self._segments: dict[str, Segment] = {}
        self._reported: set[object] = set()
        self._used: set[str] = set()
        self._seen: int | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / FACTS).exists():
                with replacing(folder / FACTS) as temporary:
                    temporary.write_text(json.dumps(dict(facts), indent=2, sort_keys=True) + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(
                f"teacher store {str(folder)!r} cannot be written ({error}): name another `store`"
            ) from None

    def __len__(self) -> int:
        """Number of entries in all files; an entry in two files counts twice."""
        with self._lock:
            self._look()
            return sum(one.count for one in self._segments.values())

    def get(self, keys_N2: Keys) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_]]:
        """Vectors fp32 ``[N, W]`` (None if no key is found) and which keys were found; the rows of others are 0."""
        with self._lock:
            self._look()
            vectors_NW: NDArray[np.float32] | None = None
            found_N = np.zeros(len(keys_N2), dtype=np.bool_)
            for one in self._by_size():
                left = np.flatnonzero(~found_N)
                if not len(left):
                    break
                at = one.find(keys_N2[left])
                left, at = left[at >= 0], at[at >= 0]
                if not len(left):
                    continue
                some, right = one.read(at)
                self._report_damaged(one, at[~right])
                if vectors_NW is None:
                    vectors_NW = np.zeros((len(keys_N2), one.width), dtype=np.float32)
                vectors_NW[left[right]] = some[right]
                found_N[left[right]] = True
                if one.name not in self._used:
                    self._used.add(one.name)
                    one.used()
            return (vectors_NW if found_N.any() else None), found_N

    def has(self, keys_N2: Keys) -> NDArray[np.bool_]:
        """Which keys are present; their vectors are not checked."""
        with self._lock:
            self._look()
            here_N = np.zeros(len(keys_N2), dtype=np.bool_)
            for one in self._by_size():
                left = np.flatnonzero(~here_N)
                here_N[left] = one.find(keys_N2[left]) >= 0
            return here_N

    def put(self, keys_N2: Keys, vectors_NW: NDArray[np.float32]) -> NDArray[np.float32]:
        """Store vectors as one new file; returns them as :meth:`get` would."""
        records_N = encoded(keys_N2, vectors_NW, self.dtype)
        with self._lock:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)  # `embed teacher gc` may have removed it
                path = write_segment(self.folder, keys_N2, records_N, self.dtype)
                self._segments[path.name] = Segment(path)
                small = sum(one.bytes < (1 << 20) for one in self._segments.values())
                if small > MANY_WHILE_RUNNING and compact(self.folder, more_than=MANY_WHILE_RUNNING):
                    self._look()
            except OSError as error:
                raise DataError(
                    f"teacher store {str(self.folder)!r} cannot be written ({error}): free space, or name "
                    "another `store`"
                ) from None
        return decoded(records_N)

    def compact(self) -> None:
        """Join small files at the end of a build."""
        with self._lock:
            compact(self.folder)

    def _look(self) -> None:
        """Notice files that were added or removed since the last call."""
        try:
            changed = os.stat(self.folder).st_mtime_ns
        except FileNotFoundError:
            self._segments.clear()
            return
        if changed == self._seen:
            return
        names = {entry.name for entry in os.scandir(self.folder) if entry.name.endswith(SUFFIX)}
        for name in self._segments.keys() - names:
            del self._segments[name]
        for name in sorted(names - self._segments.keys()):
            try:
                self._segments[name] = Segment(self.folder / name)
            except FileNotFoundError:
                continue
            except DamagedError as error:
                if name not in self._reported:
                    self._reported.add(name)
                    self.damaged += 1
                    self._announce(
                        f"teacher store: {self.folder / name}: damaged ({error}): its vectors are computed again "
                        "(`embed teacher verify --repair` removes the file)"
                    )
        self._seen = changed

    def _by_size(self) -> list[Segment]:
        """Segments, small ones first: a recomputed entry is in a smaller file than its damaged original."""
        return sorted(self._segments.values(), key=lambda one: (one.count, one.name))

    def _report_damaged(self, one: Segment, positions: NDArray[np.int64]) -> None:
        new = {(one.name, int(at)) for at in positions} - self._reported
        if new:
            self._reported |= new
            self.damaged += len(new)
            count = (
                "1 vector has a wrong checksum: it is"
                if len(new) == 1
                else f"{len(new)} vectors have wrong checksums: they are"
            )
            self._announce(f"teacher store: {one.path}: {count} computed again")
