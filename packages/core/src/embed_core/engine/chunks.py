"""A rank's texts of one step, cut into chunks that go through the model one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from embed_core.config.run import EngineConfig
from embed_core.embeddings import concat, select
from embed_core.engine.chunking import Cutting
from embed_core.engine.fit import Sizes
from embed_core.engine.ranks import Ranks
from embed_core.engine.seeds import seed_generators, seed_of
from embed_core.engine.sharding import needs_equal_chunks
from embed_core.protocols import Model
from embed_core.types import Embeddings, Encoded


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
        self._cutting = Cutting.of(model, config.chunk_tokens)
        self._lengths = self._cutting.lengths(encoded)
        self._chunks = self._cutting.cut(self._lengths)
        if equal and needs_equal_chunks(config, ranks.world_size):
            self.equalize(ranks.largest(len(self._chunks)))

    def __len__(self) -> int:
        return len(self._chunks)

    @property
    def sizes(self) -> Sizes:
        """In numbers."""
        each = [self.tokens(number) for number in range(len(self._chunks))]
        return Sizes(len(each), sum(each), max(each), max(self._lengths))

    def equalize(self, count: int) -> None:
        """Cut into exactly ``count`` chunks, no fewer than there are."""
        self._chunks = self._cutting.cut(self._lengths, count)

    def tokens(self, number: int) -> int:
        """Tokens of chunk ``number``, padding included."""
        return self._cutting.tokens(self._lengths, self._chunks[number])

    def forward(self, engine: Any, number: int) -> Embeddings:
        """Chunk ``number`` through the engine. Dropout is a function of (seed, number): a second call repeats it."""
        if self._seed is not None:
            seed_generators(seed_of(self._seed, number), self._ranks.on_cuda)
        inputs = self._model.collate([self._encoded[i] for i in self._chunks[number]])
        moved = {name: value.to(self._ranks.device, non_blocking=True) for name, value in inputs.items()}
        result: Embeddings = engine(**moved)
        return result

    def in_order(self, parts: Sequence[Embeddings]) -> Embeddings:
        """The chunks' embeddings, text by text as they were given."""
        order = torch.tensor([index for chunk in self._chunks for index in chunk])
        back = torch.empty(len(self._encoded), dtype=torch.int64)
        back[order] = torch.arange(len(order))
        return select(concat(parts), back.to(self._ranks.device))
