"""Reads a file's bytes, decompressed: gzip and zstd are recognised by their first bytes, whatever the suffix."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from embed_core.errors import DataError

BOM = b"\xef\xbb\xbf"
LONGEST_LINE = 64 * 2**20
"""Bytes of a line beyond which it is no row: a file without line breaks must not fill the memory."""
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


def compression(path: Path) -> str | None:
    """``gzip``, ``zstd`` or ``None``. Raises DataError for a file that cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed, after a byte order mark if it has one.

    Raises DataError, also inside the body, where the file cannot be read or its compression is damaged.
    """
    kind = compression(path)
    try:
        with _raw(path, kind) as stream:
            if stream.peek(len(BOM))[: len(BOM)] == BOM:
                stream.read(len(BOM))
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the {kind} data is damaged or cut off: {error}: copy the file again") from None
    except OSError as error:
        if kind is not None:
            reason = " ".join(str(error).split())
            raise DataError(f"{path}: the {kind} data is damaged or cut off: {reason}: copy the file again") from None
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Line numbers from 1, and the lines that are not blank; ``None`` for one longer than :data:`LONGEST_LINE`."""
    number = 0
    while raw := stream.readline(LONGEST_LINE):
        number += 1
        if len(raw) == LONGEST_LINE and not raw.endswith(b"\n"):
            while (rest := stream.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                pass
            yield number, None
        elif not raw.isspace():
            yield number, raw


@contextmanager
def _raw(path: Path, kind: str | None) -> Iterator[io.BufferedReader]:
    if kind == "zstd":
        import pyarrow as pa

        with pa.input_stream(str(path), compression="zstd") as source:
            # A cut-off stream ends silently in some readers; Arrow's raises.
            yield io.BufferedReader(cast("Any", source), 1 << 20)
    elif kind == "gzip":
        with gzip.open(path, "rb") as unpacked:
            yield io.BufferedReader(cast("Any", unpacked), 1 << 20)
    else:
        with path.open("rb", buffering=1 << 20) as plain:
            yield cast("Any", plain)
