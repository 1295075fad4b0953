"""Retrieval over pictures and texts that also records what some sample queries found."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

from embed_core.evaluation.config import RetrievalEvaluatorConfig
from embed_core.evaluation.retrieval import RetrievalEvaluator
from embed_core.evaluation.topk import TopK, unpack
from embed_vision.evaluation.gallery import Album, Page, Sample

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from embed_core.protocols import Announce
    from embed_core.types import RetrievalSet
    from embed_vision.evaluation.config import ImageTextRetrievalConfig


class ImageTextEvaluator(RetrievalEvaluator):
    """The core's retrieval evaluator; on rank 0 each evaluation adds a page of sample queries to :attr:`album`.

    Raises DataError where no query has a relevant document.
    """

    def __init__(self, config: ImageTextRetrievalConfig, data: RetrievalSet, announce: Announce) -> None:
        same = ("name", "measures", "query_limit", "corpus_limit", "tile")
        super().__init__(
            RetrievalEvaluatorConfig.model_validate({name: getattr(config, name) for name in same}), data, announce
        )
        self.depth = max(self.depth, config.gallery_depth if config.gallery else 0)
        self.album = Album(config.name)
        self._gallery_depth = config.gallery_depth
        # A hash of the ids chooses the same samples in every run over the same data.
        order = sorted(self.data.queries, key=lambda key: blake2b(key.encode(), digest_size=8).digest())
        self._samples = order[: config.gallery]

    def _metrics(self, everyone: list[dict[str, Tensor]]) -> dict[str, float]:
        metrics = super()._metrics(everyone)
        if self._samples:
            way = next(iter(everyone[0]))
            top = TopK(len(self.data.queries), self.depth)
            top.merge(keys[way] for keys in everyone)
            found = dict(zip(self.data.queries, top.keys_QK, strict=True))
            self.album.pages.append(Page(metrics, [self._sample(key, found[key]) for key in self._samples]))
        return metrics

    def _sample(self, query: str, keys_K: Tensor) -> Sample:
        relevant: Mapping[str, int] = self.data.qrels[query]
        ids = [self._ids[position] for position in unpack(keys_K)][: self._gallery_depth]
        answer = next(key for key, relevance in relevant.items() if relevance > 0)
        results = [(self.data.corpus[key], relevant.get(key, 0) > 0) for key in ids]
        return Sample(self.data.queries[query], self.data.corpus[answer], results)
