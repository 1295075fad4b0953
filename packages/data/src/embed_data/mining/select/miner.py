"""Mines a block of rows: the same rows are returned with negatives and scores."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from embed_data.mining.select.choose import Chosen, ceiling, choose, window

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from embed_data.mining.corpus.collection import Collection
    from embed_data.mining.corpus.rows import MiningRow, Rows
    from embed_data.mining.rank.judges import Judge, Retriever
    from embed_data.mining.request import MiningRequest
    from embed_data.mining.select.screen import Forbidden, Screen


class MiningBlocks:
    """Ranks with ``retriever``; ``judge`` (the same one, or a better one) gives margins, order and scores."""

    def __init__(
        self,
        request: MiningRequest,
        rows: Rows,
        collection: Collection,
        screen: Screen,
        retriever: Retriever | None,
        judge: Judge | None,
    ) -> None:
        assert retriever is not None, "mining ranks a corpus"
        assert judge is not None, "mining scores what it finds"
        self._request, self._rows, self._collection, self._screen = request, rows, collection, screen
        self._retriever, self._judge = retriever, judge

    def block(self, numbers: Sequence[int]) -> tuple[dict[str, list[str]], Mapping[str, int]]:
        """One JSON line per row, and counts of what was found and refused."""
        mined = [self._rows[number] for number in numbers]
        forbidden = [self._screen.forbidden(n, row) for n, row in zip(numbers, mined, strict=True)]
        candidates = self._candidates(numbers, forbidden)
        refused: Counter[str] = Counter()
        if self._judge is not self._retriever:
            candidates = self._judged(numbers, candidates, forbidden, refused)
        positives = self._judge.pairs(numbers, [self._collection.positives(number) for number in numbers])
        lines, counts = [], Counter[str](rows=len(numbers))
        for number, row, keep_off, found, scores in zip(numbers, mined, forbidden, candidates, positives, strict=True):
            chosen = self._choose(number, found, keep_off, scores)
            refused.update(chosen.refused)
            lines.append(json.dumps(self._row(row, chosen, scores), ensure_ascii=False))
            counts.update(self._counts(chosen, scores))
        counts.update({f"refused.{why}": count for why, count in refused.items()})
        return {"output": lines}, counts

    def _candidates(self, numbers: Sequence[int], forbidden: Sequence[Forbidden]) -> list[list[tuple[int, float]]]:
        request = self._request
        depth = request.last_rank + max(len(one.known) for one in forbidden)
        ranked = self._retriever.search(numbers, depth)
        return [
            window(found, one.known, request.first_rank, request.last_rank)
            for found, one in zip(ranked, forbidden, strict=True)
        ]

    def _judged(
        self,
        numbers: Sequence[int],
        candidates: Sequence[list[tuple[int, float]]],
        forbidden: Sequence[Forbidden],
        refused: Counter[str],
    ) -> list[list[tuple[int, float]]]:
        """The candidates in the judge's order, without what the screen refuses, because judging is expensive."""
        kept: list[list[int]] = []
        for found, keep_off in zip(candidates, forbidden, strict=True):
            reasons = [(document, self._screen.reason(document, keep_off, ())) for document, _ in found]
            refused.update(why for _, why in reasons if why is not None)
            kept.append([document for document, why in reasons if why is None])
        scored = self._judge.pairs(numbers, kept)
        return [
            sorted(zip(documents, scores, strict=True), key=lambda pair: (-pair[1], pair[0]))
            for documents, scores in zip(kept, scored, strict=True)
        ]

    def _choose(
        self, number: int, found: Sequence[tuple[int, float]], keep_off: Forbidden, scores: Sequence[float]
    ) -> Chosen:
        limit = ceiling(scores, self._request.absolute_margin, self._request.relative_margin)
        reason = self._screen.reason
        return choose(found, limit, lambda n, chosen: reason(n, keep_off, chosen), self._request, number)

    def _row(self, mined: MiningRow, chosen: Chosen, positives: Sequence[float]) -> dict[str, Any]:
        documents = [self._collection.document(number) for number in chosen.documents]
        found: dict[str, Any] = {
            "neg": [document.text for document in documents],
            "pos_scores": list(positives),
            "neg_scores": chosen.scores,
        }
        # Fields that an earlier mining wrote beside its own negatives would not match the new ones.
        kept = {key: value for key, value in mined.data.items() if key not in ("neg_id", *found)}
        if any(document.key is not None for document in documents):
            found["neg_id"] = [document.key for document in documents]
        return {**kept, **found}

    def _counts(self, chosen: Chosen, positives: Sequence[float]) -> dict[str, int]:
        number, lowest = len(chosen.documents), min(positives)
        return {
            "negatives": number,
            "short": int(0 < number < self._request.negatives),
            "none": int(number == 0),
            "above": sum(score > lowest for score in chosen.scores),
        }
