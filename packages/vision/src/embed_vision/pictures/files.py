"""The embedded pictures as Parquet files: drawn once per font and sizes, then read like any other data."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from embed_core.errors import DataError
from embed_vision.datasets.checking import CheckOptions
from embed_vision.datasets.dataset import DrawOptions, ImageTextDataset, retrieval_set
from embed_vision.datasets.rows import Mode, RowOptions, parse_row
from embed_vision.datasets.tables import open_table
from embed_vision.pictures.fonts import best_font
from embed_vision.pictures.plan import SEED, Scene, Sizes, plan
from embed_vision.pictures.render import SHAPES, ShapePen, SymbolPen, png

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext

VERSION = 1
"""Raise this number with every change of what is drawn for the same sizes."""
TRAIN, HELD_OUT, MANIFEST = "pictures.parquet", "held-out.parquet", "manifest.json"
COLUMNS: Mapping[Mode, Mapping[str, str]] = {
    "t2i": {"query": "caption", "positive": "image"},
    "i2t": {"query_image": "image", "positive": "caption"},
    "i2i": {"query_image": "other_image", "positive": "image"},
    "t2t": {"query": "paraphrase", "positive": "caption"},
    "m2i": {"query": "change", "query_image": "other_image", "positive": "image"},
    "m2t": {"query": "change", "query_image": "other_image", "positive": "caption"},
}
"""The columns of query and positive, by mode."""
Drawn = Literal["auto", "symbols", "shapes"]


def pictures(
    context: BuildContext, sizes: Sizes, drawn: Drawn, mode: Mode, draw: DrawOptions, limit: int | None
) -> ImageTextDataset:
    """The dataset of pictures, drawn now or found in ``context.cache_dir / "pictures"``.

    Raises DataError where `symbols` are asked for and no font has them, or the cache cannot be written.
    """
    pen, symbols, source = _pen(sizes, drawn)
    folder = context.cache_dir / "pictures" / _fingerprint(sizes, symbols, source)
    options = RowOptions(mode, COLUMNS[mode])
    with context.first():
        _ensure(folder, symbols, sizes, pen, context)
        held_out = None
        if sizes.held_out:
            table = open_table(str(folder / HELD_OUT), None, None, context.cache_dir)
            rows = (parse_row(table.row(n), table.place(n), options) for n in range(len(table)))
            held_out = retrieval_set("pictures-held-out", rows)
        table = open_table(str(folder / TRAIN), None, None, context.cache_dir)
        table.name, table.format = "pictures", source
        check = CheckOptions()
        cache = context.cache_dir
        return ImageTextDataset(table, options, check, draw, context.announce, cache, limit=limit, held_out=held_out)


def _pen(sizes: Sizes, drawn: Drawn) -> tuple[SymbolPen | ShapePen, list[tuple[str, str]], str]:
    """The pen, the (symbol, name) pairs, and the name of the source for messages."""
    found = None if drawn == "shapes" else best_font()
    if found is None:
        if drawn == "symbols":
            raise DataError(
                "pictures: no installed font has symbols: install DejaVu or Noto Symbols (or `pip install matplotlib`, "
                "which brings DejaVu), or set `drawn: shapes`"
            )
        return ShapePen(sizes.size), [(name, name) for name in list(SHAPES)[: sizes.symbols]], "drawn shapes"
    path, names = found
    order = np.random.default_rng(SEED).permutation(len(names))[: sizes.symbols]
    pairs = list(names.items())
    return SymbolPen(path, sizes.size), [pairs[n] for n in sorted(order)], f"symbols of {path.stem}"


def _fingerprint(sizes: Sizes, symbols: Sequence[tuple[str, str]], source: str) -> str:
    """Hex digest of everything the pictures depend on."""
    import PIL

    facts: list[Any] = [VERSION, asdict(sizes), list(symbols), source, PIL.__version__]
    return blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()


def _ensure(
    folder: Path, symbols: Sequence[tuple[str, str]], sizes: Sizes, pen: SymbolPen | ShapePen, context: BuildContext
) -> None:
    """Draw the pictures into ``folder`` unless they are there undamaged."""
    if folder.exists():
        if _whole(folder):
            return
        context.announce(f"pictures: {folder} is damaged and is drawn anew")
        shutil.rmtree(folder, ignore_errors=True)
    count = len(symbols) * sizes.renderings + sizes.held_out
    context.announce(f"pictures: drawing {count:,} pictures of {len(symbols)} symbols, once")
    made = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
    try:
        made.mkdir(parents=True)
        parts = dict(zip((TRAIN, HELD_OUT), plan(symbols, sizes), strict=True))
        for name, scenes in parts.items():
            if scenes:
                _write(made / name, scenes, sizes.size, pen)
        digests = {path.name: _digest(path) for path in sorted(made.iterdir())}
        (made / MANIFEST).write_text(json.dumps(digests, indent=1), encoding="utf-8")
        try:
            made.rename(folder)
        except OSError:
            if not _whole(folder):  # another process may have been faster
                raise
    except OSError as error:
        raise DataError(
            f"{folder}: the pictures cannot be cached: {error.strerror or error}: set EMBED_CACHE to a writable folder"
        ) from None
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _write(path: Path, scenes: Sequence[Scene], size: int, pen: SymbolPen | ShapePen) -> None:
    """Write one row for each scene, with pictures in the format of Hugging Face datasets."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns: dict[str, Any] = {
        "caption": [scene.caption for scene in scenes],
        "paraphrase": [scene.paraphrase for scene in scenes],
        "change": [scene.change for scene in scenes],
    }
    for column, looks in (("image", [s.look for s in scenes]), ("other_image", [s.other for s in scenes])):
        drawn = [{"bytes": png(look, size, pen), "path": f"{n}-{column}.png"} for n, look in enumerate(looks)]
        columns[column] = pa.array(drawn, image)
    pq.write_table(pa.table(columns), path)


def _whole(folder: Path) -> bool:
    try:
        digests = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(digests) and all(_digest(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def _digest(path: Path) -> str:
    return blake2b(path.read_bytes(), digest_size=16).hexdigest()
