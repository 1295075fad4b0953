"""One forward and backward over a global batch: encode in chunks, put back in order, gather, loss, backward.

Two strategies give the same gradient. *Direct* keeps the graphs of all chunks until the backward. *Cached* (GradCache,
Gao et al. 2021, arXiv 2101.06983) encodes without graphs, takes the loss's gradient of the embeddings, and encodes
again chunk by chunk with that gradient as the upstream: memory of one chunk, for a second forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from embed_core.config.run import EngineConfig
from embed_core.embeddings import concat, detach, map_values, select, values
from embed_core.engine import chunking
from embed_core.engine.gather import GlobalBatch, gather_embeddings, sum_parts
from embed_core.engine.host_batch import HostBatch
from embed_core.engine.ranks import Ranks
from embed_core.engine.seeds import seed_of
from embed_core.engine.sharding import needs_equal_chunks
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
    """Runs global batches through the engine. Stateless between calls."""

    def __init__(self, engine: Any, model: Model, loss: Loss, config: EngineConfig, ranks: Ranks) -> None:
        self.engine, self.model, self.loss, self.config, self.ranks = engine, model, loss, config, ranks

    def forward_backward(self, host: HostBatch, step: int, *, seed: int = 0, last: bool = True) -> StepOutput:
        """Accumulate the gradient of ``host``'s global batch.

        The same on every number of ranks, with any chunking and either strategy. ``seed`` is this rank's for dropout;
        ``last`` says whether the optimizer steps after this batch, so that gradients are reduced now.
        """
        chunks = Chunks(host.encoded, self.model, self.config, self.ranks, seed)
        shared = GlobalBatch(host, step, self.ranks)
        run = self._cached if self.config.strategy == "cached" else self._direct
        output = run(chunks, shared, last)
        padded_all = sum(self.ranks.gather(chunks.padded_tokens))
        return StepOutput(output.loss.detach(), dict(output.metrics), shared.rows, shared.tokens, padded_all)

    def _direct(self, chunks: Chunks, shared: GlobalBatch, last: bool) -> LossOutput:
        parts = [chunks.forward(self.engine, number) for number in range(len(chunks))]
        output = self._loss(chunks.in_order(parts), shared)
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(output.loss)
        return output

    def _cached(self, chunks: Chunks, shared: GlobalBatch, last: bool) -> LossOutput:
        with torch.no_grad():
            parts = [detach(chunks.forward(self.engine, number)) for number in range(len(chunks))]
        leaves = [map_values(part, lambda value: value.requires_grad_()) for part in parts]
        output = self._loss(chunks.in_order(leaves), shared)
        own = [p for p in self._loss_parameters() if p.requires_grad]
        flat = [value for leaf in leaves for value in values(leaf)]
        gradients = iter(torch.autograd.grad(output.loss, flat, retain_graph=bool(own), allow_unused=True))
        for number in range(len(chunks)):
            final = number == len(chunks) - 1
            again = values(chunks.forward(self.engine, number))
            # The product's gradient is the one that was cached; a kind no loss used takes part with zero, so that
            # under ZeRO-3 every rank runs the same backwards.
            surrogate = torch.stack([_product(value, next(gradients)) for value in again]).sum()
            if number == 0 and own:
                # Parameters of the loss: its graph ends at the cached embeddings, so nothing is counted twice. With
                # the first chunk, because ZeRO-3 overwrites the last step's gradients at the first backward only.
                surrogate = surrogate + output.loss
            self.engine.set_gradient_accumulation_boundary(last and final)
            self.engine.backward(surrogate)
        return output

    def _loss(self, local: Embeddings, shared: GlobalBatch) -> LossOutput:
        parts = self.ranks.world_size > 1 and getattr(self.loss, "shares_rows", False)
        texts = gather_embeddings(local, self.ranks, parts=parts)
        batch = Batch(select(texts, shared.query_index_B), select(texts, shared.passage_index_P))
        if not parts:
            return self.loss(batch, shared.targets)
        return sum_parts(self.loss(batch, shared.targets._replace(own_rows=shared.own_rows)), self.ranks)

    def _loss_parameters(self) -> Sequence[Tensor]:
        return list(self.loss.parameters()) if isinstance(self.loss, torch.nn.Module) else []


class Chunks:
    """This rank's distinct texts, sorted by length and cut to the token budget, as often as all ranks must."""

    def __init__(
        self, encoded: Sequence[Encoded], model: Model, config: EngineConfig, ranks: Ranks, seed: int | None = None
    ) -> None:
        self._encoded, self._model, self._ranks, self._seed = encoded, model, ranks, seed
        lengths = [item.length for item in encoded]
        self._chunks = chunking.cut(lengths, config.token_budget)
        if needs_equal_chunks(config, ranks.world_size):
            self._chunks = chunking.cut(lengths, config.token_budget, ranks.largest(len(self._chunks)))
        self.padded_tokens = chunking.padded_tokens(lengths, self._chunks)

    def __len__(self) -> int:
        return len(self._chunks)

    def forward(self, engine: Any, number: int) -> Embeddings:
        """Chunk ``number`` through the engine. Dropout is a function of (seed, number): a second call repeats it."""
        if self._seed is not None:
            torch.manual_seed(seed_of(self._seed, number))
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


def _product(value: Tensor, gradient: Tensor | None) -> Tensor:
    return (value * (torch.zeros_like(value) if gradient is None else gradient)).sum()
