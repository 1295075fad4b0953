"""Verifies every checksum of a teacher's folder, and can remove damaged entries."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embed_distill.store.complete import forget
from embed_distill.store.lock import rearranging
from embed_distill.store.segment import SUFFIX, DamagedError, Segment, write_segment

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embed_distill.store.keys import Keys


@dataclass
class Verified:
    """The result for one teacher."""

    name: str
    entries: int = 0
    """Number of entries checked."""
    damaged: int = 0
    """Number of those with a wrong checksum."""
    files: list[str] = field(default_factory=list)
    """``path: reason`` of files that cannot be read at all."""

    @property
    def right(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damaged and not self.files


def verify(folder: Path, *, repair: bool = False) -> Verified:
    """Check every entry. ``repair`` removes damaged entries and files, which runs and builds compute again."""
    found = Verified(folder.name)
    with rearranging(folder, wait=True):
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            try:
                _verify_one(Segment(path), found, repair=repair)
            except FileNotFoundError:
                continue
            except DamagedError as error:
                found.files.append(f"{path}: {error}")
                if repair:
                    path.unlink(missing_ok=True)
        if repair and not found.right:
            forget(folder)
    return found


def _verify_one(segment: Segment, found: Verified, *, repair: bool) -> None:
    wrong = 0
    keys: list[Keys] = []
    records: list[NDArray[Any]] = []
    for keys_N2, records_N, right_N in segment.parts():
        wrong += int(np.count_nonzero(~right_N))
        if repair:
            keys.append(keys_N2[right_N])
            records.append(records_N[right_N])
    found.entries += segment.count
    if not wrong and not segment.keys_are_right():  # keys may have been swapped, so no entry can be trusted
        raise DamagedError("its keys have a wrong checksum")
    found.damaged += wrong
    if repair and wrong:
        kept = np.concatenate(keys)
        written = (
            write_segment(segment.path.parent, kept, np.concatenate(records), segment.dtype) if len(kept) else None
        )
        if written != segment.path:
            segment.path.unlink(missing_ok=True)
