"""Rows with only those negatives that lie within a band of difficulty."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

from embed_core.datasets.dedup import shared_ids
from embed_core.datasets.wrappers import ChangedRows, HasRows, with_rows
from embed_core.errors import ConfigError, DataError
from embed_core.utils.hashing import identity

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.datasets.row import Row
    from embed_core.protocols import Announce
    from embed_qwen.curriculum_config import BandedConfig, DifficultyConfig

ROWS_IN_MEMORY = 2048


def banded(config: BandedConfig, context: BuildContext) -> BandedRows:
    """The dataset, after all its rows were read once and counted. Raises ConfigError and DataError."""
    who = f"{context.phase}, banded" if context.phase else "banded"
    if config.inner is not None:
        inner = config.inner.build(context)
    elif context.phase:
        inner = context.dataset()
    else:
        raise ConfigError("data.inner: outside of a phase `banded` needs the dataset whose rows it takes: set `inner`")
    rows = BandedRows(with_rows(inner, who), config)
    if config.negatives:
        _announce_count(rows.count(), config, inner.name, context.announce, who)
    if config.inner is not None and context.phase:
        _warn_of_evaluated(rows.inner, context, who)
    return rows


def _announce_count(found: Count, config: BandedConfig, name: str, announce: Announce, who: str) -> None:
    """Announce how many rows have negatives in the band. Raises ConfigError where none has."""
    if found.rows > found.empty:
        announce(f"{who}: {found.told(config)}")
        return
    message = f"{who}: no row of {name} has a negative in the band ({config.words}): {found.about(config)}"
    if not config.waits():
        raise ConfigError(message)
    # Stages of training lie behind: their result must not be lost, and mining again would find the same.
    announce(f"{message}; this stage learns from the batch alone")


class BandedRows(ChangedRows):
    """``inner`` with only the negatives in the band; see :class:`embed_core.protocols.Dataset`."""

    def __init__(self, inner: HasRows, config: BandedConfig) -> None:
        super().__init__(inner, config.negatives)
        self._config = config
        self._asked_again = self._questions()
        self._cached = lru_cache(ROWS_IN_MEMORY)(self._changed)

    def row(self, row: int) -> Row:
        """Row ``row`` with only its negatives in the band, in their order."""
        return self._cached(row)

    def fingerprint(self) -> str:
        """Hex digest of ``inner`` and of the band."""
        own = self._config.model_dump_json(include={"by", "band", "negatives"})
        return blake2b(f"{self.inner.fingerprint()}{own}".encode(), digest_size=16).hexdigest()

    def count(self) -> Count:
        """Reads and counts every row. Raises DataError for one without the scores that the band needs."""
        found = Count()
        for number in range(len(self)):
            whole = self.inner.row(number)
            kept, known = self._kept(whole)
            found.rows += 1
            found.empty += not kept
            found.bare += not whole.neg
            found.negatives += len(kept)
            found.known += known
            found.see(whole)
        return found

    def _changed(self, number: int) -> Row:
        whole = self.inner.row(number)
        kept, _ = self._kept(whole)
        return replace(
            whole,
            neg=tuple(whole.neg[n] for n in kept),
            neg_scores=None if whole.neg_scores is None else tuple(whole.neg_scores[n] for n in kept),
            neg_keys=None if whole.neg_keys is None else tuple(whole.neg_keys[n] for n in kept),
            masked=tuple(dict.fromkeys([*whole.masked, *self._others(whole)])),
        )

    def _kept(self, row: Row) -> tuple[list[int], int]:
        """Indices of the negatives in the band without positives of the same question elsewhere; how many these are."""
        if not self.negatives:
            return [], 0
        inside = in_band(row, self._config)
        known = self._others(row)
        kept = [n for n in inside if row.neg[n] not in known]
        return kept, len(inside) - len(kept)

    def _others(self, row: Row) -> frozenset[str]:
        """Positives of other rows with the same question that are not the row's own."""
        every = self._asked_again.get(identity(row.query))
        return frozenset() if every is None else every.difference(row.pos)

    def _questions(self) -> dict[int, frozenset[str]]:
        """All positives of every question that several rows ask, by its identity."""
        found: defaultdict[int, set[str]] = defaultdict(set)
        times: defaultdict[int, int] = defaultdict(int)
        for number, _ in shared_ids(self.identity_blocks).rows():
            row = self.inner.row(number)
            question = identity(row.query)
            found[question].update(row.pos)
            times[question] += 1
        return {question: frozenset(texts) for question, texts in found.items() if times[question] > 1}


