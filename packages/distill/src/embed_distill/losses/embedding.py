"""The base of losses that compare each text's vector with the teacher's of the same text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from embed_core.types import LossOutput
from embed_distill.losses.teacher import count, fitted, own_texts

if TYPE_CHECKING:
    from embed_core.types import Batch, Targets
    from embed_distill.losses.config import EmbeddingMatchConfig


class EmbeddingMatch(nn.Module):
    """``mean_n d(student[n], teacher[n])`` over the batch's texts, its queries and all its passages.

    A subclass defines ``d``. Each rank computes the texts of its own rows.
    Metrics: ``loss``; ``cosine``, the mean cosine with the teacher's vectors, unless ``d`` already is the cosine.
    """

    shares_rows = True
    shows_cosine = True

    def __init__(self, config: EmbeddingMatchConfig) -> None:
        super().__init__()
        self.config = config

    def distances(self, student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
        """One distance ``d`` for each text, ``[N]``."""
        raise NotImplementedError

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        """The mean, or the share of it from ``targets.own_rows``. Raises DataError without a teacher's vectors,
        ConfigError without dense vectors or for a teacher of another width."""
        config = self.config
        found = own_texts(batch, targets, config.texts, config.kind)
        student_ND, teacher_ND = fitted(found, config.kind, cut=config.teacher_dims == "first", unit=config.normalize)
        total = max(count(targets, config.texts), 1)
        loss = self.distances(student_ND, teacher_ND).sum() / total
        metrics = {"loss": loss.detach()}
        if self.shows_cosine:
            metrics["cosine"] = cosine_similarity(student_ND.detach(), teacher_ND, dim=-1).sum() / total
        return LossOutput(loss, metrics)
