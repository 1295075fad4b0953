"""Random access to the JSON objects of a file that stays on disk."""

from __future__ import annotations

import json
import mmap
from array import array
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from embed_core.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BOM = b"\xef\xbb\xbf"
SUFFIXES = (".jsonl", ".json")


class JsonlFile:
    """The JSON objects of a ``.jsonl`` file (one per line, blank lines skipped) or of a ``.json`` array.

    Only byte offsets are held in memory (24 bytes an object); the text is mapped and parsed on access, so that a file
    larger than memory can be trained on. Raises DataError for a missing, unreadable, or empty file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = _mapped(path)
        self._starts, self._ends, self._lines = array("q"), array("q"), array("q")
        start = len(BOM) if self._map[: len(BOM)] == BOM else 0
        if path.suffix == ".json" and self._map[start : start + 4096].lstrip()[:1] == b"[":
            self._index_array()
        else:
            self._index_lines(start)
        if not self._starts:
            raise DataError(f"{path}: the file is empty: it must hold one JSON object per line")

    def __len__(self) -> int:
        return len(self._starts)

    def place(self, index: int) -> str:
        """``file:line`` of an object, for messages."""
        return f"{self.path}:{self._lines[index]}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The object number ``index``. Raises DataError for bad UTF-8, bad JSON, and what is no JSON object."""
        place = self.place(index)
        try:
            text = self._map[self._starts[index] : self._ends[index]].decode("utf-8")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise DataError(
                f"{place}: byte 0x{byte:02x} at position {error.start + 1} is not UTF-8: save the file as UTF-8"
            ) from None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: malformed JSON: {_json_cause(error)}") from None
        if not isinstance(value, dict):
            raise DataError(f"{place}: expected a JSON object like {{...}}, found {json_type(value)}")
        if "\\ud" in text.lower():
            _check_surrogates(value, place)
        return value

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def digest(self) -> str:
        """Hex blake2b of the file's size and bytes."""
        hasher = blake2b(str(len(self._map)).encode(), digest_size=16)
        for start in range(0, len(self._map), 1 << 24):
            hasher.update(self._map[start : start + (1 << 24)])
        return hasher.hexdigest()

    def _add(self, start: int, end: int, line: int) -> None:
        self._starts.append(start)
        self._ends.append(end)
        self._lines.append(line)

    def _index_lines(self, start: int) -> None:
        self._map.seek(start)
        line = 0
        while raw := self._map.readline():
            line += 1
            if not raw.isspace():
                self._add(start, start + len(raw), line)
            start += len(raw)

    def _index_array(self) -> None:
        """Offsets of the elements of a top-level array; the whole text is in memory only meanwhile."""
        try:
            text = self._map[:].decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            byte = error.object[error.start]
            raise DataError(f"{self.path}:{line}: byte 0x{byte:02x} is not UTF-8: save the file as UTF-8") from None
        decoder = json.JSONDecoder()
        byte, line, done = len(self._map) - len(text.encode("utf-8")), 1, 0  # a BOM is bytes, but no text
        at = _skip_space(text, text.index("[") + 1)
        while at < len(text) and text[at] != "]":
            byte += len(text[done:at].encode("utf-8"))
            line += text.count("\n", done, at)
            try:
                _, end = decoder.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{self.path}:{_error_line(error, line)}: malformed JSON: {_json_cause(error)}"
                ) from None
            size = len(text[at:end].encode("utf-8"))
            self._add(byte, byte + size, line)
            byte, line, done = byte + size, line + text.count("\n", at, end), end
            at = _skip_space(text, end)
            if at < len(text) and text[at] == ",":
                at = _skip_space(text, at + 1)
            elif at >= len(text) or text[at] != "]":
                line += text.count("\n", done, at)
                raise DataError(
                    f"{self.path}:{line}: malformed JSON: expected ',' or ']' after an element of the array"
                )


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
        return f"the number {value}"
    if isinstance(value, str):
        return f"the string {value[:40]!r}" if len(value) <= 40 else f"the string {value[:40] + '…'!r}"
    return "a list" if isinstance(value, list) else "an object"


def _mapped(path: Path) -> mmap.mmap:
    checked_path(path)
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise DataError(f"{path}: the file is empty: it must hold one JSON object per line")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _check_surrogates(value: Any, place: str) -> None:
    """JSON may escape half of a surrogate pair; no tokenizer takes that."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise DataError(f"{place}: {half} is half of a surrogate pair and no character: remove it") from None


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _json_cause(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _error_line(error: Exception, otherwise: int) -> int:
    return error.lineno if isinstance(error, json.JSONDecodeError) else otherwise
