"""Finds doubtful negatives: those that score above their positive, or hold the answer."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from embed_core.errors import DataError
from embed_data.mining.select.choose import ceiling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from embed_data.mining.corpus.collection import Collection
    from embed_data.mining.corpus.rows import MiningRow, Rows
    from embed_data.mining.rank.judges import Judge
    from embed_data.mining.request import MiningRequest
    from embed_data.mining.select.screen import Screen

PARALLEL = ("neg", "neg_scores", "neg_id")
"""Fields of a row that hold one value per negative."""
MASKED = "masked"
"""The field with texts that training takes as no negatives of the query, wherever in the batch they are."""


class AuditBlocks:
    """Scores every row's own positives and negatives by ``judge``; if that is None, by the scores in the rows."""

    def __init__(
        self, request: MiningRequest, rows: Rows, collection: Collection, screen: Screen, judge: Judge | None
    ) -> None:
        self._request, self._rows, self._collection = request, rows, collection
        self._screen, self._judge = screen, judge

    def block(self, numbers: Sequence[int]) -> tuple[dict[str, list[str]], Mapping[str, int]]:
        """A JSON line per finding; the masked rows, if they are asked for; counts."""
        mined = [self._rows[number] for number in numbers]
        lines: dict[str, list[str]] = {name: [] for name in ("output", *(["masked"] if self._request.mask else []))}
        counts = Counter[str](rows=len(numbers))
        for number, row, scores in zip(numbers, mined, self._scores(numbers, mined), strict=True):
            findings = self._findings(number, row, *scores)
            lines["output"] += [json.dumps(finding, ensure_ascii=False) for finding in findings.values()]
            counts.update(negatives=len(row.row.neg), found=len(findings), touched=int(bool(findings)))
            counts.update(f"why.{why}" for finding in findings.values() for why in finding["why"])
            if self._request.mask:
                masked = without(row.data, sorted(findings), mark=self._request.mask == "mark")
                lines["masked"].append(json.dumps(masked, ensure_ascii=False))
        return lines, counts

    def _scores(self, numbers: Sequence[int], mined: Sequence[MiningRow]) -> list[tuple[list[float], list[float]]]:
        if self._judge is None:
            return [_own_scores(row) for row in mined]
        both = [[*self._collection.positives(n), *self._collection.negatives(n)] for n in numbers]
        scored = self._judge.pairs(numbers, both)
        sizes = [len(row.row.pos) for row in mined]
        return [(found[:size], found[size:]) for found, size in zip(scored, sizes, strict=True)]

    def _findings(
        self, number: int, mined: MiningRow, positives: Sequence[float], negatives: Sequence[float]
    ) -> dict[int, dict[str, Any]]:
        """Index of the negative → what is wrong with it."""
        limit = ceiling(positives, self._request.absolute_margin or 0.0, self._request.relative_margin)
        forbidden = self._screen.forbidden(number, mined)
        at = min(range(len(positives)), key=lambda n: positives[n])
        found: dict[int, dict[str, Any]] = {}
        for index, document in enumerate(self._collection.negatives(number)):
            reason = self._screen.reason(document, forbidden, ())
            why = [*(["score"] if negatives[index] > limit else []), *([reason] if reason else [])]
            if why:
                found[index] = {
                    **_who(mined),
                    "why": why,
                    "pos": mined.row.pos[at],
                    "pos_id": mined.row.pos_keys[at] if mined.row.pos_keys else None,
                    "pos_score": positives[at],
                    "neg_index": index,
                    "neg": mined.row.neg[index],
                    "neg_id": _id(mined.data, index, self._collection.document(document).key),
                    "neg_score": negatives[index],
                }
        return found


def without(data: Mapping[str, Any], indices: Sequence[int], *, mark: bool) -> dict[str, Any]:
    """A row without the negatives at ``indices``, their scores and ids; ``mark`` moves their texts to ``masked``."""
    if not indices:
        return dict(data)
    gone, size = set(indices), len(data["neg"])
    kept = dict(data)
    for name in PARALLEL:
        values = data.get(name)
        if isinstance(values, list) and len(values) == size:
            kept[name] = [value for index, value in enumerate(values) if index not in gone]
    if mark:
        texts = [data["neg"][index] for index in indices]
        kept[MASKED] = list(dict.fromkeys([*(data.get(MASKED) or []), *texts]))
    return kept


def _own_scores(mined: MiningRow) -> tuple[list[float], list[float]]:
    row = mined.row
    if row.pos_scores is None and row.neg:
        raise DataError(f"{row.place}: no `pos_scores` and `neg_scores`: audit with --by bm25, or by a model")
    return list(row.pos_scores or ()) or [0.0] * len(row.pos), list(row.neg_scores or ())


def _who(mined: MiningRow) -> dict[str, Any]:
    named: dict[str, Any] = {key: mined.data[key] for key in ("query_id", "id") if key in mined.data}
    return {"place": mined.row.place, **named, "query": mined.row.query}


def _id(data: Mapping[str, Any], index: int, key: str | None) -> Any:
    ids = data.get("neg_id")
    return ids[index] if isinstance(ids, list) and len(ids) == len(data["neg"]) else key
