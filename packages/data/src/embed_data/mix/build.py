"""From a mix's config to its dataset: read, hold out, keep what leaks, draw, tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from embed_core.datasets.retrieval import RetrievalDataset
from embed_core.datasets.sampling import DrawOptions
from embed_core.datasets.split import text_id
from embed_core.datasets.wrappers import identity_blocks
from embed_core.errors import ConfigError
from embed_core.samplers.epoch import row_type
from embed_data.formats.open import open_sources
from embed_data.mix.allocate import allocate, draw, shares
from embed_data.mix.dataset import MixDataset, Part

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embed_core.config.context import BuildContext
    from embed_core.datasets.sources.base import RowSource
    from embed_core.protocols import Dataset
    from embed_data.mix.config import MixConfig, SourceConfig


@dataclass
class Counts:
    """What became of a source's rows."""

    format: str
    read: int
    """Rows of the source, the bad ones included."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Why → rows that are not used."""
    wanted: int = 0
    """Its share of the mix."""
    used: int = 0
    """Different rows in the mix."""
    repeated: int = 0
    """Rows in the mix that are there already."""

    def drop(self, why: str, rows: int) -> None:
        """Counted only where there are any."""
        if rows:
            self.dropped[why] = self.dropped.get(why, 0) + rows


@dataclass
class Opened:
    """A source that has been read."""

    config: SourceConfig
    dataset: Dataset
    counts: Counts
    rows: NDArray[np.signedinteger]
    """Row ids of ``dataset`` that may be drawn."""


def build_mix(config: MixConfig, context: BuildContext) -> MixDataset:
    """The dataset; the table goes to ``context.announce``. Raises DataError and ConfigError."""
    dataset, opened = mixed(config, context)
    if context.rank == 0:
        from embed_data.mix.table import lines

        for line in lines(config, dataset, opened):
            context.announce(line)
    return dataset


def mixed(config: MixConfig, context: BuildContext) -> tuple[MixDataset, list[Opened]]:
    """The dataset and what became of every source's rows."""
    opened = _open(config, context)
    _without_leaks(opened)
    for source in opened:
        _limit(source)
    drawn = _drawn(config, opened, context.seed)
    if config.limit is not None:
        drawn = _limited(drawn, config.limit)
    parts = []
    for source, rows in zip(opened, drawn, strict=True):
        source.counts.used = int(np.count_nonzero(np.diff(rows, prepend=-1)))
        source.counts.repeated = len(rows) - source.counts.used
        source.counts.drop("not drawn", len(source.rows) - source.counts.used)
        query = config.query_prompt if source.config.prompt is None else source.config.prompt
        passage = config.passage_prompt if source.config.passage_prompt is None else source.config.passage_prompt
        parts.append(Part(source.config, source.dataset, rows, query, passage))
    dataset = MixDataset(parts)
    if not len(dataset):
        raise ConfigError(
            "data.datasets: no row of any source is drawn: raise num_total_data, the limits or the ratios"
        )
    return dataset, opened


def _open(config: MixConfig, context: BuildContext) -> list[Opened]:
    with context.first():  # the others find what rank 0 has put into the cache
        read: list[list[RowSource]] = [
            [] if one.data_path is None else open_sources(one.data_path, one, context) for one in config.datasets
        ]
    sizes = [sum(map(len, parts)) for parts in read]
    held = _held_out_rows(config.held_out_rows, sizes)
    return [
        _opened_files(config, one, parts, rows, context) if parts else _opened_other(one, context)
        for one, parts, rows in zip(config.datasets, read, held, strict=True)
    ]


