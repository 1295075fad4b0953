"""Random access to the JSON objects of a file that stays on disk."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from embed_core.config.context import cache_root
from embed_core.datasets.columns import read_at
from embed_core.datasets.line_index import json_cause, open_index
from embed_core.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator
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

    def __init__(self, path: Path, cache: Path | None = None) -> None:
        self.path = path
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
        """All objects, with few reads."""
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
        if not isinstance(value, dict):
            raise DataError(f"{self.place(index)}: expected a JSON object like {{...}}, found {json_type(value)}")
        if "\\ud" in text or "\\uD" in text:
            _check_surrogates(value, self.place(index))
        return value


def checked_path(path: Path) -> Path:
    """``path``, which exists. Raises DataError that names the closest of its siblings."""
    if path.exists():
        return path
    parent = path.parent
    if not parent.is_dir():
        raise DataError(f"{path}: no such file or folder: {parent} does not exist either")
    siblings = sorted(p.name for p in parent.iterdir() if p.is_dir() or p.suffix in SUFFIXES)
    hint = did_you_mean(path.name, siblings)
    if hint.startswith("one of") and len(siblings) > 10:
        hint = f"{parent} has {', '.join(siblings[:10])}, … ({len(siblings)} in all)"
    raise DataError(f"{path}: no such file or folder: {hint}")


def json_type(value: Any) -> str:
    """How a value is called in JSON, for messages: ``the string 'abc'``, ``a list``, ``null``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        digits = str(value)
        return f"the number {digits if len(digits) <= 40 else digits[:40] + '…'}"
    if isinstance(value, str):
        return f"the string {value[:40]!r}" if len(value) <= 40 else f"the string {value[:40] + '…'!r}"
    return "a list" if isinstance(value, list) else "an object"


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
