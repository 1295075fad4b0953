"""Runs one forward and backward over a global batch: encode in chunks, reorder, gather, loss, backward.

Two strategies give the same gradient. *Direct* keeps the graphs of all chunks until the backward. *Cached* (GradCache,
Gao et al. 2021, arXiv 2101.06983) encodes without graphs, takes the loss's gradient of the embeddings, and encodes
again chunk by chunk with that gradient as the upstream: memory of one chunk, for a second forward of all but one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from embed_core.batch.chunks import Chunks, ChunkSizes
from embed_core.batch.collate import HostBatch
from embed_core.batch.global_batch import GlobalBatch
from embed_core.config.run import EngineConfig
from embed_core.distributed.collectives import gather_embeddings, gather_numbers, sum_parts
from embed_core.distributed.process_group import Ranks
from embed_core.embeddings import detach, map_values, select, values
from embed_core.errors import EmbedError
from embed_core.hardware.oom import OutOfMemoryError, first_line, is_out_of_memory
from embed_core.protocols import Announce, Loss, Model, shares_rows
from embed_core.train.strategy import Probe, Strategy, StrategyChooser
from embed_core.types import Batch, Embeddings, LossOutput
from embed_core.zero.reset import reserved_bytes

T = TypeVar("T")


class RankNotes(NamedTuple):
    """What each rank tells the others along with the exchange of a global batch, in integers."""

    checkpoint_due: int
    """1 where rank 0 asks for a checkpoint after this step; only rank 0's note counts."""
    squared_lengths: int
    """Sum of the squared lengths of the rank's distinct texts, in tokens."""
    chunks: int
    padded_tokens: int
    chunk_tokens: int
    text_tokens: int

    @property
    def sizes(self) -> ChunkSizes:
        """The sizes of the rank's chunks."""
        return ChunkSizes(self.chunks, self.padded_tokens, self.chunk_tokens, self.text_tokens)


@dataclass(frozen=True, slots=True)
class StepOutput:
    """The results of one forward and backward, the same on every rank."""

    loss: Tensor
    metrics: dict[str, Tensor]
    rows: int
    tokens: int
    padded_tokens: int
    row_ids: Tensor
    """int64 row ids of the global batch."""
    checkpoint_due: bool
    """Whether rank 0 asked for a checkpoint after this step."""
    squared_lengths: int
    """Sum of the squared lengths of the texts in tokens, over all ranks: the cost of attention grows with it."""


