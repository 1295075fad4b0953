"""One forward and backward over a global batch: encode in chunks, put back in order, gather, loss, backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from embed_core.config.run import EngineConfig
from embed_core.embeddings import concat, select
from embed_core.engine import chunking
from embed_core.engine.gather import GlobalBatch, gather_embeddings
from embed_core.engine.host_batch import HostBatch
from embed_core.engine.ranks import Ranks
from embed_core.engine.sharding import effective_stage
from embed_core.protocols import Loss, Model
from embed_core.types import Batch, Embeddings, Encoded, LossOutput


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a forward and backward tell."""

    loss: Tensor
    metrics: dict[str, Tensor]
    rows: int
    tokens: int
    padded_tokens: int


class Step:
    """Runs one global batch through the engine. Stateless between calls."""

    def __init__(self, engine: Any, model: Model, loss: Loss, config: EngineConfig, ranks: Ranks) -> None:
        self.engine, self.model, self.loss, self.config, self.ranks = engine, model, loss, config, ranks

    def forward_backward(self, host: HostBatch, step: int) -> StepOutput:
        """Accumulates the gradient of ``host``'s global batch. The same on every number of ranks and any chunking."""
        output, shared, padded = self.forward(host, step)
        self.engine.backward(output.loss)
        padded_all = sum(self.ranks.gather(padded))
        return StepOutput(output.loss.detach(), dict(output.metrics), shared.rows, shared.tokens, padded_all)

    def forward(self, host: HostBatch, step: int) -> tuple[LossOutput, GlobalBatch, int]:
        """The loss of the global batch, its indices and targets, and this rank's padded tokens."""
        shared = GlobalBatch(host, step, self.ranks)
        local, padded = encode(self.engine, self.model, host.encoded, self.config, self.ranks)
        texts = gather_embeddings(local, self.ranks)
        batch = Batch(select(texts, shared.query_index_B), select(texts, shared.passage_index_P))
        return self.loss(batch, shared.targets), shared, padded


def encode(
    engine: Any, model: Model, encoded: Sequence[Encoded], config: EngineConfig, ranks: Ranks
) -> tuple[Embeddings, int]:
    """``encoded`` through the engine in length-sorted chunks → embeddings in the given order, padded tokens.

    Under ZeRO-3 a forward is a collective, so every rank cuts as many chunks as the one that needs most.
    """
    lengths = [item.length for item in encoded]
    chunks = chunking.cut(lengths, config.token_budget)
    if effective_stage(config) == 3 and ranks.world_size > 1:
        chunks = chunking.cut(lengths, config.token_budget, ranks.largest(len(chunks)))
    parts = [engine(**_inputs(model, [encoded[i] for i in chunk], ranks)) for chunk in chunks]
    order = [index for chunk in chunks for index in chunk]
    back = torch.empty(len(encoded), dtype=torch.int64)
    back[torch.tensor(order)] = torch.arange(len(order))
    return select(concat(parts), back.to(ranks.device)), chunking.padded_tokens(lengths, chunks)


def _inputs(model: Model, chunk: Sequence[Encoded], ranks: Ranks) -> dict[str, Tensor]:
    return {name: value.to(ranks.device, non_blocking=True) for name, value in model.collate(chunk).items()}
