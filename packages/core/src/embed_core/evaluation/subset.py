"""Makes a smaller collection for quick evaluations: fewer queries, fewer distractors, no relevant document lost."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from embed_core.types import RetrievalSet


def judged_only(data: RetrievalSet) -> RetrievalSet:
    """Drop the queries that have no relevant document: no ranking could be right or wrong for them."""
    queries = {
        query: item
        for query, item in data.queries.items()
        if any(relevance > 0 for relevance in data.qrels.get(query, {}).values())
    }
    return replace(data, queries=queries, qrels={query: data.qrels[query] for query in queries})


def subset(data: RetrievalSet, query_limit: int | None, corpus_limit: int | None) -> RetrievalSet:
    """Draw queries and documents up to the limits by a hash of their ids: the same on every rank and in every run.

    The relevant documents of the drawn queries stay, even beyond ``corpus_limit``. Fewer distractors make retrieval
    easier: compare such figures only with figures under the same limits.
    """
    queries = _drawn(data.queries, query_limit)
    qrels = {query: data.qrels[query] for query in queries}
    relevant = {doc for judged in qrels.values() for doc, relevance in judged.items() if relevance > 0}
    corpus = relevant.intersection(data.corpus)
    if corpus_limit is None:
        corpus = set(data.corpus)
    else:
        others = (doc for doc in data.corpus if doc not in corpus)
        corpus |= set(_drawn(others, max(0, corpus_limit - len(corpus))))
    return replace(
        data,
        queries={query: data.queries[query] for query in queries},
        corpus={doc: item for doc, item in data.corpus.items() if doc in corpus},
        qrels=qrels,
    )


def _drawn(ids: Iterable[str], limit: int | None) -> list[str]:
    known = list(ids)
    if limit is None or len(known) <= limit:
        return known
    return sorted(known, key=lambda key: hashlib.sha256(key.encode()).digest())[:limit]
