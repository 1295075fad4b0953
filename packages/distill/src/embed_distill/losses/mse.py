"""Embedding distillation with the mean squared error."""

from __future__ import annotations

from torch import Tensor

from embed_distill.losses.embedding import EmbeddingMatch


class TeacherMSE(EmbeddingMatch):
    """``mean_n mean_d (student[n,d] − teacher[n,d])²`` (Reimers & Gurevych 2020, arXiv 2004.09813)."""

    def distances(self, student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
        """One distance for each text, ``[N]``."""
        return (student_ND - teacher_ND).square().mean(-1)
