"""Combines the components into one score per chunk and ranks the chunks, question by question."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from embed_data.align.request import COMPONENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from embed_data.align.request import AlignRequest

SAME = 0.5
"""Scaled value of a component that is the same for all chunks of a document."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One chunk for one question."""

    chunk: int
    raw: Mapping[str, float | None]
    """Raw scores by component; None where it failed."""
    score: float | None
    """The weighted sum; None where a component with a weight failed."""
    failed: str | None = None
    trimmed: int = 0


def joined(stages: Sequence[Iterable[dict[str, Any]]]) -> Iterator[tuple[int, dict[tuple[int, int], dict[str, Any]]]]:
    """Document by document, the rows of all stages by (question, chunk), joined by id and never by position.

    Every stage has its rows in the order of the documents; any of them may be missing.
    """
    parts = [groupby(rows, key=lambda row: int(row["document"])) for rows in stages]
    heads = [next(part, None) for part in parts]
    while any(head is not None for head in heads):
        document = min(head[0] for head in heads if head is not None)
        found: dict[tuple[int, int], dict[str, Any]] = {}
        for at, head in enumerate(heads):
            if head is not None and head[0] == document:
                for row in head[1]:
                    _merge(found.setdefault((row["question"], row["chunk"]), {}), row)
                heads[at] = next(parts[at], None)
        yield document, found


def combined(rows: Mapping[int, Mapping[str, Any]], tokens: Sequence[int], request: AlignRequest) -> list[Scored]:
    """The chunks of one question, in document order; ``rows`` by chunk number, ``tokens`` of every chunk.

    ``minmax`` maps each component to 0…1 over the chunks that have it; failed ones are ignored.
    """
    raw = {c: {name: row.get(name) for name in request.components} for c, row in sorted(rows.items())}
    weights = {name: weight for name, weight in zip(COMPONENTS, request.weights, strict=True) if weight}
    scaled = {name: _scaled({c: one.get(name) for c, one in raw.items()}, request.normalise) for name in weights}
    found = []
    for c, values in raw.items():
        parts = [(weight, scaled[name][c]) for name, weight in weights.items()]
        # One failed part leaves the chunk without a score; the other parts are not its score.
        known = [weight * value for weight, value in parts if value is not None]
        score = _shortened(sum(known), tokens[c], request.short_chunk) if len(known) == len(parts) else None
        found.append(Scored(c, values, score, rows[c].get("failed"), int(rows[c].get("trimmed", 0))))
    return found


def ranked(scored: Sequence[Scored]) -> list[Scored]:
    """The chunks with a score, the best first, equal ones in document order."""
    return sorted((one for one in scored if one.score is not None), key=lambda one: (-(one.score or 0.0), one.chunk))


def _scaled(values: Mapping[int, float | None], how: str) -> dict[int, float | None]:
    known = [value for value in values.values() if value is not None]
    if how == "raw" or not known:
        return dict(values)
    low, high = min(known), max(known)
    width = high - low
    return {c: None if v is None else (v - low) / width if width > 0 else SAME for c, v in values.items()}


def _shortened(score: float, tokens: int, enough: int) -> float:
    """The score lowered in proportion to the missing tokens; one below 0 moves away from 0, since lower is worse."""
    if not enough or tokens >= enough:
        return score
    share = max(1, tokens) / enough
    return score * share if score >= 0 else score / share


def _merge(into: dict[str, Any], row: Mapping[str, Any]) -> None:
    reasons = [one for one in (into.get("failed"), row.get("failed")) if one]
    into.update(row)
    if reasons:
        into["failed"] = "; ".join(reasons)
