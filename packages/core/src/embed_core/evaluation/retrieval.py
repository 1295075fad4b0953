"""Exact retrieval on all ranks: every document is scored against every query, no index, no approximation.

The corpus is dealt out: documents sorted by length, the longest first, go round the ranks, so that all have the same
work. Queries are not: each rank encodes all of them, because they are few and short, and exchanging their token vectors
would cost more than computing them. A rank goes through its documents tile by tile and keeps, for every way of scoring,
the top of each query; the tops are merged at the end.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from embed_core.embeddings import slice_rows
from embed_core.errors import ConfigError, DataError, did_you_mean
from embed_core.evaluation.measures import deepest_cutoff, mean_measures, parse_measures
from embed_core.evaluation.subset import judged_only, subset
from embed_core.evaluation.topk import TopK, unpack
from embed_core.scoring import combine, kind_scores

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from embed_core.evaluation.config import RetrievalEvaluatorConfig
    from embed_core.protocols import Announce, Encoder
    from embed_core.types import Embeddings, RetrievalSet, ScoreWeights

QUERY_BLOCK = 1024
"""Queries scored at a time against a tile: with the tile it bounds the score matrix."""


class RetrievalEvaluator:
    """nDCG, MRR, Recall and the like over one :class:`~embed_core.types.RetrievalSet`.

    Queries without any relevant document are left out of the means; :attr:`dropped` counts them.
    Raises DataError where no query is left.
    """

    def __init__(self, config: RetrievalEvaluatorConfig, data: RetrievalSet, announce: Announce) -> None:
        self.name = config.name
        self.measures = parse_measures(config.measures)
        self.depth = config.top_k or deepest_cutoff(self.measures)
        judged = judged_only(data)
        self.data = subset(judged, config.query_limit, config.corpus_limit)
        self.dropped = len(data.queries) - len(judged.queries)
        self._config = config
        self._ids = sorted(self.data.corpus)
        self._tell(data, announce)

    def evaluate(self, encoder: Encoder) -> Mapping[str, float]:
        """``way/measure`` → value, the same on every rank. Raises ConfigError for a way the model does not have."""
        ways = self._ways(encoder)
        tops = self._search(encoder, ways)
        own = {way: top.keys_QK.cpu() for way, top in tops.items()}
        everyone = encoder.gather(own)
        # One rank computes and all take its figures: they are equal to the bit by construction.
        metrics = self._metrics(everyone) if encoder.rank == 0 else None
        result: Mapping[str, float] = encoder.gather(metrics)[0]
        return result

    def _ways(self, encoder: Encoder) -> dict[str, ScoreWeights]:
        if self._config.ways is None:
            return dict(encoder.scores)
        for way in self._config.ways:
            if way not in encoder.scores:
                raise ConfigError(
                    f"evaluation {self.name!r}: the model has no way of scoring {way!r}: "
                    f"{did_you_mean(way, encoder.scores)}"
                )
        return {way: encoder.scores[way] for way in self._config.ways}

    def _search(self, encoder: Encoder, ways: Mapping[str, ScoreWeights]) -> dict[str, TopK]:
        queries = encoder.encode(list(self.data.queries.values()), "query")
        device = _device(queries)
        tops = {way: TopK(queries.count, self.depth, device) for way in ways}
        for positions, real in self._tiles(encoder.rank, encoder.world_size):
            documents = encoder.encode([self.data.corpus[self._ids[p]] for p in positions], "passage")
            if not real:
                continue
            position_N = torch.tensor(positions, dtype=torch.int64, device=device)
            for start in range(0, queries.count, QUERY_BLOCK):
                block = slice_rows(queries, start, start + QUERY_BLOCK)
                for way, scores_QN in score_tile(block, documents, ways).items():
                    tops[way].add(start, scores_QN, position_N)
        return tops

    def _tiles(self, rank: int, world_size: int) -> Iterator[tuple[list[int], bool]]:
        """This rank's tiles of positions, each with whether it counts.

        All ranks get the same number of tiles, for encoding may be collective (ZeRO-3 gathers the weights in every
        forward): a rank that has run out encodes one document that does not count.
        """
        items = self.data.corpus
        order = sorted(range(len(self._ids)), key=lambda p: (-_length(items[self._ids[p]]), p))
        mine = iter(order[rank::world_size])
        most = len(order[0::world_size])
        for _ in range(-(-most // self._config.tile)):
            tile = list(islice(mine, self._config.tile))
            yield (tile, True) if tile else (order[:1], False)

    def _metrics(self, everyone: list[dict[str, Tensor]]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for way in everyone[0]:
            top = TopK(len(self.data.queries), self.depth)
            top.merge(keys[way] for keys in everyone)
            rankings = {
                query: [self._ids[position] for position in unpack(keys_K)]
                for query, keys_K in zip(self.data.queries, top.keys_QK, strict=True)
            }
            means = mean_measures(self.measures, self.data.qrels, rankings)
            metrics |= {f"{way}/{measure}": value for measure, value in means.items()}
        return metrics

    def _tell(self, given: RetrievalSet, announce: Announce) -> None:
        """Announce which part of the data the figures cover, unless it is all. Raises DataError where none is left."""
        if not self.data.queries or not self.data.corpus:
            raise DataError(
                f"evaluation {self.name!r}: of {len(given.queries)} queries and {len(given.corpus)} documents none can "
                "be judged: no query has a relevant document; check the ids in the qrels"
            )
        if self.dropped:
            announce(
                f"evaluation {self.name!r}: {self.dropped} of {len(given.queries)} queries have no relevant document "
                "and are left out"
            )
        if len(self.data.corpus) < len(given.corpus) or len(self.data.queries) < len(given.queries) - self.dropped:
            announce(
                f"evaluation {self.name!r}: {len(self.data.queries)} of {len(given.queries)} queries, "
                f"{len(self.data.corpus)} of {len(given.corpus)} documents: comparable only under the same limits"
            )


def score_tile(queries: Embeddings, documents: Embeddings, ways: Mapping[str, ScoreWeights]) -> dict[str, Tensor]:
    """Way → [Q, N] scores. Each kind of score is computed once, however many ways it serves."""
    kinds = dict.fromkeys(kind for weights in ways.values() for kind, weight in weights.items() if weight)
    scores = kind_scores(queries, documents, kinds)
    return {way: combine(scores, weights) for way, weights in ways.items()}


def _device(e: Embeddings) -> torch.device:
    held = e.dense_ND if e.dense_ND is not None else (e.sparse or e.multi)[-1]  # type: ignore[index]
    return held.device


def _length(item: object) -> int:
    """Estimated cost of a document, without tokenising: the characters of a text, 0 for any other item."""
    return len(item) if isinstance(item, str) else 0