@dataclass(slots=True)
class Count:
    """Counts of what is in the band."""

    rows: int = 0
    empty: int = 0
    """Rows without a negative in the band."""
    bare: int = 0
    """Rows without any negative."""
    negatives: int = 0
    known: int = 0
    """Negatives left out as positives of the same question in another row."""
    most: int = 0
    """The most negatives that a row has."""
    lowest: float = float("inf")
    highest: float = float("-inf")
    """The highest of the negatives' scores."""

    def see(self, row: Row) -> None:
        """Note what a message says of the data if nothing is in the band."""
        self.most = max(self.most, len(row.neg))
        if row.neg_scores:
            self.lowest = min(self.lowest, *row.neg_scores)
            self.highest = max(self.highest, *row.neg_scores)

    def told(self, config: DifficultyConfig) -> str:
        """The counts as one line for the user."""
        full = self.rows - self.empty
        line = f"{config.words}: {full:,} of {self.rows:,} rows have {self.negatives / full:.1f} negatives on average"
        if self.empty:
            line += f"; {self.empty:,} have none in the band and learn from the batch alone"
        if self.known:
            line += f"; {self.known:,} left out that are positives of the same question"
        return line

    def about(self, config: DifficultyConfig) -> str:
        """What the rows have instead, for the user."""
        if not self.most:
            return "none has any negative (`neg`): mine some with `embed mine`, or set `remine: true` after stage 1"
        scores = f", scored {self.lowest:g} to {self.highest:g}" if self.lowest <= self.highest else ""
        return f"rows have at most {self.most} negatives{scores}: change the band"


def in_band(row: Row, difficulty: DifficultyConfig) -> list[int]:
    """Indices of the row's negatives in the band, in their order. Raises DataError where it has no scores for it."""
    if difficulty.band is None:
        return list(range(len(row.neg)))
    low, high = (
        edge if bound is None else bound
        for bound, edge in zip(difficulty.band, (float("-inf"), float("inf")), strict=True)
    )
    hardness = _hardness(row, difficulty)
    if difficulty.by == "share":  # half open, so that neighbouring bands share no negative
        return [n for n, value in enumerate(hardness) if low < value <= high]
    return [n for n, value in enumerate(hardness) if low <= value <= high]


def _hardness(row: Row, difficulty: DifficultyConfig) -> list[float]:
    """The hardness of every negative, on the scale of the band."""
    count = len(row.neg)
    if difficulty.by == "rank":
        return [n + 1.0 for n in range(count)]
    if difficulty.by == "share":
        return [(n + 0.5) / count for n in range(count)]
    if not count:
        return []
    if row.neg_scores is None:
        raise DataError(
            f"{row.place}: no `neg_scores`: a band by {difficulty.by} needs them; write them with `embed mine`, or use "
            "by rank"
        )
    if difficulty.by == "score":
        return list(row.neg_scores)
    assert row.pos_scores is not None, "rows have both scores or none"
    lowest = min(row.pos_scores)
    return [lowest - score for score in row.neg_scores]


def _warn_of_evaluated(inner: HasRows, context: BuildContext, who: str) -> None:
    """Announce rows of a stage's own file that the run holds out for evaluation: its figures would say nothing."""
    held_out = context.dataset().held_out()
    if held_out is None:
        return
    asked = {query for query in held_out.queries.values() if isinstance(query, str)}
    seen = sum(inner.row(number).query in asked for number in range(len(inner)))
    if seen:
        context.announce(
            f"{who}: {seen:,} of {len(inner):,} rows ask what the evaluation asks: its figures will be too good; take "
            "these rows out of the stage's data, or evaluate on a BEIR folder"
        )
