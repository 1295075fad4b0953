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

    Metrics: ``loss``; ``positives``, the share of pairs that are positives (labelled above a half). Where it is 1
    nothing keeps texts apart, and in time all vectors become the same.
    """

    def __init__(self, name: str, labels: Literal["relevance", "scores"] = "relevance") -> None:
        super().__init__()
        self.name, self.labels = name, labels
        self._loss = swift.loss(name)

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        """ms-swift's value. Raises ConfigError without dense vectors, without the scores that are its labels, for
        scores outside the range of this loss, and for pairs labelled 0 that would count as positives."""
        query_BD, passage_PD = layout.dense(batch)
        relevance_P = layout.positive_labels(targets)
        if self.labels == "relevance":
            _check_relevance(targets)
            labels_P = relevance_P
        else:
            labels_P = _scores(targets)
            self._check_scores(labels_P, targets.step)
        loss = self._loss(layout.pairs(query_BD, passage_PD, targets), labels_P)
        return LossOutput(loss, {"loss": loss.detach(), "positives": labels_P.gt(0.5).float().mean()})

    def _check_scores(self, labels_P: Tensor, step: int) -> None:
        """Raises ConfigError for scores with which ms-swift would leave pairs out, or use negative weights."""
        if self.name == "cosine_similarity":
            return
        graded = self.name == "contrastive"
        odd_P = (labels_P < 0) | (labels_P > 1) if graded else (labels_P != 0) & (labels_P != 1)
        if bool(odd_P.any()):
            raise ConfigError(
                f"loss.labels: 'scores' of {self.name} are {'from 0 to 1' if graded else '0 or 1'}, and the batch of "
                f"step {step + 1} has {float(labels_P[odd_P][0]):g}: use cosine_similarity, or 'relevance'"
            )


def _check_relevance(targets: Targets) -> None:
    """Raises ConfigError for positives that ms-swift's rows mark as none (`label: 0`)."""
    if targets.scores_P is None:
        return
    none = int((targets.scores_P[targets.positive_columns_B] == 0).sum())
    if none:
        raise ConfigError(
            f"loss.labels: 'relevance' would pull together {none} pairs of the batch of step {targets.step + 1} that "
            "are labelled 0: use 'scores'"
        )


def _scores(targets: Targets) -> Tensor:
    P = targets.passage_ids_P.shape[0]
    bare = P if targets.scores_P is None else int(targets.scores_P.isnan().sum())
    if targets.scores_P is None or bare:
        raise ConfigError(
            f"loss.labels: 'scores' needs a teacher's score for every passage, and {bare} of {P} in the batch of step "
            f"{targets.step + 1} have none: give the rows pos_scores and neg_scores, or use 'relevance'"
        )
    return targets.scores_P
