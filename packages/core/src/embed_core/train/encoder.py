"""The model as evaluators see it: it encodes without gradient, in length-sorted chunks, each rank its own texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from embed_core.batch.chunks import Chunks
from embed_core.config.run import EngineConfig
from embed_core.distributed.process_group import Ranks
from embed_core.embeddings import select
from embed_core.protocols import Model
from embed_core.text.token_cache import Tokenizes
from embed_core.types import Embeddings, Item, Role, ScoreWeights


class EngineEncoder:
    """Implements :class:`embed_core.protocols.Encoder` over the engine."""

    def __init__(
        self, engine: Any, model: Model, config: EngineConfig, ranks: Ranks, tokens: Tokenizes | None = None
    ) -> None:
        """``tokens`` tokenises in place of the model, and may keep token lists from one evaluation to the next."""
        self.engine, self.model, self.config, self.ranks = engine, model, config, ranks
        self.tokens: Tokenizes = tokens if tokens is not None else model
        self.scores: Mapping[str, ScoreWeights] = model.scores
        self.rank, self.world_size = ranks.rank, ranks.world_size

    def encode(self, items: Sequence[Item], role: Role) -> Embeddings:
        """Encode ``items`` on this rank, in their order. Under ZeRO-3 a collective, also where there are no items."""
        # A rank without texts takes part in the forwards with an empty one, and so learns the kinds of embeddings.
        texts = list(items) or [""]
        encoded = self.tokens.tokenize(texts, role, [None] * len(texts))
        training = self.engine.module.training
        self.engine.eval()
        try:
            with torch.no_grad():
                chunks = Chunks(encoded, self.model, self.config, self.ranks)
                embeddings = chunks.in_order([chunks.forward(self.engine, n) for n in range(len(chunks))])
        finally:
            self.engine.train(training)
        return embeddings if items else select(embeddings, torch.empty(0, dtype=torch.int64))

    def gather(self, value: Any) -> list[Any]:
        """``value`` of every rank, in rank order."""
        return self.ranks.gather(value)
