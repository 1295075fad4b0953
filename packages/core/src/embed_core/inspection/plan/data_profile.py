"""Profiles the first batches of a run: lengths, padding, truncation, repeated texts. No model is run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from embed_core.batch.chunks import ChunkRule, chunks_of_ranks
from embed_core.batch.collate import HostBatch, make_host_batch
from embed_core.config.run import EngineConfig
from embed_core.inspection.parts import Parts
from embed_core.profiling.throughput import Shape
from embed_core.text.tokenizer import TextTokenizer
from embed_core.types import Example, Item, Role

Text = tuple[Item, str | None]
"""An item and its row's prompt."""


@dataclass(frozen=True, slots=True)
class ColumnView:
    """The texts of one column."""

    role: Role
    texts: int
    mean_tokens: float
    """Tokens after truncation, special tokens and prompt included."""
    longest: int
    """Tokens of the longest text, after truncation."""
    truncated_share: float | None
    """Share of the texts that are longer than the model's maximum; ``None`` for a model that does not tell."""
    tokens_lost_share: float | None
    """Share of all their tokens that is cut off with it."""


@dataclass(slots=True)
class DataProfile:
    """Sums over the batches and all ranks."""

    batches: int = 0
    rows: int = 0
    texts: int = 0
    """Places that texts fill: queries and passages."""
    distinct_texts: int = 0
    """Texts that are encoded."""
    tokens: int = 0
    """Tokens of the distinct texts."""
    squares: int = 0
    """Sum of their squared lengths."""
    chunk_tokens: int = 0
    padded_tokens: int = 0
    shares: list[list[Shape]] = field(default_factory=list)
    """The chunks of each rank of each batch."""
    columns: tuple[ColumnView, ...] = ()
    hosts: list[HostBatch] = field(default_factory=list)
    """The shares of the first batch, rank by rank."""

    @property
    def padding_share(self) -> float:
        """The share of padding among all tokens that the hardware sees, 0 to 1."""
        # Counted within the chunks: a text that is repeated to give all ranks as many chunks is no padding.
        return 1 - self.chunk_tokens / self.padded_tokens

    @property
    def repeated_share(self) -> float:
        """The share of texts that need no encoding because an equal text is encoded."""
        return 1 - self.distinct_texts / self.texts


def profile_data(parts: Parts, model: Any, batches: int, ranks: int) -> DataProfile:
    """Profile the first ``batches`` batches of a run on ``ranks`` ranks."""
    found = DataProfile(batches=batches)
    columns: dict[Role, _Column] = {"query": _Column(model, "query"), "passage": _Column(model, "passage")}
    for number in range(batches):
        drawn = [parts.batches.examples(number, rank, ranks) for rank in range(ranks)]
        hosts = [make_host_batch(model, examples, deduplicate=parts.config.engine.deduplicate) for examples in drawn]
        _add(found, hosts, parts.config.engine, ChunkRule.of(model, parts.config.engine.chunk_tokens))
        found.hosts = found.hosts or hosts
        for examples, host in zip(drawn, hosts, strict=True):
            lengths = [one.length for one in host.encoded]
            columns["query"].add(_queries(examples), [lengths[i] for i in host.query_index])
            columns["passage"].add(_passages(examples), [lengths[i] for i in host.passage_index])
    found.columns = tuple(column.view() for column in columns.values())
    return found


def _add(found: DataProfile, hosts: Sequence[HostBatch], engine: EngineConfig, cutting: ChunkRule) -> None:
    shares = chunks_of_ranks([host.encoded for host in hosts], engine, cutting)
    for host, (padded, chunks) in zip(hosts, shares, strict=True):
        lengths = [one.length for one in host.encoded]
        found.rows += host.rows
        found.texts += len(host.query_index) + len(host.passage_index)
        found.distinct_texts += len(lengths)
        found.tokens += sum(lengths)
        found.squares += sum(length * length for length in lengths)
        found.chunk_tokens += sum(lengths[i] for chunk in chunks for i in chunk)
        seen = [cutting.tokens(padded, chunk) for chunk in chunks]
        found.padded_tokens += sum(seen)
        found.shares.append([Shape(len(chunk), own / len(chunk)) for chunk, own in zip(chunks, seen, strict=True)])


class _Column:
    """Sums over the texts of one column, repeated ones as often as they occur."""

    def __init__(self, model: Any, role: Role) -> None:
        self.role, self._tokenizer = role, text_tokenizer(model)
        self._lengths: list[int] = []
        self._cut: list[int] | None = []

    def add(self, texts: Iterable[Text], lengths: Sequence[int]) -> None:
        """Some texts and their tokens after truncation."""
        self._lengths += lengths
        each = list(texts)
        if self._tokenizer is None or not all(isinstance(item, str) for item, _ in each):
            self._cut = None
        if self._tokenizer is not None and self._cut is not None:
            self._cut += self._tokenizer.cut_off([item for item, _ in each], self.role, [prompt for _, prompt in each])

    def view(self) -> ColumnView:
        """The sums as a view with shares of the texts and tokens."""
        count, tokens = len(self._lengths), sum(self._lengths)
        truncated = lost = None
        if self._cut is not None:
            truncated = sum(cut > 0 for cut in self._cut) / count
            lost = sum(self._cut) / (tokens + sum(self._cut))
        return ColumnView(self.role, count, tokens / count, max(self._lengths), truncated, lost)


def text_tokenizer(model: Any) -> TextTokenizer | None:
    """The :class:`TextTokenizer` that ``model``, or a model inside it, keeps; ``None`` where there is none."""
    for part in model.modules():
        for value in vars(part).values():
            if isinstance(value, TextTokenizer):
                return value
    return None


def _queries(examples: Iterable[Example]) -> Iterator[Text]:
    return ((example.query, example.query_prompt) for example in examples)


def _passages(examples: Iterable[Example]) -> Iterator[Text]:
    return ((passage, example.passage_prompt) for example in examples for passage in example.passages)
