"""Reads JSON values one by one: one per line (JSONL), or elements of an array, which is never whole in memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from embed_core.datasets.index.offsets import json_cause
from embed_core.errors import DataError
from embed_data.formats.decompress import LONGEST_LINE, lines, opened
from embed_data.formats.records import Record, Records

CHUNK = 1 << 20
_SPACE = " \t\r\n"


def json_lines(path: Path) -> Records:
    """One value per line; blank lines are passed over. Raises DataError where the file cannot be read at all."""
    with opened(path) as stream:
        for number, raw in lines(stream):
            yield _parsed(number, raw)


def json_values(path: Path) -> Records:
    """The elements of a JSON array, or one value per line: whichever the file holds."""
    with opened(path) as stream:
        array = stream.peek(4096).lstrip()[:1] == b"["  # type: ignore[attr-defined] # a BufferedReader
    return json_array(path) if array else json_lines(path)


def json_array(path: Path) -> Records:
    """Elements of a top-level array. Raises DataError (``file:line``) where the array itself is malformed.

    There is no way to find the next element after malformed text, so that is an error whatever ``on_bad_row`` says.
    """
    with opened(path) as stream:
        yield from _Array(path, stream)


def _parsed(number: int, raw: bytes | None) -> Record:
    if raw is None:
        return Record(number, fault=f"longer than {LONGEST_LINE >> 20} MiB: a row is one line of JSON")
    try:
        return Record(number, json.loads(raw.decode("utf-8")))
    except UnicodeDecodeError as error:
        return Record(
            number, fault=f"byte 0x{error.object[error.start]:02x} at position {error.start + 1} is not UTF-8"
        )
    except (ValueError, RecursionError) as error:
        return Record(number, fault=f"malformed JSON: {json_cause(error)}")


class _Array:
    """Elements are decoded from a buffer that holds one of them at a time, and what was read beyond it."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self.path, self.stream = path, stream
        self.decode = codecs.getincrementaldecoder("utf-8")().decode
        self.text, self.at, self.line, self.ended = "", 0, 1, False
        self.decoder = json.JSONDecoder()

    def __iter__(self) -> Iterator[Record]:
        self._skip_space()
        self.at += 1  # the bracket
        first = True
        while True:
            self._skip_space()
            mark = self.text[self.at : self.at + 1]
            if mark == "]":
                self.at += 1
                break
            if not first:
                if mark != ",":
                    raise self._broken("expected ',' or ']' after an element of the array")
                self.at += 1
                self._skip_space()
            first = False
            line = self.line
            yield Record(line, self._element())
        self._skip_space()
        if self.at < len(self.text):
            raise self._broken("something follows the array: a .json file is one array, or one object per line")

    def _element(self) -> Any:
        size = CHUNK
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except (ValueError, RecursionError) as error:
                # Perhaps only cut off by the end of the buffer: more of it decides.
                cut = isinstance(error, json.JSONDecodeError) and not self.ended
                if not cut or len(self.text) - self.at > LONGEST_LINE:
                    raise self._broken(json_cause(error), error) from None
            else:
                if end < len(self.text) or self.ended:  # a number may go on in the next chunk
                    self.line += self.text.count("\n", self.at, end)
                    self.at = end
                    return value
            self._more(size)
            size *= 2

    def _skip_space(self) -> None:
        while True:
            start = self.at
            while self.at < len(self.text) and self.text[self.at] in _SPACE:
                self.at += 1
            self.line += self.text.count("\n", start, self.at)
            if self.at < len(self.text) or self.ended:
                return
            self._more(CHUNK)

    def _more(self, size: int) -> None:
        raw = self.stream.read(size)
        self.ended = not raw
        try:
            new = self.decode(raw, final=self.ended)
        except UnicodeDecodeError as error:
            line = self.line + self.text.count("\n", self.at) + error.object[: error.start].count(b"\n")
            byte = error.object[error.start]
            raise DataError(f"{self.path}:{line}: byte 0x{byte:02x} is not UTF-8: save the file as UTF-8") from None
        self.text, self.at = self.text[self.at :] + new, 0

    def _broken(self, reason: str, error: Exception | None = None) -> DataError:
        line = self.line
        if isinstance(error, json.JSONDecodeError):
            line += self.text.count("\n", self.at, error.pos)
        return DataError(f"{self.path}:{line}: malformed JSON: {reason}")
