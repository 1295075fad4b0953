"""Image-text rows as a training dataset, with a held-out evaluation split."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embed_core.datasets.index.subset import Selection
from embed_core.datasets.split import held_out_rows
from embed_core.errors import ConfigError
from embed_core.types import Example, RetrievalSet
from embed_vision.datasets.checking import CheckOptions, checked, item_id, items_of, told
from embed_vision.datasets.items import Mixed, VisionItem
from embed_vision.datasets.rows import RowOptions, VisionRow, parse_row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from embed_core.datasets.index.hashes import Blocks
    from embed_core.protocols import Announce
    from embed_vision.datasets.tables import Table


class DrawOptions:
    """How examples are drawn, the same for every row."""

    def __init__(self, negatives: int = 1, query_prompt: str | None = None, passage_prompt: str | None = None) -> None:
        self.negatives, self.query_prompt, self.passage_prompt = negatives, query_prompt, passage_prompt


class ImageTextDataset:
    """Rows of one table, checked at construction, parsed on access: an :class:`embed_core.protocols.Dataset`.

    ``held_out_rows`` are set aside for evaluation with every row that shares a query or a positive with them, where
    pictures are compared by content; ``limit`` bounds the training rows, evenly spread. ``held_out`` is an evaluation
    set built elsewhere. Raises DataError for a bad row, ConfigError where no training row would be left.
    """

    def __init__(
        self,
        table: Table,
        rows: RowOptions,
        check: CheckOptions,
        draw: DrawOptions,
        announce: Announce,
        cache: Path,
        held_out_rows: int | None = 0,
        limit: int | None = None,
        held_out: RetrievalSet | None = None,
    ) -> None:
        self.name = table.name
        self._table, self._options, self._draw = table, rows, draw
        self._split = (held_out_rows, limit)
        self._checked = checked(table, rows, check, cache)
        left_out = self._choose(held_out_rows)
        self._rows = Selection(len(self._checked.rows_N), left_out, limit)
        self._held_out = held_out if held_out is not None else self._retrieval_set(left_out)
        for line in filter(None, (told(self._checked, self.name), self._sizes())):
            announce(line)

    def __len__(self) -> int:
        return len(self._rows)

    def example(self, row: int, rng: np.random.Generator) -> Example:
        """Draw a positive and the negatives; a row with too few negatives repeats them, one without has none."""
        drawn_from = self.row(row)
        positive = drawn_from.pos[int(rng.integers(len(drawn_from.pos)))]
        negatives = _drawn(drawn_from.neg, self._draw.negatives, rng)
        scores = None
        if drawn_from.score is not None:  # the score is the positive's: the negatives have none
            scores = (drawn_from.score, *(float("nan") for _ in negatives))
        return Example(
            row=row,
            query=drawn_from.query,
            passages=(positive, *negatives),
            scores=scores,
            positives=drawn_from.pos,
            query_prompt=self._draw.query_prompt if drawn_from.prompt is None else drawn_from.prompt,
            passage_prompt=self._draw.passage_prompt,
            source=self.name,
            place=drawn_from.place,
        )

    def row(self, row: int) -> VisionRow:
        """Training row ``row`` as the data has it."""
        return self._parsed(self._rows[row])

    def identities(self, row: int) -> Iterable[bytes]:
        """8-byte ids of the query and the positives; pictures are identified by content."""
        raw = self._checked.identities(self._rows[row]).tobytes()
        return [raw[at : at + 8] for at in range(0, len(raw), 8)]

    def identity_blocks(self) -> Blocks:
        """Identities of all rows at once, in blocks; see :class:`embed_core.datasets.wrappers.HasIdentityBlocks`."""
        return self._blocks(self._rows.blocks())

    def source(self, row: int) -> str:
        """The table's name, the only source."""
        return self.name

    def texts(self) -> Iterator[str]:
        """Yields every text of the training rows once; nothing if all items are pictures."""
        seen: set[bytes] = set()
        for row in range(len(self)):
            for item in items_of(self.row(row)):
                text = item.text if isinstance(item, Mixed) else item
                if isinstance(text, str) and (key := item_id(text)) not in seen:
                    seen.add(key)
                    yield text

    def held_out(self) -> RetrievalSet | None:
        """The evaluation split, or None where ``held_out_rows`` is 0."""
        return self._held_out

    def fingerprint(self) -> str:
        """Hex digest of rows and pictures and of the options that select the training rows."""
        parts = [self._checked.digest, self._options.mode, repr(self._split)]
        return blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()

    def as_retrieval_set(self) -> RetrievalSet:
        """All training rows as queries over all of their passages, for a file of validation rows."""
        return retrieval_set(self.name, (self.row(row) for row in range(len(self))))

    def _parsed(self, usable: int) -> VisionRow:
        number = int(self._checked.rows_N[usable])
        return parse_row(self._table.row(number), self._table.place(number), self._options)

    def _choose(self, held_out: int | None) -> np.ndarray:
        """The rows to hold out. The default holds out enough to measure, and never a large part of the data."""
        total = len(self._checked.rows_N)
        wanted = min(200, max(1, total // 10), total - 1) if held_out is None else held_out
        if not wanted:
            return np.empty(0, dtype=np.int64)
        if wanted >= total:
            raise ConfigError(f"held_out_rows={wanted}: {self.name} has {total} rows: set at most {total - 1}")
        chosen = held_out_rows(lambda: self._blocks(iter([np.arange(total)])), wanted)
        if not len(chosen) and held_out is not None:
            raise ConfigError(
                f"held_out_rows={wanted}: every group of rows of {self.name} that share a query or a positive is "
                "larger than that: raise it, or give rows of their own to evaluate on"
            )
        return chosen

    def _blocks(self, blocks: Iterator[np.ndarray]) -> Blocks:
        """Yields the number of identities of each of the usable rows ``blocks``, and the identities row after row."""
        found = self._checked
        for rows in blocks:
            counts = (found.offsets_N1[rows + 1] - found.offsets_N1[rows]).astype(np.int64)
            within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
            yield counts, found.ids_K[np.repeat(found.offsets_N1[rows], counts) + within]

    def _retrieval_set(self, usable: np.ndarray) -> RetrievalSet | None:
        if not len(usable):
            return None
        return retrieval_set(f"{self.name}-held-out", (self._parsed(int(number)) for number in usable))

    def _sizes(self) -> str:
        held = ""
        if self._held_out is not None:
            held = f"; held out {len(self._held_out.queries)} queries, {len(self._held_out.corpus)} documents"
        return f"data: {self.name}, {self._table.format}, {self._options.mode}: {len(self)} training rows{held}"


def retrieval_set(name: str, rows: Iterable[VisionRow]) -> RetrievalSet:
    """Rows as queries over a corpus of their positives and negatives. Equal items are merged."""
    queries: dict[str, VisionItem] = {}
    corpus: dict[str, VisionItem] = {}
    qrels: dict[str, dict[str, int]] = {}
    for row in rows:
        query = _named("q", row.query, queries)
        judged = qrels.setdefault(query, {})
        judged |= {_named("d", item, corpus): 1 for item in row.pos}
        for item in row.neg:
            _named("d", item, corpus)
    return RetrievalSet(name, queries, corpus, qrels)


def reversed_set(data: RetrievalSet) -> RetrievalSet:
    """The set with queries and documents exchanged. Documents that answer no query are left out."""
    qrels: dict[str, dict[str, int]] = {}
    for query, judged in data.qrels.items():
        for document, relevance in judged.items():
            if relevance > 0:
                qrels.setdefault(document, {})[query] = relevance
    queries = {key: item for key, item in data.corpus.items() if key in qrels}
    return RetrievalSet(data.name, queries, data.queries, qrels)


def _named(prefix: str, item: VisionItem, items: dict[str, VisionItem]) -> str:
    key = prefix + item_id(item).hex()
    items[key] = item
    return key


def _drawn(available: tuple[VisionItem, ...], wanted: int, rng: np.random.Generator) -> list[VisionItem]:
    drawn: list[VisionItem] = []
    while available and len(drawn) < wanted:
        drawn.extend(available[int(n)] for n in rng.permutation(len(available))[: wanted - len(drawn)])
    return drawn
