"""Measures the memory and the time of a global batch's loss, on the loss itself.

The loss gets random embeddings of the model's kinds and widths, as many values per token as the model gives, so that
thousands of texts need no forward. A batch that would take too long is measured in two smaller sizes, which say how
much grows with the rows and how much with their square.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from embed_core.batch.collate import make_host_batch
from embed_core.batch.global_batch import GlobalBatch
from embed_core.distributed.process_group import Ranks
from embed_core.embeddings import map_values, offsets_of, select, values
from embed_core.profiling.activation_memory import trace_on_cpu, trace_on_gpu
from embed_core.protocols import shares_rows
from embed_core.types import Batch, Embeddings, Example, MultiVectors, SparseVectors

FIRST_ROWS = 32
LONGEST_SECONDS = 4.0
"""A size that would take longer is not measured."""


@dataclass(frozen=True, slots=True)
class LossCost:
    """The cost of one global batch's loss on one rank."""

    peak: float
    """Peak bytes of the loss's forward and backward, besides the embeddings."""
    embeddings: float
    """Bytes of the gathered embeddings and their gradients."""
    seconds: float
    """Seconds of one forward and backward."""
    measured_rows: int
    """Rows of the largest batch that was measured; larger batches are extrapolated."""


class LossProbe:
    """Measures ``loss`` over the rows of ``examples`` as one of ``ranks`` ranks does."""

    def __init__(self, loss: Any, model: Any, sample: Embeddings, tokens: int, ranks: int, device: str) -> None:
        """``sample`` are the embeddings of some texts of ``tokens`` tokens in all."""
        self.loss, self.model, self.sample, self.tokens = loss, model, sample, tokens
        self.ranks, self.device = ranks, device
        if isinstance(loss, nn.Module):
            loss.to(device)

    def measure(self, examples: Sequence[Example], *, deduplicate: bool) -> LossCost:
        """Measure twice as many rows each time, up to all, while the next size should take seconds at most."""
        points: list[tuple[int, float, float]] = []
        rows = min(len(examples), FIRST_ROWS)
        self._once(examples[:rows], deduplicate)  # first calls take longer
        while True:
            peak, seconds = self._once(examples[:rows], deduplicate)
            points.append((rows, peak, seconds))
            if rows == len(examples) or 4 * seconds > LONGEST_SECONDS:
                break
            rows = min(len(examples), 2 * rows)
        whole = make_host_batch(self.model, examples, deduplicate=deduplicate)
        texts = synthetic(self.sample, self.tokens, [one.length for one in whole.encoded])
        held = 2.0 * sum(value.numel() * value.element_size() for value in values(texts))
        known = points[-2:]
        peak = _grown([(rows, peak) for rows, peak, _ in known], len(examples))
        seconds = _grown([(rows, seconds) for rows, _, seconds in known], len(examples))
        return LossCost(peak, held, seconds, points[-1][0])

    def _once(self, examples: Sequence[Example], deduplicate: bool) -> tuple[float, float]:
        """Peak bytes and seconds of the loss over ``examples``."""
        host = make_host_batch(self.model, examples, deduplicate=deduplicate)
        shared = GlobalBatch(host, 0, Ranks(0, 1, 0, self.device))
        texts = synthetic(self.sample, self.tokens, [one.length for one in host.encoded])
        texts = map_values(texts, lambda value: value.requires_grad_())
        targets = shared.targets
        if self.ranks > 1 and shares_rows(self.loss):
            targets = targets._replace(own_rows=(0, max(1, len(examples) // self.ranks)))

        def forward() -> list[Tensor]:
            batch = Batch(select(texts, shared.query_index_B), select(texts, shared.passage_index_P))
            return [self.loss(batch, targets).loss]

        started = time.perf_counter()
        torch.autograd.backward(forward())  # gives the leaves gradients, which the trace has to ignore
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - started
        own = list(self.loss.parameters()) if isinstance(self.loss, nn.Module) else []
        leaves = [*values(texts), *own]
        if self.device != "cpu":
            return trace_on_gpu(forward, self.device).peak, seconds
        known = [*leaves, *(leaf.grad for leaf in leaves if leaf.grad is not None)]
        return trace_on_cpu(forward, known).peak, seconds


def synthetic(sample: Embeddings, tokens: int, lengths: Sequence[int]) -> Embeddings:
    """Random embeddings of texts of ``lengths`` tokens, with as many values per token as ``sample`` has of ``tokens``.

    Dense vectors and token vectors have the sample's mean norm; a text's lexical ids differ from one another.
    """
    lengths_N = torch.tensor(lengths)
    dense_ND = sparse = multi = None
    if sample.dense_ND is not None:
        dense_ND = _like(sample.dense_ND, len(lengths))
    if sample.sparse is not None:
        flat_K = sample.sparse.weights_K
        counts_N = _counts(lengths_N, len(flat_K), tokens)
        offsets_N1 = offsets_of(counts_N)
        total = int(offsets_N1[-1])
        ids_K = torch.arange(total) - torch.repeat_interleave(offsets_N1[:-1], counts_N)
        weights_K = torch.rand(total, dtype=flat_K.dtype, device=flat_K.device)
        sparse = SparseVectors(weights_K, ids_K.to(flat_K.device), offsets_N1.to(flat_K.device))
    if sample.multi is not None:
        counts_N = _counts(lengths_N, len(sample.multi.vectors_TC), tokens)
        vectors_TC = _like(sample.multi.vectors_TC, int(counts_N.sum()))
        multi = MultiVectors(vectors_TC, offsets_of(counts_N).to(vectors_TC.device))
    return Embeddings(dense_ND, sparse, multi)


def _counts(lengths_N: Tensor, found: int, tokens: int) -> Tensor:
    return (lengths_N * found / tokens).round().long().clamp(min=1)


def _like(sample: Tensor, rows: int) -> Tensor:
    drawn = torch.randn(rows, sample.shape[1], dtype=sample.dtype, device=sample.device)
    return nn.functional.normalize(drawn, dim=-1) * sample.detach().norm(dim=-1).mean()


def _grown(points: Sequence[tuple[int, float]], rows: int) -> float:
    """Extrapolate to ``rows`` by a·rows + b·rows² through the two points, with a and b not below 0."""
    last_rows, last = points[-1]
    if last_rows == rows:
        return last
    if len(points) == 1:  # one size took long already: assume the faster growth
        return last * (rows / last_rows) ** 2
    first_rows, first = points[0]
    square = max(0.0, (last / last_rows - first / first_rows) / (last_rows - first_rows))
    return max(0.0, last / last_rows - square * last_rows) * rows + square * rows**2
