"""Embedding distillation with the Euclidean distance."""

from __future__ import annotations

import torch
from torch import Tensor

from embed_distill.losses.embedding import EmbeddingMatch


class TeacherL2(EmbeddingMatch):
    """``mean_n ‖student[n] − teacher[n]‖`` (Kim et al. 2023, arXiv 2301.12005).

    Unlike the squared error's, its gradient does not shrink as vectors come near; at equal vectors it is 0.
    """

    def distances(self, student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
        """One distance for each text, ``[N]``."""
        return torch.linalg.vector_norm(student_ND - teacher_ND, dim=-1)
