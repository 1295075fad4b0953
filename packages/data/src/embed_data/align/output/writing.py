"""Writes the results of an alignment: scored chunks, their texts, training rows in two formats, failures, a report."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from embed_data.align.output.report import Tally
from embed_data.align.output.rows import drawn, eligible, swift_rows, training_row
from embed_data.align.request import weights_text
from embed_data.align.score.combine import combined, joined, ranked
from embed_data.align.source.store import to_line, write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from embed_data.align.request import AlignRequest
    from embed_data.align.score.combine import Scored
    from embed_data.align.source.corpus import Asked, Chunk, ChunkedCorpus


def write_outputs(
    request: AlignRequest, corpus: ChunkedCorpus, stages: Sequence[Iterable[dict[str, Any]]]
) -> dict[str, Any]:
    """Write all files, each renamed into place; the report, which is returned, comes last and marks them complete."""
    writer = _Writer(request, corpus)
    folder = request.output
    # One pass over the scores: lines of the smaller files are kept until the large one is written.
    write_whole(folder / "scored.jsonl", writer.scored(joined(stages)))
    write_whole(folder / "chunks.jsonl", _chunk_lines(corpus))
    write_whole(folder / "failed.jsonl", writer.failed)
    write_whole(folder / "rows.jsonl", (to_line(row) for row in writer.rows(folder)))
    write_whole(folder / "swift.jsonl", (to_line(one) for row in writer.rows(folder) for one in swift_rows(row)))
    report = {**writer.counts, **_settings(request), **writer.tally.result()}
    write_whole(folder / "report.json", [json.dumps(report, indent=2, ensure_ascii=False)])
    return report


class _Writer:
    def __init__(self, request: AlignRequest, corpus: ChunkedCorpus) -> None:
        self._request, self._corpus = request, corpus
        self.tally = Tally(request.components)
        self.failed: list[str] = []
        self.counts: dict[str, int] = {
            **dict.fromkeys(("questions", "unanswerable", "unscored", "failed_pairs", "trimmed_pairs"), 0),
            **dict.fromkeys(("rows", "positives", "negatives", "all_positive"), 0),
        }
        self.counts["questions"] = corpus.questions
        self.counts["chunks"] = sum(corpus.chunk_counts)

    def scored(self, found: Iterator[tuple[int, dict[tuple[int, int], dict[str, Any]]]]) -> Iterator[str]:
        """One line per question with every scored chunk of its document, the best first, failed ones last."""
        head = next(found, None)
        for document, numbers in enumerate(self._corpus.questions_of):
            rows: Mapping[tuple[int, int], Mapping[str, Any]] = {}
            if head is not None and head[0] == document:
                rows, head = head[1], next(found, None)
            chunks = self._corpus.chunks(document)
            for number in numbers:
                own = {c: row for (q, c), row in rows.items() if q == number}
                yield from self._question(document, number, chunks, own)

    def rows(self, folder: Any) -> Iterator[dict[str, Any]]:
        """The training rows of the questions just written, in their order."""
        last: tuple[int, list[Chunk]] | None = None
        with (folder / "scored.jsonl").open(encoding="utf-8") as file:
            for line in file:
                data = json.loads(line)
                if not data["positives"]:
                    continue
                number = data["document"]
                if last is None or last[0] != number:
                    last = number, self._corpus.chunks(number)
                numbers = {chunk.key: at for at, chunk in enumerate(last[1])}
                positives = [numbers[key] for key in data["positives"]]
                negatives = [numbers[key] for key in data["negatives"]]
                yield training_row(self._corpus.asked(data["number"]), data["doc_id"], last[1], positives, negatives)

    def _question(
        self, document: int, number: int, chunks: Sequence[Chunk], rows: Mapping[int, Mapping[str, Any]]
    ) -> Iterator[str]:
        asked = self._corpus.asked(number)
        if not asked.answers:
            self.counts["unanswerable"] += 1
            return
        scored = combined(rows, [chunk.tokens for chunk in chunks], self._request)
        self._take_failures(asked, chunks, scored)
        order = ranked(scored)
        self.tally.add(scored, asked.gold)
        best = [one.chunk for one in order[: self._request.positives]]
        negatives = self._negatives(asked, chunks, scored, best)
        self._count(best, negatives, len(chunks))
        yield to_line(
            {
                "id": asked.key, "query": asked.text, "answers": list(asked.answers),
                "doc_id": self._corpus.key(document), "document": document, "number": number,
                "gold": [chunks[c].key for c in asked.gold],
                "positives": [chunks[c].key for c in best],
                "negatives": [chunks[c].key for c in negatives],
                "chunks": [_chunk(one, chunks) for one in (*order, *(one for one in scored if one.score is None))],
            }
        )  # fmt: skip

    def _negatives(
        self, asked: Asked, chunks: Sequence[Chunk], scored: Sequence[Scored], best: Sequence[int]
    ) -> list[int]:
        if not best or not self._request.negatives:
            return []
        unknown = frozenset(range(len(chunks))) - {one.chunk for one in scored if one.score is not None}
        found = eligible(asked, chunks, best, unknown)
        return drawn(found, self._request.negatives, self._request.seed, asked.key)

    def _take_failures(self, asked: Asked, chunks: Sequence[Chunk], scored: Sequence[Scored]) -> None:
        for one in scored:
            self.counts["trimmed_pairs"] += one.trimmed > 0
            if one.failed is not None:
                self.counts["failed_pairs"] += 1
                self.failed.append(to_line({"id": asked.key, "chunk": chunks[one.chunk].key, "failed": one.failed}))

    def _count(self, best: Sequence[int], negatives: Sequence[int], chunks: int) -> None:
        if not best:
            self.counts["unscored"] += 1
            return
        self.counts["rows"] += 1
        self.counts["positives"] += len(best)
        self.counts["negatives"] += len(negatives)
        self.counts["all_positive"] += len(best) == chunks


def _chunk(one: Scored, chunks: Sequence[Chunk]) -> dict[str, Any]:
    row: dict[str, Any] = {"id": chunks[one.chunk].key, "score": one.score, **one.raw}
    if one.trimmed:
        row["trimmed"] = one.trimmed
    if one.failed is not None:
        row["failed"] = one.failed
    return row


def _chunk_lines(corpus: ChunkedCorpus) -> Iterator[str]:
    for document in range(len(corpus.chunk_counts)):
        for chunk in corpus.chunks(document):
            yield to_line(
                {"_id": chunk.key, "doc_id": corpus.key(document), "text": chunk.text, "tokens": chunk.tokens}
            )


def _settings(request: AlignRequest) -> dict[str, Any]:
    size, overlap = request.chunks.resolved
    return {
        "chunking": f"{request.chunks.by} {size}/{overlap}",
        "normalise": request.normalise,
        "weights": weights_text(request.weights),
        "positives_wanted": request.positives,
        "seed": request.seed,
    }
