"""Long lists of integers that are written once and read by position: in memory, or in a file that stays on disk."""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from embed_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

T = TypeVar("T")
BLOCK = 1 << 17
"""Values read or written at a time: 1 MiB of 64-bit ones."""


class Column:
    """Integers of one type. Those of a file are read with ``pread`` where they are asked for.

    A memory map would be shorter, but its pages count as the process's own, and a shuffled epoch touches all of them.
    """

    def __init__(self, values: NDArray[np.integer] | Path, dtype: str) -> None:
        self.dtype = np.dtype(dtype)
        self._values = None if not isinstance(values, np.ndarray) else values.astype(self.dtype, copy=False)
        self._file = None if isinstance(values, np.ndarray) else values.open("rb", buffering=0)
        size = len(values) if isinstance(values, np.ndarray) else values.stat().st_size // self.dtype.itemsize
        self._length = size

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self._length:
            raise IndexError(index)
        return int(self.slice(index, index + 1)[0])

    def slice(self, start: int, stop: int) -> NDArray[np.integer]:
        """Values ``start`` to ``stop``, as a new or a borrowed array: not to be written to."""
        if self._file is None:
            assert self._values is not None
            return self._values[start:stop]
        width = self.dtype.itemsize
        wanted = max(0, min(stop, self._length) - start) * width
        return np.frombuffer(read_at(self._file.fileno(), start * width, wanted), dtype=self.dtype)

    def blocks(self, size: int = BLOCK) -> Iterator[NDArray[np.integer]]:
        """All values in order, ``size`` at a time."""
        return (self.slice(start, start + size) for start in range(0, self._length, size))


class ColumnWriter:
    """Takes the values of a column in order; ``path`` None keeps them in memory.

    Raises DataError where the file cannot be written.
    """

    def __init__(self, dtype: str, path: Path | None) -> None:
        self.dtype, self.path = np.dtype(dtype), path
        self.checksum = 0
        self._parts: list[NDArray[np.integer]] = []
        self._file = None if path is None else _guarded(path, lambda: path.open("wb", buffering=0))

    def extend(self, values: NDArray[np.integer] | Iterable[int]) -> None:
        """Append; a call costs a system call, so give many at once."""
        array = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=self.dtype)
        if self._file is None or self.path is None:
            self._parts.append(array)
            return
        data, file = np.ascontiguousarray(array).tobytes(), self._file
        self.checksum = zlib.crc32(data, self.checksum)
        _guarded(self.path, lambda: _write_all(file.fileno(), data))

    def finish(self) -> Column:
        """Close the file, and return the column that was written."""
        if self._file is None or self.path is None:
            return Column(np.concatenate([np.empty(0, self.dtype), *self._parts]), self.dtype.str)
        self._file.close()
        return Column(self.path, self.dtype.str)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def read_at(descriptor: int, start: int, size: int) -> bytes:
    """``size`` bytes from ``start``; fewer at the end of the file. Does not move in the file: safe in threads."""
    data = os.pread(descriptor, size, start)
    if len(data) == size or not data:
        return data
    parts = [data]  # the kernel reads 2 GiB at most at a time
    done = len(data)
    while done < size and (data := os.pread(descriptor, size - done, start + done)):
        parts.append(data)
        done += len(data)
    return b"".join(parts)


def cannot_write(path: Path, error: OSError, what: str = "the index of the data") -> DataError:
    """The error for a user whose cache cannot be written."""
    return DataError(
        f"{path}: {what} cannot be cached: {error.strerror or error}: set EMBED_CACHE to a writable folder with room"
    )


def _guarded(path: Path, action: Callable[[], T]) -> T:
    try:
        return action()
    except OSError as error:
        raise cannot_write(path, error) from None


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
