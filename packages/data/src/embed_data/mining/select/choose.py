"""Chooses a row's negatives from the ranked documents: ranks, margins, screen, then the first or a random few."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from embed_data.mining.rank.judges import Ranked
    from embed_data.mining.request import MiningRequest


class Chosen(NamedTuple):
    """Negatives, the hardest first, and why others were refused."""

    documents: list[int]
    scores: list[float]
    refused: Counter[str]
    """Documents refused, by reason: ``margin``, or what the screen said."""


def ceiling(positives: Sequence[float], absolute: float | None, relative: float | None) -> float:
    """The highest score of a negative: below the lowest positive by both margins; +inf without margins.

    ``relative`` is a share of the positive's score (NV-Retriever, Moreira et al. 2024, arXiv 2407.15831), taken of its
    absolute value, so that a margin never raises the ceiling.
    """
    if absolute is None and relative is None:
        return float("inf")
    lowest = min(positives)
    return lowest - max(absolute if absolute is not None else 0.0, abs(lowest) * (relative or 0.0))


def window(ranked: Ranked, known: frozenset[int], first: int, last: int) -> list[tuple[int, float]]:
    """The documents of ranks ``first`` to ``last``, counted from 1 without the known positives."""
    others = [pair for pair in zip(*ranked, strict=True) if pair[0] not in known]
    return others[first - 1 : last]


def choose(
    candidates: Sequence[tuple[int, float]],
    limit: float,
    reason: Callable[[int, Sequence[int]], str | None],
    request: MiningRequest,
    row: int,
) -> Chosen:
    """At most ``request.negatives`` of ``candidates``, in their order: none above ``limit``, none with a ``reason``.

    A sample is drawn from all that qualify, by a generator seeded with (seed, row) alone.
    """
    if request.draw == "top":
        return _first(candidates, limit, reason, request.negatives)
    found = _first(candidates, limit, reason, len(candidates))
    if len(found.documents) <= request.negatives:
        return found
    import numpy as np

    rng = np.random.default_rng((request.seed, row))
    kept = sorted(rng.permutation(len(found.documents))[: request.negatives].tolist())
    return Chosen([found.documents[n] for n in kept], [found.scores[n] for n in kept], found.refused)


def _first(
    candidates: Sequence[tuple[int, float]],
    limit: float,
    reason: Callable[[int, Sequence[int]], str | None],
    wanted: int,
) -> Chosen:
    chosen = Chosen([], [], Counter())
    for document, score in candidates:
        if len(chosen.documents) == wanted:
            break
        why = "margin" if score > limit else reason(document, chosen.documents)
        if why is not None:
            chosen.refused[why] += 1
            continue
        chosen.documents.append(document)
        chosen.scores.append(score)
    return chosen
