"""Shows the exact batches of one optimizer step, without the steps before it: draws depend on (seed, number) alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from embed_core.batch.chunks import ChunkRule, chunks_of_ranks
from embed_core.batch.collate import HostBatch, make_host_batch
from embed_core.config.registry import Registry
from embed_core.config.run import EngineConfig, RunConfig
from embed_core.errors import ConfigError
from embed_core.inspection.parts import Parts
from embed_core.inspection.plan.target import ranks_of
from embed_core.protocols import Announce, Dataset
from embed_core.train.trainer import Pace
from embed_core.types import Example
from embed_core.utils.hashing import described
from embed_core.zero.engine import Trainable, apply_engine_options


@dataclass(frozen=True, slots=True)
class TextView:
    """One text of a row, as the step uses it."""

    part: str
    """``query``, ``positive`` or ``negative``."""
    text: str
    """The text as the dataset gave it, or the description of an item that is no text."""
    tokens: int
    """Tokens after truncation, special tokens and prompt included."""
    uses: int
    """Places of this rank's share that the text fills; it is encoded once for all of them."""
    score: float | None = None
    """The teacher's score, on its own scale."""
    key: str | None = None
    """External document id."""


@dataclass(frozen=True, slots=True)
class RowView:
    """One drawn row of a batch."""

    row: int
    rank: int
    source: str
    place: str
    """``file:line``."""
    texts: tuple[TextView, ...]
    """Query, positive, negatives."""
    known_positives: int
    """Positives the row has, the drawn one included: none of them serves as its negative."""
    query_prompt: str | None = None
    passage_prompt: str | None = None


@dataclass(frozen=True, slots=True)
class ChunkView:
    """Texts that one forward encodes together."""

    rank: int
    texts: int
    tokens: int
    """Tokens without padding."""
    padded_tokens: int
    longest: int
    """Tokens of the longest text, without padding."""


@dataclass(frozen=True, slots=True)
class BatchView:
    """One global batch."""

    draw: int
    """The batch's number, from 0 over all epochs."""
    rows: tuple[RowView, ...]
    chunks: tuple[ChunkView, ...]
    texts: int
    """Places that texts fill: queries and passages."""
    distinct_texts: int
    """Texts that are encoded, summed over the ranks."""
    tokens: int
    """Tokens of the distinct texts."""
    padded_tokens: int
    padding_share: float
    """Padding among all tokens the hardware sees, 0 to 1."""


@dataclass(frozen=True, slots=True)
class StepView:
    """One optimizer step."""

    step: int
    """The step's number from 1, as in the display."""
    total_steps: int
    world_size: int
    batches: tuple[BatchView, ...]
    """The step's batches, as many as ``train.gradient_accumulation_steps``."""
    phase: str = ""
    """Name of the phase the step is in; empty in a run without phases."""


def explain(
    config: RunConfig,
    registry: Registry,
    step: int,
    *,
    world_size: int = 1,
    dataset: Dataset | None = None,
    announce: Announce = lambda line: None,
) -> StepView:
    """Describe what step ``step`` (from 1) of the run trains on, on ``world_size`` ranks.

    ``dataset`` takes the place of ``config.data``'s. Raises ConfigError for a step the run does not have.
    """
    # The device of the run decides the token budget, and whether and how chunks are padded.
    ranks = ranks_of(1, on_gpu=torch.cuda.is_available() and config.engine.device != "cpu")
    phase, parts, pace, before = _phase_of(
        config, step, lambda one: Parts(one, registry, ranks, dataset=dataset, announce=announce)
    )
    model, first = parts.model(), (step - 1 - before) * pace.draws_per_step
    plain = parts.config.engine.model_copy(update={"compile": False, "gradient_checkpointing": False})
    apply_engine_options(Trainable(model, None), plain, ranks)
    batches = [_batch(parts, model, number, world_size) for number in range(first, first + pace.draws_per_step)]
    return StepView(step, before + pace.total_steps, world_size, tuple(batches), phase)


def _phase_of(config: RunConfig, step: int, build: Callable[[RunConfig], Parts]) -> tuple[str, Parts, Pace, int]:
    """Name, parts and pace of the phase that ``step`` is in, and the steps before that phase."""
    before = 0
    for name in [phase.name for phase in config.phases] or [""]:
        parts = build(config.only(name) if name else config)
        pace = Pace.of(parts.config, parts.sampler)
        if 1 <= step <= before + pace.total_steps:
            return name, parts, pace, before
        before += pace.total_steps
    raise ConfigError(
        f"--step {step}: this run has {before} steps: give one from 1 to {before}, "
        "or more train.epochs or train.max_steps"
    )


def _batch(parts: Parts, model: Any, number: int, world_size: int) -> BatchView:
    engine = parts.config.engine
    drawn = [parts.batches.examples(number, rank, world_size) for rank in range(world_size)]
    hosts = [make_host_batch(model, examples, deduplicate=engine.deduplicate) for examples in drawn]
    rows = [row for rank, host in enumerate(hosts) for row in _rows(drawn[rank], host, rank)]
    chunks = _chunks(hosts, engine, ChunkRule.of(model, engine.chunk_tokens))
    tokens, padded = sum(host.tokens for host in hosts), sum(chunk.padded_tokens for chunk in chunks)
    return BatchView(
        draw=number,
        rows=tuple(rows),
        chunks=tuple(chunks),
        texts=sum(len(row.texts) for row in rows),
        distinct_texts=sum(len(host.encoded) for host in hosts),
        tokens=tokens,
        padded_tokens=padded,
        # Counted within the chunks: a text that is repeated to give all ranks as many chunks is no padding.
        padding_share=1 - sum(chunk.tokens for chunk in chunks) / padded,
    )


def _rows(examples: Sequence[Example], host: HostBatch, rank: int) -> list[RowView]:
    uses = Counter([*host.query_index.tolist(), *host.passage_index.tolist()])
    passages = iter(host.passage_index.tolist())
    return [
        RowView(
            row=example.row,
            rank=rank,
            source=example.source,
            place=example.place,
            texts=tuple(_texts(example, [query, *(next(passages) for _ in example.passages)], host, uses)),
            known_positives=max(1, len(example.positives)),
            query_prompt=example.query_prompt,
            passage_prompt=example.passage_prompt,
        )
        for example, query in zip(examples, host.query_index.tolist(), strict=True)
    ]


def _texts(example: Example, indices: Sequence[int], host: HostBatch, uses: Counter[int]) -> list[TextView]:
    count = len(example.passages)
    return [
        TextView(part, described(item), host.encoded[index].length, uses[index], score, key)
        for part, item, index, score, key in zip(
            ("query", "positive", *["negative"] * (count - 1)),
            (example.query, *example.passages),
            indices,
            (None, *(example.scores or (None,) * count)),
            (None, *(example.passage_keys or (None,) * count)),
            strict=True,
        )
    ]


def _chunks(hosts: Sequence[HostBatch], engine: EngineConfig, cutting: ChunkRule) -> list[ChunkView]:
    """The chunks of every rank, as the run cuts them."""
    views = []
    shares = chunks_of_ranks([host.encoded for host in hosts], engine, cutting)
    for rank, (lengths, chunks) in enumerate(shares):
        for chunk in chunks:
            own = [hosts[rank].encoded[i].length for i in chunk]
            views.append(ChunkView(rank, len(chunk), sum(own), cutting.tokens(lengths, chunk), max(own)))
    return views
