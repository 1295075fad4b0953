"""JSON Lines and JSON arrays that stay on disk: access to their objects by number, and rows made of them."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from embed_core.config.context import cache_root
from embed_core.datasets.index.columns import read_at
from embed_core.datasets.index.offsets import json_cause, open_index
from embed_core.datasets.row import ROW_VERSION, Row, parse_row
from embed_core.datasets.sources.base import RowSource
from embed_core.errors import DataError, did_you_mean, json_type

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SUFFIXES = (".jsonl", ".json")
READ = 1 << 20
"""Bytes read at a time where all objects are asked for."""


class JsonlFile:
    """The JSON objects of a ``.jsonl`` file (one per line, blank lines skipped) or of a ``.json`` array.

    Nothing of them is held in memory: the text is read and parsed on access, and where each object begins is looked up
    in an index, which for files from 16 MiB is on disk and kept in ``cache`` (None is :func:`cache_root`) for the next
    run. Raises DataError for a missing, unreadable, or empty file, and where the cache cannot be written.
    """

    def __init__(self, path: Path, cache: Path | None = None, *, only_objects: bool = True) -> None:
        """``only_objects`` False lets any JSON value be an element of the file."""
        self.path, self._only_objects = path, only_objects
        self._file = _opened(path)
        self._size = path.stat().st_size
        self._index = open_index(path, self._file.fileno(), cache if cache is not None else cache_root())
        if not len(self):
            raise DataError(f"{path}: the file is empty: it must hold one JSON object per line")

    def __len__(self) -> int:
        return len(self._index.starts)

    def place(self, index: int) -> str:
        """``file:line`` of an object, for messages."""
        return f"{self.path}:{self._index.line(index)}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The object number ``index``. Raises DataError for bad UTF-8, bad JSON, and what is no JSON object."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        starts, ends = self._index.starts, self._index.ends
        if len(ends):
            start, end = starts[index], ends[index]
        else:
            start, *after = (int(at) for at in starts.slice(index, index + 2))
            end = after[0] if after else self._size
        return self._parsed(read_at(self._file.fileno(), start, end - start), index)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All objects in order, in few large reads."""
        first = 0
        while first < len(self):
            bounds = self._bounds(first)
            begin = bounds[0][0]
            data = read_at(self._file.fileno(), begin, bounds[-1][1] - begin)
            for index, (start, end) in enumerate(bounds, first):
                yield self._parsed(data[start - begin : end - begin], index)
            first += len(bounds)

    def digest(self) -> str:
        """Hex blake2b of the file's size and bytes."""
        return self._index.digest

    def _bounds(self, first: int) -> list[tuple[int, int]]:
        """Byte ranges of objects from ``first`` on, about :data:`READ` bytes of them, at least one."""
        starts = self._index.starts.slice(first, first + 1025)
        if len(self._index.ends):
            starts, ends = starts[:1024], self._index.ends.slice(first, first + 1024)
        else:
            ends = starts[1:] if len(starts) == 1025 else np.append(starts[1:], self._size)
            starts = starts[:1024]
        count = max(1, int(np.searchsorted(ends, starts[0] + READ)))
        return list(zip(starts[:count].tolist(), ends[:count].tolist(), strict=True))

    def _parsed(self, raw: bytes, index: int) -> dict[str, Any]:
        if not len(self._index.ends):
            raw = raw[: raw.find(b"\n") + 1] or raw  # up to the next object there may be blank lines
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise DataError(
                f"{self.place(index)}: byte 0x{byte:02x} at position {error.start + 1} is not UTF-8: save the file as "
                "UTF-8"
            ) from None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.place(index)}: malformed JSON: {json_cause(error)}") from None
        if self._only_objects and not isinstance(value, dict):
            raise DataError(f"{self.place(index)}: expected a JSON object like {{...}}, found {json_type(value)}")
        if "\\ud" in text or "\\uD" in text:
            _check_surrogates(value, self.place(index))
        parsed: dict[str, Any] = value
        return parsed


class JsonlRows(RowSource):
    """FlagEmbedding rows of one file; the source is named by the file's stem. Subclasses read rows of other shapes."""

    format = "FlagEmbedding JSONL"

    def __init__(self, path: Path, cache: Path | None = None, *, only_objects: bool = True) -> None:
        self.name = path.stem
        self._file = JsonlFile(path, cache, only_objects=only_objects)

    def __len__(self) -> int:
        return len(self._file)

    def parse(self, value: Any, place: str) -> Row:
        """The row of a JSON value. Raises DataError, beginning with ``place`` (``file:line``)."""
        return parse_row(value, place)

    def row(self, index: int) -> Row:
        """Read and validate row ``index``. Raises DataError with ``file:line``."""
        return self.parse(self._file[index], self._file.place(index))

    def rows(self) -> Iterator[Row]:
        """All rows in order, in few large reads. Raises DataError like :meth:`row`."""
        return (self.parse(value, self._file.place(index)) for index, value in enumerate(self._file))

    def digest(self) -> str:
        """Hex digest of the file's bytes."""
        return self._file.digest()

    def table_key(self) -> str | None:
        """A digest of the content, and how it is read."""
        return f"flagembedding|{ROW_VERSION}|{self.digest()}"


def checked_path(path: Path, is_data: Callable[[Path], bool] = lambda path: path.suffix in SUFFIXES) -> Path:
    """``path``, which exists. Raises DataError that names the closest folder or data file beside it."""
    if path.exists():
        return path
    parent = path.parent
    if not parent.is_dir():
        raise DataError(f"{path}: no such file or folder: {parent} does not exist either")
    siblings = sorted(p.name for p in parent.iterdir() if p.is_dir() or is_data(p))
    hint = did_you_mean(path.name, siblings)
    if hint.startswith("one of") and len(siblings) > 10:
        hint = f"{parent} has {', '.join(siblings[:10])}, … ({len(siblings)} in all)"
    raise DataError(f"{path}: no such file or folder: {hint}")


def _opened(path: Path) -> io.FileIO:
    checked_path(path)
    try:
        file = io.FileIO(path)
        if path.stat().st_size == 0:
            file.close()
            raise DataError(f"{path}: the file is empty: it must hold one JSON object per line")
        return file
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _check_surrogates(value: Any, place: str) -> None:
    """JSON may escape half of a surrogate pair; no tokenizer takes that."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise DataError(f"{place}: {half} is half of a surrogate pair and no character: remove it") from None
