"""The two expensive stages: log-probabilities by the language model, cosines by the retriever. Block by block."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from embed_core.distributed.process_group import Ranks
    from embed_data.align.score.logprobs import LogProbs
    from embed_data.align.score.prompts import Prompt, Prompts
    from embed_data.align.source.corpus import Asked, Chunk, ChunkedCorpus
    from embed_data.align.source.store import Stage
    from embed_data.mining.output.progress import Progress
    from embed_data.mining.rank.model import TextEncoder

PAIRS = 256
"""About so many (question, chunk) pairs make a block, which is finished, or lost by a kill, as a whole."""


class Slice(NamedTuple):
    """Chunks ``first:last`` of a document, with all its questions."""

    document: int
    first: int
    last: int


def blocks(corpus: ChunkedCorpus) -> list[list[Slice]]:
    """All pairs in blocks of about :data:`PAIRS`. They depend on the data alone, so that any run cuts them alike."""
    found: list[list[Slice]] = [[]]
    size = 0
    for document, chunks in enumerate(corpus.chunk_counts):
        asked, first = len(corpus.questions_of[document]), 0
        while asked and first < chunks:
            last = min(chunks, first + max(1, (PAIRS - size) // asked))
            found[-1].append(Slice(document, first, last))
            size += (last - first) * asked
            first = last
            if size >= PAIRS:
                found.append([])
                size = 0
    return [block for block in found if block]


def work(
    score: Callable[[Slice], list[dict[str, Any]]],
    corpus: ChunkedCorpus,
    stage: Stage,
    ranks: Ranks,
    progress: Progress,
    title: str,
) -> None:
    """Score this rank's missing blocks, then wait for the other ranks."""
    cut = blocks(corpus)
    own = range(ranks.rank, len(cut), ranks.world_size)
    sizes = {number: sum(_pairs(corpus, one) for one in cut[number]) for number in own}
    if ranks.rank == 0:
        stage.start()
    ranks.barrier()
    done = sum(size for number, size in sizes.items() if stage.has(number))
    with progress.stage(title, sum(sizes.values()), done) as advance:
        for number in own:
            if not stage.has(number):
                stage.write(number, [row for one in cut[number] for row in score(one)])
                advance(sizes[number])
    ranks.barrier()


class LanguageScores:
    """Forward and backward scores: means of ``log p`` per token, in nats.

    A question with several answers gets the best of each score. A pair for which either score fails says why.
    """

    def __init__(self, corpus: ChunkedCorpus, prompts: Prompts, model: LogProbs) -> None:
        self._corpus, self._prompts, self._model = corpus, prompts, model

    def __call__(self, one: Slice) -> list[dict[str, Any]]:
        """A row for each answerable question and chunk."""
        chunks = self._corpus.chunks(one.document)
        pairs = [(q, c) for c in range(one.first, one.last) for q in self._corpus.questions_of[one.document]]
        asked = {q: self._corpus.asked(q) for q in self._corpus.questions_of[one.document]}
        built = [self._both(chunks[c], asked[q]) for q, c in pairs]
        whole = [prompt for pair in built for way in pair for prompt in way if not isinstance(prompt, str)]
        scored = iter(self._model.score(whole))
        rows: list[dict[str, Any]] = []
        for (q, c), ways in zip(pairs, built, strict=True):
            found = [[one if isinstance(one, str) else next(scored) for one in way] for way in ways]
            if asked[q].answers:
                trimmed = max((one.trimmed for way in ways for one in way if not isinstance(one, str)), default=0)
                rows.append(_row(one.document, q, c, found, trimmed))
        return rows

    def _both(self, chunk: Chunk, asked: Asked) -> tuple[list[Prompt | str], list[Prompt | str]]:
        forward = [self._prompts.forward(chunk.text, asked.text, answer) for answer in asked.answers]
        backward = [self._prompts.backward(chunk.text, asked.text, answer) for answer in asked.answers]
        return forward, backward


class ParameterScores:
    """Cosine of question and chunk under the frozen retriever; its own score if it is more than a dense model."""

    def __init__(self, corpus: ChunkedCorpus, encoder: TextEncoder) -> None:
        self._corpus, self._encoder = corpus, encoder

    def __call__(self, one: Slice) -> list[dict[str, Any]]:
        """A row for each answerable question and chunk."""
        numbers = [q for q in self._corpus.questions_of[one.document] if self._corpus.asked(q).answers]
        if not numbers:
            return []
        texts = [chunk.text for chunk in self._corpus.chunks(one.document)[one.first : one.last]]
        scores = similarities(self._encoder, [self._corpus.asked(q).text for q in numbers], texts)
        rows = []
        for c, column in enumerate(zip(*scores, strict=True), one.first):
            for q, value in zip(numbers, column, strict=True):
                row: dict[str, Any] = {"document": one.document, "question": q, "chunk": c, "parameter": value}
                if not math.isfinite(value):
                    row |= {"parameter": None, "failed": "the retriever gave a score that is not finite"}
                rows.append(row)
        return rows


def similarities(encoder: TextEncoder, queries: Sequence[str], passages: Sequence[str]) -> list[list[float]]:
    """[queries][passages]: cosines of dense vectors, whatever their length; the way's own sum for other kinds."""
    import torch

    from embed_core.evaluation.retrieval import score_tile

    def unit(texts: Sequence[str], role: Any) -> Any:
        found = encoder.encode(texts, role)
        if found.dense_ND is None:
            return found
        return found._replace(dense_ND=torch.nn.functional.normalize(found.dense_ND, dim=-1))

    tile_QN = score_tile(unit(queries, "query"), unit(passages, "passage"), {"way": encoder.weights})["way"]
    found: list[list[float]] = tile_QN.cpu().tolist()
    return found


def _row(document: int, question: int, chunk: int, found: list[list[Any]], trimmed: int) -> dict[str, Any]:
    row: dict[str, Any] = {"document": document, "question": question, "chunk": chunk}
    reasons: list[str] = []
    for name, ways in zip(("forward", "backward"), found, strict=True):
        means = [sum(values) / len(values) for values in ways if not isinstance(values, str)]
        row[name] = max(means) if means else None
        if not means:
            reasons += [f"{name}: {why}" for why in ways[:1]]
    if trimmed:
        row["trimmed"] = trimmed
    if reasons:
        row["failed"] = "; ".join(reasons)
    return row


def score_rows(corpus: ChunkedCorpus, stage: Stage) -> Iterator[dict[str, Any]]:
    """All rows that :func:`work` wrote, in the order of the documents."""
    return stage.rows(len(blocks(corpus)))


def _pairs(corpus: ChunkedCorpus, one: Slice) -> int:
    return (one.last - one.first) * len(corpus.questions_of[one.document])
