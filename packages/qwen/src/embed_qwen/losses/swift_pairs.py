"""ms-swift's losses over labelled pairs: cosine_similarity, contrastive, online_contrastive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from embed_core.errors import ConfigError
from embed_core.types import LossOutput
from embed_qwen import swift
from embed_qwen.losses import layout

if TYPE_CHECKING:
    from embed_core.types import Batch, Targets


class SwiftPairs(nn.Module):
    """``swift.loss.loss_map[name]`` over the pairs of each query with the passages of its group.

    Metrics: ``loss``; ``positives``, the share of pairs that are positives. Where it is 1 nothing keeps texts apart,
    and in time all vectors are the same.
    """

    def __init__(self, name: str, labels: Literal["relevance", "scores"] = "relevance") -> None:
        super().__init__()
        self.labels = labels
        self._loss = swift.loss(name)

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        """ms-swift's value. Raises ConfigError without dense vectors, or without the scores that it is to learn."""
        query_BD, passage_PD = layout.dense(batch)
        relevance_P = layout.positive_labels(targets)
        labels_P = relevance_P if self.labels == "relevance" else _scores(targets)
        loss = self._loss(layout.pairs(query_BD, passage_PD, targets), labels_P)
        return LossOutput(loss, {"loss": loss.detach(), "positives": relevance_P.mean()})


def _scores(targets: Targets) -> Tensor:
    P = targets.passage_ids_P.shape[0]
    bare = P if targets.scores_P is None else int(targets.scores_P.isnan().sum())
    if targets.scores_P is None or bare:
        raise ConfigError(
            f"loss.labels: 'scores' needs a teacher's score for every passage, and {bare} of {P} in the batch of step "
            f"{targets.step + 1} have none: give the rows pos_scores and neg_scores, or use 'relevance'"
        )
    return targets.scores_P
