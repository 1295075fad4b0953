"""Builds a document's graph of entities and cuts out the part around an answer by personalised PageRank.

After ARK (arXiv 2511.16326): damping 0.85, tolerance 1e-4, 100 iterations; nodes sorted, −log, cut at the largest first
difference within the sizes asked for.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import TYPE_CHECKING, Any

from embed_core.errors import ConfigError
from embed_data.align.curriculum.entities import whole_words
from embed_data.mining.select.screen import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from embed_data.align.curriculum.entities import Extracted

DAMPING, TOLERANCE, ITERATIONS = 0.85, 1e-4, 100


def build_graph(chunks: Sequence[Extracted], alike: Sequence[tuple[str, str]] = ()) -> Any:
    """An undirected ``networkx`` graph: node = entity, edge weight = chunks that relate the two.

    ``alike`` are pairs of names that mean the same, as far as a retriever can tell: an edge of weight 1 at least.
    """
    graph = _networkx().Graph()
    for one in chunks:
        graph.add_nodes_from(sorted(one.entities))
        pairs = sorted({(min(p), max(p)) for p in one.relations}) if not one.offline else _together(one.entities)
        for first, second in pairs:
            _join(graph, first, second)
    for first, second in alike:
        _join(graph, first, second)
    return graph


def seeds(graph: Any, answers: Sequence[str], near: Sequence[str]) -> list[str]:
    """The answer's own entities; if the graph has none of them, those of the chunks that hold it (``near``)."""
    wanted = [plain(answer) for answer in answers]
    own = [name for name in graph if any(_same(plain(name), answer) for answer in wanted)]
    return sorted(own) or sorted({name for name in near if name in graph})


def around(graph: Any, start: Sequence[str], low: int, high: int) -> list[str]:
    """``low`` to ``high`` nodes by personalised PageRank from ``start``, the nearest first; none without a start."""
    if not start:
        return []
    networkx = _networkx()
    weights = dict.fromkeys(start, 1.0)
    ranks: Mapping[str, float] = networkx.pagerank(
        graph, alpha=DAMPING, personalization=weights, tol=TOLERANCE, max_iter=ITERATIONS
    )
    ordered = sorted((name for name in ranks if ranks[name] > 0), key=lambda name: (-round(ranks[name], 12), name))
    return ordered[: cut([ranks[name] for name in ordered], low, high)]


def cut(ranks: Sequence[float], low: int, high: int) -> int:
    """How many of ``ranks`` (falling) to keep: up to the largest step of −log between ``low`` and ``high`` of them."""
    if len(ranks) <= low:
        return len(ranks)
    drops = [-math.log(rank) for rank in ranks]
    sizes = range(low, min(high, len(ranks) - 1) + 1)
    return max(sizes, key=lambda size: (drops[size] - drops[size - 1], -size))


def _join(graph: Any, first: str, second: str) -> None:
    weight = graph.edges[first, second]["weight"] if graph.has_edge(first, second) else 0.0
    graph.add_edge(first, second, weight=weight + 1.0)


def _together(entities: Mapping[str, str]) -> list[tuple[str, str]]:
    return list(combinations(sorted(entities), 2))


def _same(name: str, answer: str) -> bool:
    """Whether one text is the other, or a part of it that is longer than a letter."""
    small, large = sorted((name, answer), key=len)
    return small == large or (len(small) > 1 and whole_words(small, large))


def _networkx() -> Any:
    try:
        import networkx  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise ConfigError(
            "stages 2 and 3 need networkx and scipy, which are not installed: pip install 'embed-data[align]'"
        ) from None
    return networkx
