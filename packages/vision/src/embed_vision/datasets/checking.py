"""Reads every row and opens every picture once: finds the usable rows and the identities that rows share.

The result is cached by the rows' content and by size and time of the picture files, so that the next run over the same
data opens no picture.
"""

from __future__ import annotations

import json
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from embed_core.datasets.split import text_id
from embed_core.errors import DataError
from embed_vision.datasets.images import check, default_workers
from embed_vision.datasets.items import Mixed, Picture, VisionItem
from embed_vision.datasets.rows import RowOptions, VisionRow, parse_row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embed_vision.datasets.tables import Table

VERSION = 1
AT_ONCE = 256
"""Number of rows whose pictures are in memory together."""
LISTED = 3
"""Number of bad rows that a message names."""


@dataclass(frozen=True)
class CheckOptions:
    """How rows are checked, and what happens to bad ones."""

    on_bad_row: Literal["error", "skip"] = "error"
    depth: Literal["decode", "open"] = "decode"
    max_pixels: int = 89_478_485


@dataclass(frozen=True)
class Checked:
    """The usable rows of a table."""

    rows_N: NDArray[np.int64]
    """Their numbers in the table, ascending."""
    ids_K: NDArray[np.uint64]
    """Identities of the rows' queries and positives by content, row after row: no two rows of a batch may share one."""
    offsets_N1: NDArray[np.int64]
    digest: str
    """Digest of the content of all usable rows and their pictures, independent of where the files are."""
    files: tuple[str, ...] = ()
    """The picture files that were opened."""
    bad: tuple[str, ...] = ()
    """Reasons why rows were left out, one line each."""

    def identities(self, index: int) -> NDArray[np.uint64]:
        """The identities of usable row ``index``."""
        return self.ids_K[self.offsets_N1[index] : self.offsets_N1[index + 1]]


def checked(table: Table, options: RowOptions, how: CheckOptions, cache: Path) -> Checked:
    """Check all rows of ``table``. Raises DataError for the first bad one unless they are skipped, or if all are."""
    key = _key(table, options, how)
    folder = cache / "vision" / "checked"
    found = _kept(folder / f"{key}.npz")
    if found is None:
        found = _check(table, options, how)
        _keep(folder, key, found)
    if found.bad and how.on_bad_row == "error":
        raise DataError(found.bad[0])
    if not len(found.rows_N):
        raise DataError(f"{table.name}: none of {len(table)} rows can be used, the first because of {found.bad[0]}")
    return found


def told(found: Checked, name: str) -> str | None:
    """The message about the rows that were left out, if any."""
    if not found.bad:
        return None
    first = "; ".join(found.bad[:LISTED]) + ("; …" if len(found.bad) > LISTED else "")
    return f"data: {name}: {len(found.bad)} bad rows are left out: {first}"


def item_id(item: VisionItem, contents: dict[bytes, bytes] | None = None) -> bytes:
    """8 bytes of the content; ``contents`` maps the identities of pictures that have been read to their digests."""
    if isinstance(item, str):
        return text_id(item)
    if isinstance(item, Mixed):
        both = text_id(item.text) + item_id(item.picture, contents)
        return blake2b(both, digest_size=8, person=b"mixed").digest()
    known = (contents or {}).get(item.identity)
    return known if known is not None else blake2b(item.identity, digest_size=8, person=b"picture").digest()


def pictures(items: Iterable[VisionItem]) -> Iterator[Picture]:
    """Yields the pictures among ``items`` and inside them."""
    for item in items:
        if isinstance(item, Picture):
            yield item
        elif isinstance(item, Mixed):
            yield item.picture


def items_of(row: VisionRow) -> tuple[VisionItem, ...]:
    """The row's query, positives and negatives."""
    return (row.query, *row.pos, *row.neg)


