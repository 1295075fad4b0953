"""Every checksum of a teacher's folder, and the damaged entries dropped where that is asked for."""

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
    """What was found of one teacher."""

    name: str
    entries: int = 0
    """Looked at."""
    damaged: int = 0
    """Vectors with a wrong checksum."""
    files: list[str] = field(default_factory=list)
    """``path: reason`` of files that cannot be read as a whole."""

    @property
    def right(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damaged and not self.files


def verify(folder: Path, *, repair: bool = False) -> Verified:
    """Read every entry. With ``repair``, damaged entries and files go; a run or a build computes them again."""
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
    if not wrong and not segment.keys_are_right():  # of two keys with each other's vectors: no entry can be trusted
        raise DamagedError("its keys have a wrong checksum")
    found.damaged += wrong
    if repair and wrong:
        kept = np.concatenate(keys)
        written = (
            write_segment(segment.path.parent, kept, np.concatenate(records), segment.dtype) if len(kept) else None
        )
        if written != segment.path:
            segment.path.unlink(missing_ok=True)
