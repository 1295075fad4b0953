"""The rows that were drawn of every source, as one dataset."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from embed_core.datasets.dedup import Seen, blocks_of
from embed_core.datasets.split import text_id
from embed_core.datasets.wrappers import PicksRows, with_rows, without_in_batch_negatives
from embed_core.protocols import provides
from embed_core.types import RetrievalSet

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embed_core.datasets.dedup import Blocks
    from embed_core.datasets.row import Row
    from embed_core.protocols import Dataset
    from embed_core.types import Example
    from embed_data.mix.config import SourceConfig

MIXED = "mixed"
"""What sources with ``batching: mixed`` are called for the by-source sampler."""


@dataclass(frozen=True)
class Part:
    """One source and the rows drawn of it."""

    config: SourceConfig
    dataset: Dataset
    rows: NDArray[np.signedinteger]
    """Row ids of ``dataset``; one that is repeated occurs as often."""
    query_prompt: str | None = None
    passage_prompt: str | None = None

    @property
    def name(self) -> str:
        """The name of the source."""
        return self.config.name


class MixDataset:
    """See :class:`embed_core.protocols.Dataset`. A row that is repeated has several row ids and the same identities."""

    def __init__(self, parts: Sequence[Part], name: str = "mix") -> None:
        self.name, self.parts = name, [part for part in parts if len(part.rows)]
        self._all = parts
        self.starts = np.cumsum([0, *(len(part.rows) for part in self.parts)])
        """Row ids ``starts[n]:starts[n + 1]`` are of ``parts[n]``."""
        self._bounds = self.starts.tolist()

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def example(self, row: int, rng: np.random.Generator) -> Example:
        """The source's example, under its name in the mix and with its prompts."""
        part, inner = self._at(row)
        drawn = part.dataset.example(inner, rng)
        return replace(
            drawn,
            row=row,
            source=part.name,
            query_prompt=part.query_prompt if drawn.query_prompt is None else drawn.query_prompt,
            passage_prompt=part.passage_prompt if drawn.passage_prompt is None else drawn.passage_prompt,
        )

    def row(self, row: int) -> Row:
        """The source's row, with all that is known of it. Raises ConfigError where a source has no such rows."""
        part, inner = self._at(row)
        return with_rows(part.dataset, f"source {part.name!r}").row(inner)

    def identities(self, row: int) -> Iterable[bytes]:
        """The source's own."""
        part, inner = self._at(row)
        return part.dataset.identities(inner)

    def identity_blocks(self) -> Blocks:
        """Identities of all rows in blocks: what the no-duplicates sampler asks for."""
        for part in self.parts:
            if provides(part.dataset, PicksRows):
                yield from part.dataset.identity_blocks_of(part.rows)
            else:
                yield from blocks_of(part.dataset.identities(int(row)) for row in part.rows)()

    def source(self, row: int) -> str:
        """What the by-source sampler keeps apart: the source, or :data:`MIXED` for those that may share batches."""
        part, _ = self._at(row)
        return part.name if part.config.batching == "homogeneous" else MIXED

    def without_in_batch_negatives(self) -> list[str]:
        """The parts of sources whose rows do not compete with other rows' passages."""
        return [name for part in self.parts for name in without_in_batch_negatives(part.dataset)]

    def texts(self) -> Iterator[str]:
        """Texts of the sources, each once; of a source of which not all rows are drawn, of those that are."""
        seen = Seen()
        batch: list[str] = []
        for text in self._texts():
            batch.append(text)
            if len(batch) == 10_000:
                yield from _fresh(batch, seen)
                batch = []
        yield from _fresh(batch, seen)

    def held_out(self) -> RetrievalSet | None:
        """The sources' splits as one: every query searches the documents of all."""
        queries: dict[str, object] = {}
        corpus: dict[str, object] = {}
        qrels: dict[str, dict[str, int]] = {}
        for part in self._all:
            split = part.dataset.held_out()
            if split is None:
                continue
            queries |= {f"{part.name}/{key}": item for key, item in split.queries.items()}
            corpus |= {f"{part.name}/{key}": item for key, item in split.corpus.items()}
            qrels |= {
                f"{part.name}/{query}": {f"{part.name}/{key}": score for key, score in judged.items()}
                for query, judged in split.qrels.items()
            }
        return RetrievalSet(f"{self.name}-held-out", queries, corpus, qrels) if queries else None

    def fingerprint(self) -> str:
        """Hex digest of the sources and of the rows drawn."""
        digest = blake2b(digest_size=16)
        for part in self.parts:
            facts = part.config.model_dump_json(include={"name", "weight", "batching", "negative_strategy"})
            digest.update(f"{facts}{part.query_prompt}{part.passage_prompt}{part.dataset.fingerprint()}".encode())
            digest.update(part.rows.tobytes())
        return digest.hexdigest()

    def _at(self, row: int) -> tuple[Part, int]:
        at = bisect_right(self._bounds, row) - 1
        part = self.parts[at]
        return part, int(part.rows[row - self._bounds[at]])

    def _texts(self) -> Iterator[str]:
        for part in self.parts:
            distinct = np.unique(part.rows)
            if len(distinct) == len(part.dataset):
                yield from part.dataset.texts()
                continue
            if provides(part.dataset, PicksRows):
                yield from part.dataset.texts_of(distinct)
                continue
            rng = np.random.default_rng(0)
            for inner in distinct:
                example = part.dataset.example(int(inner), rng)
                items = (example.query, *example.positives, *example.passages)
                yield from dict.fromkeys(item for item in items if isinstance(item, str))


def _fresh(texts: list[str], seen: Seen) -> Iterator[str]:
    ids = np.frombuffer(b"".join(map(text_id, texts)), dtype=np.uint64)
    for at in np.flatnonzero(seen.new(ids)):
        yield texts[at]