def _check(table: Table, options: RowOptions, how: CheckOptions) -> Checked:
    whole, bad = blake2b(digest_size=16), list[str]()
    rows, ids, counts, files = list[int](), list[bytes](), list[int](), dict[str, None]()
    numbers = iter(range(len(table)))
    with ThreadPoolExecutor(default_workers()) as pool:
        while some := list(islice(numbers, AT_ONCE)):
            parsed = [_parsed(table, number, options) for number in some]
            good = [row for row in parsed if isinstance(row, VisionRow)]
            wanted = {p.identity: p for row in good for p in pictures(items_of(row))}
            verdicts = dict(zip(wanted, pool.map(lambda p: _verdict(p, how), wanted.values()), strict=True))
            files |= dict.fromkeys(str(p.path) for p in wanted.values() if p.data is None)
            contents = {key: value for key, value in verdicts.items() if isinstance(value, bytes)}
            for number, row in zip(some, parsed, strict=True):
                fault = row if isinstance(row, str) else _first_fault(row, verdicts)
                if isinstance(row, str) or fault is not None:
                    if how.on_bad_row == "error":
                        raise DataError(str(fault))
                    bad.append(str(fault))
                    continue
                mine = dict.fromkeys(item_id(item, contents) for item in (row.query, *row.pos))
                whole.update(repr((len(row.pos), len(row.neg), row.score, row.prompt)).encode())
                for item in items_of(row):
                    whole.update(item_id(item, contents))
                rows.append(number)
                ids.extend(mine)
                counts.append(len(mine))
    offsets = np.cumsum([0, *counts], dtype=np.int64)
    flat = np.frombuffer(b"".join(ids), dtype=np.uint64)
    return Checked(np.array(rows, dtype=np.int64), flat, offsets, whole.hexdigest(), tuple(files), tuple(bad))


def _parsed(table: Table, number: int, options: RowOptions) -> VisionRow | str:
    try:
        return parse_row(table.row(number), table.place(number), options)
    except DataError as error:
        return str(error)


def _first_fault(row: VisionRow, verdicts: dict[bytes, bytes | str]) -> str | None:
    for picture in pictures(items_of(row)):
        verdict = verdicts[picture.identity]
        if isinstance(verdict, str):
            # The picture may have been checked for another row, whose place is in the message.
            problem = verdict.split("picture ", 1)[-1]
            return f"{row.place}: picture {problem}"
    return None


def _verdict(picture: Picture, how: CheckOptions) -> bytes | str:
    """8 bytes of the picture's content, or the reason why it cannot be used."""
    try:
        if how.depth == "decode" or not _opens(picture, how.max_pixels):
            check(picture, how.max_pixels)
        data = picture.data if picture.data is not None else Path(str(picture.path)).read_bytes()
    except DataError as error:
        return str(error)
    except OSError as error:
        return f"{picture.place}: picture {picture.path!r} cannot be read: {error.strerror or error}"
    return blake2b(data, digest_size=8, person=b"picture").digest()


def _opens(picture: Picture, max_pixels: int) -> bool:
    """Whether the header is that of a picture; other damage shows only when the picture is trained on."""
    source: Any = picture.path if picture.data is None else BytesIO(picture.data)
    with suppress(Exception), Image.open(source) as image:
        return image.width * image.height <= max_pixels
    return False


def _key(table: Table, options: RowOptions, how: CheckOptions) -> str:
    """Digest of everything the result depends on besides the picture files."""
    facts: dict[str, Any] = {
        "version": VERSION,
        "table": [table.name, table.digest()],
        "mode": options.mode,
        "columns": sorted((options.columns or {}).items()),
        "root": str(options.image_root.resolve()),
        "how": [how.on_bad_row, how.depth, how.max_pixels],
    }
    return blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


def _stamps(paths: Iterable[str]) -> str:
    """Digest of size and time of files; it changes when a file was changed."""
    digest = blake2b(digest_size=16)
    for path in paths:
        digest.update(_stamp(path))
    return digest.hexdigest()


def _stamp(path: str) -> bytes:
    try:
        facts = Path(path).stat()
    except (OSError, ValueError):
        return f"{path}|missing".encode("utf-8", "surrogatepass")
    return f"{path}|{facts.st_size}|{facts.st_mtime_ns}".encode("utf-8", "surrogatepass")


def _kept(path: Path) -> Checked | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            facts = json.loads(str(file["facts"]))
            if _stamps(facts["files"]) != facts["stamps"]:
                return None
            found = (file["rows"], file["ids"], file["offsets"])
            return Checked(*found, facts["digest"], tuple(facts["files"]), tuple(facts["bad"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _keep(folder: Path, key: str, found: Checked) -> None:
    """Save under a temporary name and rename when complete. A cache that cannot be written only costs time."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        made = folder / f".{uuid.uuid4().hex}.npz"
        stamps = {"files": found.files, "stamps": _stamps(found.files)}
        facts = json.dumps({"digest": found.digest, "bad": found.bad, **stamps})
        np.savez(made, rows=found.rows_N, ids=found.ids_K, offsets=found.offsets_N1, facts=np.array(facts))
        made.rename(folder / f"{key}.npz")
