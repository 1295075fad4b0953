"""Draws and tokenises a rank's share of a global batch on the host, each distinct text once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from embed_core.errors import DataError
from embed_core.protocols import Dataset
from embed_core.text.token_cache import Tokenizes
from embed_core.types import Encoded, Example, Item, Role
from embed_core.utils.hashing import identity, key_identity, sameness

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class HostBatch:
    """A rank's share of a global batch: token lists of the distinct texts, and the places that each of them fills."""

    encoded: list[Encoded]
    query_index: Ints
    """Index into ``encoded`` of each row's query."""
    passage_index: Ints
    """Index into ``encoded`` of each passage, group after group."""
    group_sizes: Ints
    row_ids: Ints
    query_ids: Ints
    passage_ids: Ints
    passage_keys: Ints
    positives: Ints
    positive_counts: Ints
    in_batch: Ints
    """1 for a row that competes with other rows' passages, 0 for one that does not."""
    scores: NDArray[np.float32]
    """The teacher's score of each passage; NaN where the row has none."""
    teacher: Floats | None = None
    """The teacher's vectors of the rows' queries and then of the passages, [rows + passages, W]."""

    @property
    def rows(self) -> int:
        """The number of rows in this rank's share."""
        return len(self.row_ids)

    @property
    def tokens(self) -> int:
        """Tokens of the distinct texts, padding not included."""
        return sum(e.length for e in self.encoded)

    @property
    def squared_lengths(self) -> int:
        """Sum of the squared lengths of the distinct texts: the cost of attention grows with it."""
        return sum(e.length * e.length for e in self.encoded)


def share_of_rank(rows: Sequence[int], rank: int, world_size: int) -> Sequence[int]:
    """The contiguous part of a global batch that belongs to ``rank``; sizes differ by at most one row."""
    bounds = [round(part * len(rows) / world_size) for part in range(world_size + 1)]
    return rows[bounds[rank] : bounds[rank + 1]]


def draw_examples(dataset: Dataset, rows: Iterable[int], seed: int, draw_number: int) -> list[Example]:
    """Draw the examples of ``rows``. Each depends on (seed, draw, row) alone, not on the rank or the order."""
    return [dataset.example(row, np.random.default_rng((seed, draw_number, row))) for row in rows]


def make_host_batch(model: Tokenizes, examples: Sequence[Example], *, deduplicate: bool = True) -> HostBatch:
    """Tokenise the examples' texts, column by column, and keep each distinct one once."""
    assert examples, "a rank's share of a batch is empty"
    for example in examples:
        if not example.passages:
            raise DataError(f"{example.place}: row {example.row} has no passage")
        for name in ("scores", "passage_keys"):
            given = getattr(example, name)
            if given is not None and len(given) != len(example.passages):
                raise DataError(
                    f"{example.place}: row {example.row} has {len(given)} {name} for {len(example.passages)} passages: "
                    "one each is needed"
                )
    queries = _tokenize(model, [(e.query, e.query_prompt) for e in examples], "query")
    passages = _tokenize(model, [(p, e.passage_prompt) for e in examples for p in e.passages], "passage")
    pool = _Pool(deduplicate)
    query_index = pool.indices(queries)
    return HostBatch(
        query_index=query_index,
        passage_index=pool.indices(passages),
        encoded=pool.encoded,
        group_sizes=_ints(len(e.passages) for e in examples),
        row_ids=_ints(e.row for e in examples),
        query_ids=_ints(identity(e.query) for e in examples),
        passage_ids=_ints(identity(p) for e in examples for p in e.passages),
        passage_keys=_ints(key_identity(k) for e in examples for k in e.passage_keys or (None,) * len(e.passages)),
        positives=_ints(i for e in examples for i in _known_positives(e)),
        positive_counts=_ints(len(_known_positives(e)) for e in examples),
        in_batch=_ints(e.in_batch_negatives for e in examples),
        scores=np.fromiter((s for e in examples for s in e.scores or (np.nan,) * len(e.passages)), dtype=np.float32),
        teacher=_teacher(examples),
    )


def _teacher(examples: Sequence[Example]) -> Floats | None:
    """The teacher's vectors of all texts, the queries first. Raises DataError where rows do not have them alike."""
    given = [e for e in examples if e.query_vector is not None]
    if not given:
        return None
    first = given[0].query_vector
    assert first is not None
    width = len(first)
    for e in examples:
        query, passages = e.query_vector, e.passage_vectors
        have = None if query is None or passages is None else (*query.shape, *passages.shape)
        if have != (width, len(e.passages), width):
            found = "no teacher vectors" if have is None else f"teacher vectors of the shapes {have[:1]} and {have[1:]}"
            raise DataError(
                f"{e.place}: row {e.row} has {found}, its batch has one of width {width} per query and passage: every "
                "row needs them, of the same teacher"
            )
    of_queries = np.stack([e.query_vector for e in examples if e.query_vector is not None])
    of_passages = [e.passage_vectors for e in examples if e.passage_vectors is not None]
    return np.concatenate([of_queries, *of_passages]).astype(np.float32, copy=False)


@dataclass
class _Pool:
    deduplicate: bool
    encoded: list[Encoded] = field(default_factory=list)
    _position: dict[bytes, int] = field(default_factory=dict)

    def indices(self, column: Iterable[Encoded]) -> Ints:
        return _ints(self._place(item) for item in column)

    def _place(self, item: Encoded) -> int:
        position = len(self.encoded)
        if self.deduplicate:
            position = self._position.setdefault(item.key, position)
        if position == len(self.encoded):
            self.encoded.append(item)
        return position


def _tokenize(model: Tokenizes, texts: Sequence[tuple[Item, str | None]], role: Role) -> list[Encoded]:
    """Tokenise (item, prompt) pairs, each distinct pair once."""
    same = [sameness(item) for item, _ in texts]
    # Items that cannot be compared count as distinct.
    names = [place if one is None else (one, texts[place][1]) for place, one in enumerate(same)]
    first: dict[object, int] = {}
    for place, name in enumerate(names):
        first.setdefault(name, place)
    distinct = [texts[place] for place in first.values()]
    encoded = model.tokenize([text for text, _ in distinct], role, [prompt for _, prompt in distinct])
    found = dict(zip(first, encoded, strict=True))
    return [found[name] for name in names]


def _known_positives(example: Example) -> list[int]:
    texts = (example.passages[0], *example.positives)
    return sorted({*(identity(t) for t in texts), *(key_identity(k) for k in example.positive_keys)})


def _ints(values: Iterable[int]) -> Ints:
    return np.fromiter(values, dtype=np.int64)