def _held_out_rows(wanted: int | None, sizes: Sequence[int]) -> list[int]:
    """Rows that each file source holds out: in proportion to its size, never all of it."""
    total = sum(sizes)
    if wanted is None:
        wanted = min(200, max(1, total // 10)) if total else 0
    if not wanted or not total:
        return [0] * len(sizes)
    if wanted >= total:
        raise ConfigError(f"held_out_rows={wanted}: the mix's files have {total} rows: set at most {total - 1}")
    return [min(share, max(size - 1, 0)) for share, size in zip(allocate(wanted, shares(sizes)), sizes, strict=True)]


def _opened_files(
    config: MixConfig, one: SourceConfig, parts: list[RowSource], held_out_rows: int, context: BuildContext
) -> Opened:
    negatives = config.negatives if one.negatives is None else one.negatives
    cache = context.cache_dir
    with context.first():  # the others find what rank 0 has put into the cache
        dataset = RetrievalDataset(
            one.name, parts, DrawOptions(negatives), context.announce, held_out_rows, cache=cache, lenient=True
        )
    formats = "; ".join(dict.fromkeys(part.format for part in parts))
    counts = Counts(formats, sum(len(part) + sum(part.left_out.values()) for part in parts))
    for part in parts:
        for why, rows in part.left_out.items():
            counts.drop(why, rows)
    counts.drop("held out", dataset.held_out_count)
    return Opened(one, dataset, counts, _all(dataset))


def _opened_other(one: SourceConfig, context: BuildContext) -> Opened:
    assert one.data is not None, "a source has data_path or data"
    if one.negatives is not None:
        raise ConfigError(f"datasets: {one.name!r}: `negatives` is of files: set it inside `data`")
    dataset = one.data.build(context)
    return Opened(one, dataset, Counts(f"kind {one.data.kind}", len(dataset)), _all(dataset))


def _all(dataset: Dataset) -> NDArray[np.signedinteger]:
    return np.arange(len(dataset), dtype=row_type(len(dataset)))


def _without_leaks(opened: list[Opened]) -> None:
    """No training row of any source shares a query or a positive with the held-out rows of any."""
    held: set[bytes] = set()
    for source in opened:
        split = source.dataset.held_out()
        if split is not None:
            relevant = {key for judged in split.qrels.values() for key, score in judged.items() if score > 0}
            texts = [*split.queries.values(), *(split.corpus[key] for key in relevant)]
            held.update(text_id(text) for text in texts if isinstance(text, str))
    if not held:
        return
    numbers = np.frombuffer(b"".join(sorted(held)), dtype=np.uint64)
    for source in opened:
        leaks = _sharing(source.dataset, numbers)
        source.counts.drop("shares a text with what is held out", int(leaks.sum()))
        source.rows = source.rows[~leaks]


def _sharing(dataset: Dataset, numbers: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which rows have any of these identities."""
    masks = [np.zeros(0, dtype=np.bool_)]
    for counts, ids in identity_blocks(dataset)():
        mask = np.zeros(len(counts), dtype=np.bool_)
        mask[np.repeat(np.arange(len(counts)), counts)[np.isin(ids, numbers)]] = True
        masks.append(mask)
    return np.concatenate(masks)


def _limit(source: Opened) -> None:
    limit, rows = source.config.limit, source.rows
    if limit is not None and limit < len(rows):
        source.counts.drop("over the limit", len(rows) - limit)
        source.rows = rows[np.arange(limit) * len(rows) // limit]


def _drawn(config: MixConfig, opened: list[Opened], seed: int) -> list[NDArray[np.signedinteger]]:
    """Row ids of each source, those of a source drawn by the seed and its own name."""
    available = [len(source.rows) for source in opened]
    if config.use_all:
        wanted = available
    else:
        ratios = [one.data_ratio for one in config.datasets]
        bases = [size if ratio is None else ratio for size, ratio in zip(available, ratios, strict=True)]
        total = config.num_total_data or sum(available)
        wanted = allocate(total, shares(bases, config.temperature)) if any(bases) else available
    drawn = []
    for source, count in zip(opened, wanted, strict=True):
        source.counts.wanted = count
        picked = draw(
            len(source.rows), count, duplicates=config.allow_duplicate, seed=seed, name=source.config.name
        )  # fmt: skip
        drawn.append(source.rows[picked])
    return drawn


def _limited(drawn: list[NDArray[np.signedinteger]], limit: int) -> list[NDArray[np.signedinteger]]:
    """The first ``limit`` rows if they were laid out evenly: every source keeps its proportion."""
    sizes = [len(rows) for rows in drawn]
    if limit >= sum(sizes):
        return drawn
    kept = allocate(limit, shares(sizes))
    return [rows[np.arange(count) * len(rows) // max(count, 1)] for rows, count in zip(drawn, kept, strict=True)]
