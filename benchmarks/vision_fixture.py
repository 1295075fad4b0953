"""Pictures with captions for the image-text case, in one order for all, and a CLIP directory that all of them load."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.cases import Case
from benchmarks.fixture import SEED, drawn

Row = dict[str, Any]


def read_pictures(case: Case, cache: Path, folder: Path) -> list[Row]:
    """As many of the embedded pictures as the steps take, at random, each a PNG file: (query, positive) rows."""
    from embed_core.config.context import BuildContext
    from embed_core.config.registry import Registry
    from embed_vision.datasets.config import PicturesConfig

    wanted = case.batch_size * case.steps
    config = PicturesConfig(symbols=160, renderings=max(20, -(-wanted // 150)), held_out_rows=0)
    dataset = config.build(BuildContext(Registry(), cache_dir=cache, announce=lambda line: None))
    (folder / "pictures").mkdir()
    rows = []
    for number in np.random.default_rng(SEED).permutation(len(dataset))[:wanted]:
        row: Any = dataset.row(int(number))
        path = folder / "pictures" / f"{number}.png"
        path.write_bytes(row.pos[0].data)
        rows.append({"query": row.query, "positive": str(path)})
    return rows


def write_pictures(rows: Sequence[Row], case: Case, folder: Path) -> tuple[Path, Path]:
    """``rows.jsonl``, which embed shuffles, and ``ordered.jsonl``, the same as embed will draw them: for the peer."""
    files = folder / "rows.jsonl", folder / "ordered.jsonl"
    for path, part in zip(files, (rows, drawn(rows, case.batch_size)), strict=True):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part), encoding="utf-8")
    return files


def write_clip(case: Case, rows: Sequence[Row], cache: Path, directory: Path) -> float:
    """A random CLIP of the case's shape; returns the tokens of a row: those of its caption and of its picture."""
    from embed_core.config.context import BuildContext
    from embed_core.config.registry import Registry
    from embed_core.export.model_card import RunCard
    from embed_vision.export.checkpoint import VisionCheckpointer
    from embed_vision.models.config import ClipConfig, ClipShape

    shape = ClipShape(
        vocab_size=case.vocab_size, hidden=case.hidden, layers=case.layers, heads=case.heads, width=case.hidden,
        image_size=case.passage_max_len, max_length=case.query_max_len,
    )  # fmt: skip
    context = BuildContext(Registry(), seed=SEED, cache_dir=cache, announce=lambda line: None)
    captions: Any = Captions(rows)
    context.dataset_factory = lambda: captions
    model: Any = ClipConfig(from_scratch=shape).build(context)
    directory.mkdir(parents=True)
    card = RunCard("benchmark", "from-scratch", {}, {"name": "benchmark", "rows": 0, "fingerprint": ""}, {}, "", 0, {})
    VisionCheckpointer().export(model, model.state_dict(), directory, card)
    encoded = model.tokenize([row["query"] for row in rows], "query", [None] * len(rows))
    patches = (shape.image_size // shape.patch_size) ** 2 + 1
    return float(sum(one.length for one in encoded) / len(rows) + patches)


class Captions:
    """What a from-scratch tokenizer asks of a dataset."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def texts(self) -> list[str]:
        """The captions."""
        return [row["query"] for row in self._rows]
