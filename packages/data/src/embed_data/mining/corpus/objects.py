"""The records of a file of any format by number: JSON Lines in place, other formats from a JSON Lines copy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import closing, suppress
from datetime import date, time, timedelta
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from embed_core.config.context import cache_root
from embed_core.datasets.index import store
from embed_core.datasets.sources.jsonl import JsonlFile
from embed_core.errors import DataError
from embed_data.formats.decompress import compression

if TYPE_CHECKING:
    from embed_core.protocols import Announce
    from embed_data.formats.detect import Source

VERSION = 1
"""Version of the copies: raise it with every change of what the same file is copied into."""
COPY = "records.jsonl"


class Objects(Protocol):
    """Records, read on access."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Any, str]:
        """The record, and its place for messages."""
        ...

    def digest(self) -> str:
        """Hex digest of the content."""
        ...


class InPlace:
    """The JSON objects of a ``.jsonl`` or ``.json`` file."""

    def __init__(self, path: Path) -> None:
        self._file = JsonlFile(path)

    def __len__(self) -> int:
        return len(self._file)

    def read(self, index: int) -> tuple[dict[str, Any], str]:
        """The record and its place. Raises DataError (``file:line``)."""
        return self._file[index], self._file.place(index)

    def digest(self) -> str:
        """Digest of the file's bytes."""
        return self._file.digest()


class Copied:
    """The records of ``source`` from a copy in the cache, made if it is missing. It takes disk space and no memory.

    Dates and decimals become strings, and values that JSON lacks (bytes, NaN) null. Raises DataError for a record that
    cannot be read, for a source without any, and where the cache cannot be written.
    """

    def __init__(self, source: Source, header: bool, announce: Announce) -> None:
        self._source = source
        key = json.dumps([VERSION, source.format, source.place, source.stamp, header])
        digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
        folder = cache_root() / "records" / digest
        if store.facts(folder) is None:
            announce(f"{source.place} ({source.format}): copying its rows into the cache, once")
            store.make(folder, f"the rows of {source.place}", self._write)
        self._file = JsonlFile(folder / COPY)

    def __len__(self) -> int:
        return len(self._file)

    def read(self, index: int) -> tuple[Any, str]:
        """The record and its place in the source."""
        copied = self._file[index]
        return copied["value"], self._place(copied["line"])

    def digest(self) -> str:
        """Digest of the copy's bytes."""
        return self._file.digest()

    def _write(self, folder: Path) -> Mapping[str, Any]:
        assert self._source.records is not None, "a BEIR folder has files of its own"
        records: Any = self._source.records()
        written = 0
        with closing(records), (folder / COPY).open("wb") as file:
            for record in records:
                place = self._place(record.line)
                if record.fault is not None:
                    raise DataError(f"{place}: {record.fault}")
                text = json.dumps({"line": record.line, "value": as_json(record.value)}, ensure_ascii=False)
                file.write(_encoded(text, place) + b"\n")
                written += 1
        if not written:
            raise DataError(f"{self._source.place}: it has no rows")
        return {"rows": written}

    def _place(self, line: int) -> str:
        return f"{self._source.place}{self._source.separator}{line}"


def open_objects(source: Source, header: bool, announce: Announce) -> Objects:
    """The records of ``source``, a file or a Hugging Face dataset. Raises DataError."""
    path = Path(source.place)
    lines = source.format == "jsonl" and path.suffix != ".json"
    readable = lines or (source.format == "json" and path.suffix == ".json")
    if readable and compression(path) is None and not _holds_lists(source):
        return InPlace(path)
    return Copied(source, header, announce)


def _holds_lists(source: Source) -> bool:
    """Whether the first record is a list ``[anchor, positive, …]``: only objects are read at random."""
    assert source.records is not None
    records: Any = source.records()
    with closing(records), suppress(DataError):  # the reader of the objects reports their errors
        first = next(records, None)
        return first is not None and isinstance(first.value, list)
    return False


def as_json(value: Any) -> Any:
    """A table's value as JSON can express it."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): as_json(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(one) for one in value]
    return str(value) if isinstance(value, (date, time, timedelta, Decimal, UUID)) else None


def _encoded(text: str, place: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise DataError(f"{place}: {half} is half of a surrogate pair and no character: remove it") from None