class Step:
    """Runs global batches through the engine. Between calls it remembers only what fits in memory."""

    def __init__(
        self,
        engine: Any,
        model: Model,
        loss: Loss,
        config: EngineConfig,
        ranks: Ranks,
        announce: Announce = lambda line: None,
    ) -> None:
        self.engine, self.model, self.loss, self.ranks = engine, model, loss, ranks
        self.chooser = StrategyChooser(config, ranks, announce)
        self._stage = config.effective_stage
        self._tried: tuple[ChunkSizes, Strategy] | None = None

    def forward_backward(
        self, host: HostBatch, step: int, *, seed: int = 0, last: bool = True, checkpoint_due: bool = False
    ) -> StepOutput:
        """Accumulate the gradient of ``host``'s global batch.

        The same on every number of ranks, with any chunking and either strategy. ``seed`` is this rank's for dropout;
        ``last`` says whether the optimizer steps after this batch, so that gradients are reduced now. Rank 0's
        ``checkpoint_due`` travels to all ranks with the numbers that they exchange anyway.

        Raises OutOfMemoryError, on all ranks alike, where memory did not suffice and another attempt may be made after
        :func:`embed_core.zero.reset.drop_gradients` and :meth:`shrink`; EmbedError where the ranks cannot go back.
        """
        config = self.chooser.config
        chunks = Chunks(host.encoded, self.model, config, self.ranks, seed, equal=False)
        own = RankNotes(int(checkpoint_due), host.squared_lengths, *chunks.sizes)
        shared = GlobalBatch(host, step, self.ranks, own)
        notes = [RankNotes(*numbers) for numbers in shared.notes]
        sizes = ChunkSizes.largest([note.sizes for note in notes])
        if config.needs_equal_chunks(self.ranks.world_size):
            chunks.equalize(sizes.chunks)
        output, padded_tokens = self._watched(lambda: self._run(chunks, shared, sizes, last), sizes)
        return StepOutput(
            loss=output.loss.detach(),
            metrics=dict(output.metrics),
            rows=shared.rows,
            tokens=shared.tokens,
            padded_tokens=padded_tokens,
            row_ids=shared.targets.row_ids_B,
            checkpoint_due=bool(notes[0].checkpoint_due),
            squared_lengths=sum(note.squared_lengths for note in notes),
        )

    def shrink(self) -> None:
        """Take less memory from here on, after OutOfMemoryError. Raises EmbedError where less is not possible."""
        assert self._tried is not None, "nothing has failed"
        self.chooser.shrink(*self._tried)

    def _watched(self, function: Callable[[], T], sizes: ChunkSizes) -> T:
        """Call ``function``; where memory runs out raise one of the two errors of :meth:`forward_backward`."""
        try:
            return function()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            cause = first_line(error)
        # Raise outside of the handler: the caught error holds the frames, and so the tensors, of the failed attempt.
        if self.ranks.world_size == 1:
            raise OutOfMemoryError
        raise EmbedError(
            f"rank {self.ranks.rank} ran out of memory where {self.ranks.world_size} ranks cannot go back together "
            f"({cause}): set {self.chooser.remedy(sizes)}"
        )

    def _together(self, function: Callable[[], T], number: int = 0, *, collective: bool = False) -> tuple[T, int]:
        """Call ``function``, and return its result and the sum of ``number`` over the ranks.

        At the end the ranks tell each other whether memory sufficed. Where it did not on one of them, all raise
        OutOfMemoryError, unless ``function`` is ``collective``: the others then wait inside, and nobody can tell them.
        """
        failed, result = 0, None
        try:
            result = function()
        except Exception as error:
            if not is_out_of_memory(error) or (collective and self.ranks.world_size > 1):
                raise
            failed = 1
        told = gather_numbers((failed, number), self.ranks)
        if any(rank_failed for rank_failed, _ in told):
            raise OutOfMemoryError
        return cast(T, result), sum(numbers for _, numbers in told)

    def _run(self, chunks: Chunks, shared: GlobalBatch, sizes: ChunkSizes, last: bool) -> tuple[LossOutput, int]:
        self._tried = (sizes, "cached")
        if self.chooser.must_measure(sizes):
            reserved = reserved_bytes(self.engine, self.ranks.world_size)
            probes = [self._probe(chunks, number) for number in (len(chunks) - 1, 0)]
            with self.engine.module.together():
                self.chooser.measure(probes, reserved, sizes)
        strategy = self.chooser.strategy(sizes)
        self._tried = (sizes, strategy)
        return (self._cached if strategy == "cached" else self._direct)(chunks, shared, last)

    def _probe(self, chunks: Chunks, number: int) -> Probe:
        return Probe(lambda: chunks.forward(self.engine, number), chunks.tokens(number))

    def _direct(self, chunks: Chunks, shared: GlobalBatch, last: bool) -> tuple[LossOutput, int]:
        with self.engine.module.together():
            parts, padded_tokens = self._encode(chunks)
        output = self._loss(chunks.in_order(parts), shared)
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(output.loss)
        return output, padded_tokens

    def _cached(self, chunks: Chunks, shared: GlobalBatch, last: bool) -> tuple[LossOutput, int]:
        parts, padded_tokens = self._encode(chunks, graph_of_the_last=True)
        leaves = [map_values(detach(part), lambda value: value.requires_grad_()) for part in parts]
        graph = [parts.pop()]
        output = self._loss(chunks.in_order(leaves), shared)
        own = [p for p in self._loss_parameters() if p.requires_grad]
        flat = [value for leaf in leaves for value in values(leaf)]
        given = iter(torch.autograd.grad(output.loss, flat, retain_graph=bool(own), allow_unused=True))
        gradients = [[next(given) for _ in values(leaf)] for leaf in leaves]
        # Start with the last chunk, whose graph is kept; the others are encoded again.
        order = [len(chunks) - 1, *range(len(chunks) - 1)]

        def surrogate(place: int) -> Tensor:
            number = order[place]
            # The gradient of this product is the cached gradient. A kind of embedding that no loss used takes part
            # with zeros, so that under ZeRO-3 every rank runs the same backwards.
            encoded = graph.pop() if place == 0 else self._again(chunks, number, final=place == len(chunks) - 1)
            products = [_product(v, g) for v, g in zip(values(encoded), gradients[number], strict=True)]
            # The loss itself joins, for its own parameters. Its graph ends at the cached embeddings, so nothing is
            # counted twice. It joins first, because ZeRO-3 overwrites old gradients at the first backward only.
            if place == 0 and own:
                products.append(output.loss)
            if place == len(chunks) - 1 and self.engine.module.tables is not None:
                products += self.engine.module.tables.unclaimed()
            return torch.stack(products).sum()

        def all_but_the_last_backward() -> Tensor:
            self.engine.set_gradient_accumulation_boundary(False)
            for place in range(len(chunks) - 1):
                self.engine.backward(surrogate(place))
            return surrogate(len(chunks) - 1)

        # Stages 0 and 1 have communicated nothing so far, so the ranks can still go back together.
        final, _ = self._together(all_but_the_last_backward, collective=self._stage >= 2)
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(final)
        return output, padded_tokens

    def _again(self, chunks: Chunks, number: int, *, final: bool) -> Embeddings:
        """Encode chunk ``number`` with its graph. At stage 0 tables hold gradient sums until the ``final`` chunk."""
        with self.engine.module.together(hold=not final and self._stage == 0):
            return chunks.forward(self.engine, number)

    def _encode(self, chunks: Chunks, *, graph_of_the_last: bool = False) -> tuple[list[Embeddings], int]:
        """Encode all chunks; also return the padded tokens of all ranks.

        With ``graph_of_the_last`` that chunk alone keeps a graph, which takes what every chunk will take in its turn.
        """

        def encode() -> list[Embeddings]:
            if not graph_of_the_last:
                return [chunks.forward(self.engine, number) for number in range(len(chunks))]
            last = len(chunks) - 1
            with torch.no_grad(), self.engine.module.together():
                parts = [chunks.forward(self.engine, number) for number in range(last)]
            return [*parts, self._again(chunks, last, final=last == 0)]

        padded_tokens = sum(chunks.tokens(number) for number in range(len(chunks)))
        return self._together(encode, padded_tokens, collective=self._stage == 3)

    def _loss(self, local: Embeddings, shared: GlobalBatch) -> LossOutput:
        parts = self.ranks.world_size > 1 and shares_rows(self.loss)
        texts = gather_embeddings(local, self.ranks, shared.texts, parts=parts)
        batch = Batch(select(texts, shared.query_index_B), select(texts, shared.passage_index_P))
        if not parts:
            return self.loss(batch, shared.targets)
        return sum_parts(self.loss(batch, shared.targets._replace(own_rows=shared.own_rows)), self.ranks)

    def _loss_parameters(self) -> Sequence[Tensor]:
        return list(self.loss.parameters()) if isinstance(self.loss, torch.nn.Module) else []


def _product(value: Tensor, gradient: Tensor | None) -> Tensor:
    return (value * (torch.zeros_like(value) if gradient is None else gradient)).sum()
