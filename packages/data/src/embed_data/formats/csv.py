"""Rows of CSV and TSV files."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import IO

from embed_core.errors import DataError
from embed_data.formats.decompress import LONGEST_LINE, opened
from embed_data.formats.records import Record, Records

DIALECTS = {"csv": "excel", "tsv": "excel-tab"}


def csv_rows(path: Path, dialect: str, *, header: bool) -> Records:
    """One object per row, by column name; a row's line is where it starts. Raises DataError for a wrong header."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
    with opened(path) as stream:
        yield from _rows(path, stream, dialect, header)


def _rows(path: Path, stream: IO[bytes], dialect: str, header: bool) -> Records:
    # Bytes that are no UTF-8 become lone surrogates, so that only their row is wrong and not the rest of the file.
    text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
    reader = csv.reader(text, DIALECTS[dialect], strict=True)
    names: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if header and not names:
                raise DataError(f"{path}:{line}: the header cannot be read: {error}") from None
            yield Record(line, fault=f"malformed {dialect.upper()}: {error}")
            continue
        if not row:
            continue
        if header and not names:
            names = _header(path, line, row)
            continue
        if not names:
            names = [str(number) for number in range(1, len(row) + 1)]
        yield _record(line, names, row)
    text.detach()


def _header(path: Path, line: int, row: list[str]) -> list[str]:
    names = [name.strip() for name in row]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise DataError(f"{path}:{line}: the header names {sorted(twice)[0]!r} twice: rename one of the columns")
    if any(_bad_byte(name) is not None for name in names):
        raise DataError(f"{path}:{line}: the header is not UTF-8: save the file as UTF-8")
    return names


def _record(line: int, names: list[str], row: list[str]) -> Record:
    if len(row) != len(names):
        return Record(line, fault=f"{len(row)} fields, the header has {len(names)}: {', '.join(names)}")
    for name, field in zip(names, row, strict=True):
        byte = _bad_byte(field)
        if byte is not None:
            return Record(line, fault=f"byte 0x{byte:02x} in column `{name}` is not UTF-8")
    return Record(line, dict(zip(names, row, strict=True)))


def _bad_byte(field: str) -> int | None:
    return next((ord(c) - 0xDC00 for c in field if "\udc80" <= c <= "\udcff"), None) if not field.isascii() else None
