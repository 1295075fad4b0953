"""One file of a store: sorted keys, then vectors. It is written as a whole, never changed, and read by memory map.

    64 bytes   magic, version, dtype, width W, count n, CRC-32 of the keys, CRC-32 of the header itself
    8·n bytes  first halves of the keys, ascending         8·n bytes  second halves
    n records  as :func:`embed_distill.store.codec.record_type` says

A binary search over the keys touches few pages, and a vector's page is read when needed, so a store may be far
larger than memory, and the ranks of a machine share one copy of the pages in memory.
"""

from __future__ import annotations

import os
import struct
import zlib
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embed_core.utils.atomic import replacing
from embed_distill.store.codec import CODES, checksums, decoded, record_type
from embed_distill.store.keys import sorted_once

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from embed_distill.store.codec import Dtype
    from embed_distill.store.keys import Keys

SUFFIX = ".vec"
MAGIC, VERSION = b"EMBDTCHR", 1
HEADER = struct.Struct("<8sHHIQI")
HEADER_BYTES = 64
AT_ONCE = 8_192
"""Number of records in memory at a time when all of them are read."""


class DamagedError(Exception):
    """A file that is not a whole segment. It never leaves this package: the store skips the file and announces it."""


class Segment:
    """Opens a segment. Raises DamagedError where header or size are wrong, FileNotFoundError where it is gone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
            self.bytes = os.fstat(file.fileno()).st_size
            self.dtype, self.width, self.count, self._keys_crc = _header(head)
            kind = record_type(self.dtype, self.width)
            expected = HEADER_BYTES + self.count * (16 + kind.itemsize)
            if self.bytes != expected:
                raise DamagedError(f"{self.bytes:,} bytes, {expected:,} are due")
            whole = np.memmap(file, dtype=np.uint8, mode="r")
        middle, end = HEADER_BYTES + 8 * self.count, HEADER_BYTES + 16 * self.count
        self._heads: NDArray[np.uint64] = whole[HEADER_BYTES:middle].view("<u8")
        self._tails: NDArray[np.uint64] = whole[middle:end].view("<u8")
        self._records: NDArray[Any] = whole[end:].view(kind)

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name

    def find(self, keys_N2: Keys) -> NDArray[np.int64]:
        """Position of each key, or -1 for one that is not here.

        Of two keys with equal first halves only one is found; the other is computed again whenever it is asked for.
        Among a thousand million texts this happens in one of forty stores.
        """
        at_N = np.searchsorted(self._heads, keys_N2[:, 0])
        inside_N = np.minimum(at_N, self.count - 1)
        here_N = (self._heads[inside_N] == keys_N2[:, 0]) & (self._tails[inside_N] == keys_N2[:, 1])
        return np.where(here_N & (at_N < self.count), inside_N, -1)

    def keys(self, positions_N: NDArray[np.int64] | slice) -> Keys:
        """The keys at these positions, ``[N, 2]``."""
        return np.stack((self._heads[positions_N], self._tails[positions_N]), axis=1)

    def records(self, positions_N: NDArray[np.int64] | slice) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The records at these positions, and which of them have the right checksum."""
        records_N = np.asarray(self._records[positions_N])
        return records_N, checksums(self.keys(positions_N), records_N) == records_N["crc"]

    def read(self, positions_N: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The vectors at these positions, fp32 ``[N, W]``, and which of them have the right checksum."""
        records_N, right_N = self.records(positions_N)
        return decoded(records_N), right_N

    def parts(self) -> Iterator[tuple[Keys, NDArray[Any], NDArray[np.bool_]]]:
        """Yields all keys, records and whether their checksums are right, some thousands at a time."""
        for start in range(0, self.count, AT_ONCE):
            part = slice(start, start + AT_ONCE)
            records_N, right_N = self.records(part)
            yield self.keys(part), records_N, right_N

    def keys_are_right(self) -> bool:
        """Whether no key has changed since it was written: a binary search would miss a changed key."""
        return zlib.crc32(self._tails.tobytes(), zlib.crc32(self._heads.tobytes())) == self._keys_crc

    def used(self) -> None:
        """Set the file's time to now, which `embed teacher gc --unused-days` reads as its last use."""
        with suppress(OSError):  # the file is another user's, or gone: its vectors are still good
            os.utime(self.path)


def write_segment(folder: Path, keys_N2: Keys, records_N: NDArray[Any], dtype: Dtype) -> Path:
    """Write one segment: each key once, in the order of the keys, atomically, under a name derived from the keys.

    The same vectors give the same bytes under the same name, whoever writes them and in whatever order.
    """
    chosen_N = sorted_once(keys_N2)
    heads, tails = (np.ascontiguousarray(keys_N2[chosen_N, half], dtype="<u8").tobytes() for half in (0, 1))
    width = records_N.dtype["vector"].shape[0]
    facts = (MAGIC, VERSION, CODES[dtype], width, len(chosen_N), zlib.crc32(tails, zlib.crc32(heads)))
    header = HEADER.pack(*facts)
    header += zlib.crc32(header).to_bytes(4, "little")
    name = blake2b(heads + tails, digest_size=12).hexdigest() + SUFFIX
    with replacing(folder / name) as temporary, temporary.open("wb") as file:
        file.write(header.ljust(HEADER_BYTES, b"\0") + heads + tails)
        for start in range(0, len(chosen_N), AT_ONCE):
            file.write(records_N[chosen_N[start : start + AT_ONCE]].tobytes())
        file.flush()
        os.fsync(file.fileno())  # the content must be on disk before the name is
    return folder / name


def _header(head: bytes) -> tuple[Dtype, int, int, int]:
    """Returns dtype, width, count and CRC-32 of the keys. Raises DamagedError."""
    if len(head) < HEADER_BYTES or head[:8] != MAGIC:
        raise DamagedError("it does not begin as a file of teacher vectors")
    crc = int.from_bytes(head[HEADER.size : HEADER.size + 4], "little")
    if zlib.crc32(head[: HEADER.size]) != crc:
        raise DamagedError("its header has a wrong checksum")
    _, version, code, width, count, keys_crc = HEADER.unpack(head[: HEADER.size])
    names: dict[int, Dtype] = {1: "fp16", 2: "int8"}
    if version != VERSION or code not in names or not count or not width:
        raise DamagedError(f"it is of version {version}, this embed-distill reads {VERSION}")
    return names[code], width, count, keys_crc
