"""The table of a mix: per source what was read, used, repeated, dropped and why, and how long its texts are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from embed_data.mix.build import Opened
    from embed_data.mix.config import MixConfig
    from embed_data.mix.dataset import MixDataset, Part

SAMPLE = 500
"""Rows of a source whose texts are measured, evenly spread; the figures of larger sources are estimates."""
HEADER = (
    "source",
    "read",
    "used",
    "repeated",
    "dropped",
    "rows",
    "share",
    "characters",
    "tokens",
    "truncated",
    "why dropped",
)


@dataclass(frozen=True)
class Lengths:
    """Texts of a sample of a source's rows: queries, positives, and the negatives that are drawn."""

    exact: bool
    """Whether all rows were measured."""
    characters: int
    """Characters of all the source's rows in the mix, once over."""
    tokens: int | None = None
    """Tokens of these rows, special ones included, cut at the maximum length."""
    truncated: float | None = None
    """Share of the texts that are longer than the maximum length."""


def lines(config: MixConfig, dataset: MixDataset, opened: Sequence[Opened]) -> list[str]:
    """The table and what else there is to say, as aligned text. Raises CheckpointError for a wrong ``tokenizer``."""
    facts = rows(config, dataset, opened)
    total = sum(fact["rows"] for fact in facts)
    cells = [HEADER, *(_cells(fact, total) for fact in facts)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(HEADER))]
    table = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    return [f"mix: {total:,} rows from {len(facts)} sources", *(f"  {line}" for line in table), *_notes(config, opened)]


def rows(config: MixConfig, dataset: MixDataset, opened: Sequence[Opened]) -> list[dict[str, Any]]:
    """The table as plain data, one mapping per source."""
    tokenizer = _tokenizer(config.tokenizer)
    parts = {part.name: part for part in dataset.parts}
    facts = []
    for source in opened:
        part = parts.get(source.config.name)
        measured = None if part is None else _measure(part, tokenizer, config.max_length)
        facts.append(
            {"source": source.config.name, "rows": 0 if part is None else len(part.rows)}
            | asdict(source.counts)
            | {"lengths": None if measured is None else asdict(measured)}
        )
    return facts


def _cells(fact: Mapping[str, Any], total: int) -> tuple[str, ...]:
    lengths = fact["lengths"] or {"exact": True, "characters": 0, "tokens": None, "truncated": None}
    about = "" if lengths["exact"] else "≈"
    tokens = "-" if lengths["tokens"] is None else f"{about}{lengths['tokens']:,}"
    cut = "-" if lengths["truncated"] is None else f"{about}{lengths['truncated']:.1%}"
    why = ", ".join(f"{count:,} {reason}" for reason, count in fact["dropped"].items()) or "-"
    numbers = (f"{fact[key]:,}" for key in ("read", "used", "repeated"))
    dropped, count = f"{sum(fact['dropped'].values()):,}", fact["rows"]
    share = f"{count / max(total, 1):.1%}"
    return (
        fact["source"], *numbers, dropped, f"{count:,}", share, f"{about}{lengths['characters']:,}", tokens, cut, why,
    )  # fmt: skip


def _notes(config: MixConfig, opened: Sequence[Opened]) -> list[str]:
    notes = []
    ratios = [one.data_ratio for one in config.datasets if one.data_ratio is not None]
    if ratios and not config.use_all and abs(sum(ratios) - 1) > 1e-6:
        notes.append(f"mix: data_ratio adds up to {sum(ratios):g}: shares are relative to that sum")
    short = [s for s in opened if s.counts.wanted > s.counts.used and not s.counts.repeated and not config.use_all]
    if short and config.limit is None:
        named = ", ".join(f"{s.config.name!r} ({s.counts.used:,} of {s.counts.wanted:,})" for s in short)
        notes.append(f"mix: fewer rows than the share asks for: {named}: allow_duplicate: true would repeat them")
    special = [one.name for one in config.datasets if one.for_the_loss()]
    if special:
        notes.append(
            f"mix: {', '.join(map(repr, special))}: weight and negative_strategy act through the loss kind `by-source`"
        )
    return notes


def _tokenizer(name: str | None) -> Any:
    if name is None:
        return None
    from embed_core.models.hub import load_tokenizer, model_directory

    return load_tokenizer(model_directory(name)).backend_tokenizer


def _measure(part: Part, tokenizer: Any, max_length: int | None) -> Lengths:
    count = len(part.rows)
    picked = np.unique(np.arange(min(SAMPLE, count)) * count // min(SAMPLE, count))
    rng = np.random.default_rng(0)
    texts = []
    for at in picked:
        example = part.dataset.example(int(part.rows[at]), rng)
        texts += [item for item in (example.query, *example.passages) if isinstance(item, str)]
    scale = count / len(picked)
    exact, characters = len(picked) == count, round(scale * sum(map(len, texts)))
    if tokenizer is None or not texts:
        return Lengths(exact, characters)
    tokenizer.no_truncation()
    lengths = np.asarray([len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts)])
    if max_length is None:
        return Lengths(exact, characters, round(scale * int(lengths.sum())))
    cut = np.minimum(lengths, max_length)
    return Lengths(exact, characters, round(scale * int(cut.sum())), float((lengths > max_length).mean()))
