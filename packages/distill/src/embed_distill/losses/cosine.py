"""Embedding distillation with the cosine distance."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cosine_similarity

from embed_distill.losses.embedding import EmbeddingMatch


class TeacherCosine(EmbeddingMatch):
    """``mean_n 1 − cos(student[n], teacher[n])`` (Zhang et al. 2024, arXiv 2412.19048); lengths have no effect."""

    shows_cosine = False

    def distances(self, student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
        """One distance for each text, ``[N]``."""
        return 1 - cosine_similarity(student_ND, teacher_ND, dim=-1)
