"""Cuts a rank's texts of one step into chunks of similar length, which go through the model one by one.

Padding, not arithmetic, is where a naive loop spends its time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from embed_core.config.run import EngineConfig
from embed_core.distributed.process_group import Ranks
from embed_core.distributed.seeds import seed_generators, seed_of
from embed_core.embeddings import concat, select
from embed_core.protocols import Model, PacksChunks, PadsToMultiple, provides
from embed_core.types import Embeddings, Encoded

PRICE = 16
"""A further chunk costs as much as ``budget // PRICE`` tokens. Measured on a CPU: 100 to 150 tokens of 2,048."""


@dataclass(frozen=True, slots=True)
class ChunkRule:
    """The rule by which a model's texts are cut into chunks."""

    budget: int
    """The most tokens that a chunk may have, padding included."""
    multiple: int = 1
    """Lengths are padded to a multiple of this; 1 where chunks are packed."""
    packed: bool = False
    """Whether chunks have no padding at all."""

    @classmethod
    def of(cls, model: Any, budget: int) -> ChunkRule:
        """The rule for ``model``, after the engine has set its options."""
        packed = provides(model, PacksChunks) and bool(model.packed)
        multiple = (model.pad_to_multiple_of or 1) if provides(model, PadsToMultiple) else 1
        return cls(budget, 1 if packed else multiple, packed)

    def lengths(self, encoded: Sequence[Encoded]) -> list[int]:
        """The tokens that each text takes up in a chunk of texts of its own length."""
        return [-(-one.length // self.multiple) * self.multiple for one in encoded]

    def cut(self, lengths: Sequence[int], count: int | None = None) -> list[list[int]]:
        """:func:`cut` within the budget."""
        return cut(lengths, self.budget, count, packed=self.packed)

    def tokens(self, lengths: Sequence[int], chunk: Sequence[int]) -> int:
        """The tokens of one chunk, padding included."""
        return sum(lengths[i] for i in chunk) if self.packed else padded_tokens(lengths, [chunk])


class ChunkSizes(NamedTuple):
    """Sizes of a batch's chunks on one rank, or the maximum of each over the ranks. Tokens include padding."""

    chunks: int
    padded_tokens: int
    """Tokens of all chunks."""
    chunk_tokens: int
    """Tokens of the largest chunk."""
    text_tokens: int
    """Tokens of the longest text."""

    @classmethod
    def largest(cls, each: Sequence[Sequence[int]]) -> ChunkSizes:
        """The maximum of each number over the ranks."""
        return cls(*(max(numbers) for numbers in zip(*each, strict=True)))


class Chunks:
    """This rank's distinct texts, sorted by length and cut to the token budget, as often as all ranks must.

    ``equal=False`` leaves the last to the caller, who calls :meth:`equalize` where the number of chunks is known.
    """

    def __init__(
        self,
        encoded: Sequence[Encoded],
        model: Model,
        config: EngineConfig,
        ranks: Ranks,
        seed: int | None = None,
        *,
        equal: bool = True,
    ) -> None:
        self._encoded, self._model, self._ranks, self._seed = encoded, model, ranks, seed
        self._cutting = ChunkRule.of(model, config.chunk_tokens)
        self._lengths = self._cutting.lengths(encoded)
        self._chunks = self._cutting.cut(self._lengths)
        if equal and config.needs_equal_chunks(ranks.world_size):
            self.equalize(ranks.largest(len(self._chunks)))

    def __len__(self) -> int:
        return len(self._chunks)

    @property
    def sizes(self) -> ChunkSizes:
        """The sizes of these chunks."""
        each = [self.tokens(number) for number in range(len(self._chunks))]
        return ChunkSizes(len(each), sum(each), max(each), max(self._lengths))

    def equalize(self, count: int) -> None:
        """Cut into exactly ``count`` chunks, no fewer than there are."""
        self._chunks = self._cutting.cut(self._lengths, count)

    def tokens(self, number: int) -> int:
        """Tokens of chunk ``number``, padding included."""
        return self._cutting.tokens(self._lengths, self._chunks[number])

    def forward(self, engine: Any, number: int) -> Embeddings:
        """Run chunk ``number`` through the engine. A second call draws the same dropout, from (seed, number)."""
        if self._seed is not None:
            seed_generators(seed_of(self._seed, number), self._ranks.on_cuda)
        inputs = self._model.collate([self._encoded[i] for i in self._chunks[number]])
        moved = {name: value.to(self._ranks.device, non_blocking=True) for name, value in inputs.items()}
        result: Embeddings = engine(**moved)
        return result

    def in_order(self, parts: Sequence[Embeddings]) -> Embeddings:
        """Join the chunks' embeddings and put them back into the order of the texts."""
        order = torch.tensor([index for chunk in self._chunks for index in chunk])
        back = torch.empty(len(self._encoded), dtype=torch.int64)
        back[order] = torch.arange(len(order))
        return select(concat(parts), back.to(self._ranks.device))


def chunks_of_ranks(
    shares: Sequence[Sequence[Encoded]], engine: EngineConfig, cutting: ChunkRule
) -> list[tuple[list[int], list[list[int]]]]:
    """The lengths of each rank's texts and the chunks that its :class:`Chunks` has in a run, without running it."""
    lengths = [cutting.lengths(share) for share in shares]
    cuts = [cutting.cut(each) for each in lengths]
    if engine.needs_equal_chunks(len(shares)):
        most = max(map(len, cuts))
        cuts = [cutting.cut(each, most) for each in lengths]
    return list(zip(lengths, cuts, strict=True))


def cut(lengths: Sequence[int], budget: int, count: int | None = None, *, packed: bool = False) -> list[list[int]]:
    """Cut the indices of ``lengths`` into chunks, the longest texts first.

    A chunk's texts × its longest length (the sum of its lengths where it is ``packed``) stays within ``budget`` tokens;
    a single longer text is its own chunk. Within that, padding and chunks are as cheap as they can be together, a chunk
    being worth a sixteenth of the budget. With ``count`` there are exactly that many chunks, at least as many as
    without: the largest are halved, and where texts run out the shortest text is repeated (ZeRO-3 needs every rank to
    run the same number of forwards). Longest first also shows at the first chunk of the first step whether memory
    suffices.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    sizes = np.maximum(1, np.asarray([lengths[i] for i in order], dtype=np.int64))
    starts = _filled(sizes, budget) if packed else _cheapest(sizes, budget, budget // PRICE)
    chunks = [order[start:stop] for start, stop in pairwise([*starts, len(order)])]
    return chunks if count is None else _exactly(chunks, count)


def _filled(sizes: NDArray[np.int64], budget: int) -> list[int]:
    """The starts of chunks that are filled one after another."""
    starts, used = [0], 0
    for at, size in enumerate(sizes.tolist()):
        if used and used + size > budget:
            starts.append(at)
            used = 0
        used += size
    return starts


def _cheapest(sizes: NDArray[np.int64], budget: int, price: int) -> list[int]:
    """The starts of chunks for which padded tokens plus ``price`` tokens per chunk are fewest.

    ``sizes`` do not increase. Shortest paths over the places where one may cut; every path keeps to the budget.
    """
    total = len(sizes)
    cost = np.full(total + 1, np.iinfo(np.int64).max)
    before = np.zeros(total + 1, dtype=np.int64)
    cost[0] = 0
    for start, size in enumerate(sizes.tolist()):
        most = min(total - start, max(1, budget // size))
        offered = cost[start] + price + size * np.arange(1, most + 1)
        places = start + 1 + np.flatnonzero(offered < cost[start + 1 : start + most + 1])
        cost[places] = offered[places - start - 1]
        before[places] = start
    starts, at = [], total
    while at > 0:
        at = int(before[at])
        starts.append(at)
    return starts[::-1]


def _exactly(chunks: list[list[int]], count: int) -> list[list[int]]:
    assert chunks, "no texts to cut"
    while len(chunks) < count:
        position = max(range(len(chunks)), key=lambda i: len(chunks[i]))
        chunk = chunks[position]
        if len(chunk) == 1:
            return chunks + [list(chunks[-1]) for _ in range(count - len(chunks))]
        half = len(chunk) // 2
        chunks[position : position + 1] = [chunk[:half], chunk[half:]]
    return chunks


def padded_tokens(lengths: Sequence[int], chunks: Sequence[Sequence[int]]) -> int:
    """Tokens the hardware sees, padding included."""
    return sum(len(chunk) * max(lengths[i] for i in chunk) for chunk in chunks)
