"""Indexes where the JSON objects of a file begin, in one pass; the index of a large file is kept for the next run."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from embed_core.datasets.index import store
from embed_core.datasets.index.columns import Column, read_at
from embed_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

BOM = b"\xef\xbb\xbf"
KEPT_FROM = 16 << 20
"""Bytes from which on an index is kept: smaller files are indexed anew in less time than it takes to notice."""
BLOCK = 4 << 20
"""Bytes read at a time."""
EDGE = 1 << 16
"""Bytes of each end of a file that are hashed into the key of its index."""
VERSION = 1
SCHEMA = {"starts": "int64", "ends": "int64", "shift_from": "int64", "shift": "int64"}


class LineIndex:
    """Byte range and line number of every object, and the digest of the file they were found in.

    ``starts`` and ``ends`` in bytes; ``ends`` is empty for JSON Lines, where an object ends with its line. The line of
    object i is i + 1 + the ``shift`` of the last ``shift_from`` up to i: empty where no line is blank.
    """

    def __init__(self, table: store.Table) -> None:
        self.starts: Column = table.columns["starts"]
        self.ends: Column = table.columns["ends"]
        self._shift_from, self._shift = table.columns["shift_from"], table.columns["shift"]
        self.digest: str = table.facts["digest"]

    def line(self, index: int) -> int:
        """Line number of an object, from 1."""
        at = bisect_right(self._shift_from, index)
        return index + 1 + (self._shift[at - 1] if at else 0)


def open_index(path: Path, descriptor: int, cache: Path) -> LineIndex:
    """The index of an open file, found in ``cache`` or made now. Raises DataError for a malformed array."""
    size = os.fstat(descriptor).st_size
    root = cache if size >= KEPT_FROM else None
    key = _key(descriptor) if root is not None else None
    table = store.find(root, key, SCHEMA) if root is not None and key is not None else None
    if table is None:
        table = store.build(SCHEMA, lambda writers: _fill(path, descriptor, size, writers), root, key)
    return LineIndex(table)


def _key(descriptor: int) -> str:
    """Finds an index again without reading the file: any write changes a time, any replacement the inode."""
    facts = os.fstat(descriptor)
    stamp = (VERSION, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino, facts.st_dev)
    hasher = blake2b(repr(stamp).encode(), digest_size=16)
    hasher.update(read_at(descriptor, 0, EDGE))
    hasher.update(read_at(descriptor, max(0, facts.st_size - EDGE), EDGE))
    return f"lines-{hasher.hexdigest()}"


def _fill(path: Path, descriptor: int, size: int, writers: store.Writers) -> dict[str, Any]:
    head = read_at(descriptor, 0, 4096 + len(BOM))
    start = len(BOM) if head.startswith(BOM) else 0
    hasher = blake2b(str(size).encode(), digest_size=16)
    hasher.update(head[:start])
    if path.suffix == ".json" and head[start:].lstrip()[:1] == b"[":
        _fill_array(path, descriptor, size, writers)
        for at in range(start, size, BLOCK):
            hasher.update(read_at(descriptor, at, min(BLOCK, size - at)))
    else:
        _fill_lines(descriptor, start, size, writers, hasher)
    return {"digest": hasher.hexdigest()}


class _Shifts:
    """Notes where line numbers and object numbers part."""

    def __init__(self, writers: store.Writers) -> None:
        self._from, self._shift = writers["shift_from"], writers["shift"]
        self._count, self._now = 0, 0

    def add(self, lines: NDArray[np.int64]) -> None:
        """Add the line numbers of the next objects."""
        shifts = lines - np.arange(self._count + 1, self._count + 1 + len(lines))
        changed = np.flatnonzero(np.diff(shifts, prepend=self._now))
        if len(changed):
            self._from.extend(changed + self._count)
            self._shift.extend(shifts[changed])
            self._now = int(shifts[-1])
        self._count += len(lines)


def _fill_lines(descriptor: int, start: int, size: int, writers: store.Writers, hasher: Any) -> None:
    shifts, first_line = _Shifts(writers), 1
    for offset, text in _whole_lines(descriptor, start, size, hasher):
        codes = np.frombuffer(text, dtype=np.uint8)
        breaks = np.flatnonzero(codes == ord("\n"))
        begins = np.concatenate([[0], breaks + 1])
        if begins[-1] == len(text):  # the text ends with a line break
            begins = begins[:-1]
        lines = np.arange(first_line, first_line + len(begins))
        first_line += len(begins)
        # Few lines begin with white space; only these have to be looked at.
        odd = np.flatnonzero(np.isin(codes[begins], np.frombuffer(b" \t\n\r\x0b\x0c", dtype=np.uint8)))
        ends = np.append(begins[1:], len(text))
        blank = [i for i in odd.tolist() if text[begins[i] : ends[i]].isspace()]
        if blank:
            begins, lines = np.delete(begins, blank), np.delete(lines, blank)
        if len(begins):
            writers["starts"].extend(begins + offset)
            shifts.add(lines)


def _whole_lines(descriptor: int, start: int, size: int, hasher: Any) -> Iterator[tuple[int, bytes]]:
    """The file from ``start`` in pieces of whole lines, each with its offset; every byte goes through ``hasher``."""
    at, rest, block = start, b"", BLOCK
    while at < size:
        data = read_at(descriptor, at, min(block, size - at))
        if not data:  # the file was cut short meanwhile: what is missing shows when it is read
            break
        at += len(data)
        hasher.update(data)
        text = rest + data
        cut = len(text) if at >= size else text.rfind(b"\n") + 1
        # A line longer than all that was read: read as much again, so that joining stays linear.
        block = BLOCK if cut else len(text)
        if cut:
            yield at - len(text), text[:cut]
        rest = text[cut:]


def _fill_array(path: Path, descriptor: int, size: int, writers: store.Writers) -> None:
    """Offsets of the elements of a top-level array; the whole text is in memory only meanwhile."""
    raw = read_at(descriptor, 0, size)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        byte = error.object[error.start]
        raise DataError(f"{path}:{line}: byte 0x{byte:02x} is not UTF-8: save the file as UTF-8") from None
    decoder, starts, ends, lines = json.JSONDecoder(), [], [], []
    byte, line, done = size - len(text.encode("utf-8")), 1, 0  # a BOM is bytes, but no text
    at = _skip_space(text, text.index("[") + 1)
    while at < len(text) and text[at] != "]":
        byte += len(text[done:at].encode("utf-8"))
        line += text.count("\n", done, at)
        try:
            _, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{_error_line(error, line)}: malformed JSON: {json_cause(error)}") from None
        width = len(text[at:end].encode("utf-8"))
        starts.append(byte)
        ends.append(byte + width)
        lines.append(line)
        byte, line, done = byte + width, line + text.count("\n", at, end), end
        at = _skip_space(text, end)
        if at < len(text) and text[at] == ",":
            at = _skip_space(text, at + 1)
        elif at >= len(text) or text[at] != "]":
            line += text.count("\n", done, at)
            raise DataError(f"{path}:{line}: malformed JSON: expected ',' or ']' after an element of the array")
    writers["starts"].extend(starts)
    writers["ends"].extend(ends)
    _Shifts(writers).add(np.asarray(lines, dtype=np.int64))


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def json_cause(error: Exception) -> str:
    """What the JSON parser says, without the position in the file."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _error_line(error: Exception, otherwise: int) -> int:
    return error.lineno if isinstance(error, json.JSONDecodeError) else otherwise
