"""A cosine margin loss over the hardest negatives of the batch."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from embed_core.types import Batch, LossOutput, Targets


class HardestMargin(nn.Module):
    """``mean over rows of mean over the k hardest negatives of relu(margin - cos(q, p+) + cos(q, p-))``.

    This is the hinge of triplet losses (Schroff et al. 2015, FaceNet) against all passages of the batch, reduced to the
    hardest few (k = 1: the max of hinges of Faghri et al. 2018, VSE++). Passages that are known positives of a row, its
    own or by equal text, are never its negatives; a row without negatives costs 0.
    """

    def __init__(self, margin: float, hardest: int) -> None:
        super().__init__()
        self.margin = margin
        self.hardest = hardest

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        """Scalar loss; metrics: ``hinge``, equal to the loss, and ``violations``, the share of nonzero hinges."""
        query_BD, passage_PD = batch.query.dense_ND, batch.passage.dense_ND
        assert query_BD is not None, "this loss needs dense embeddings"
        assert passage_PD is not None, "this loss needs dense embeddings"
        cosine_BP = nn.functional.normalize(query_BD, dim=-1) @ nn.functional.normalize(passage_PD, dim=-1).T
        positive_B1 = cosine_BP.gather(1, targets.positive_columns_B[:, None])
        hinge_BP = torch.relu(self.margin - positive_B1 + cosine_BP)
        hinge_BP = hinge_BP.masked_fill(known_positive_BP(targets), 0.0)
        hinge_BK = hinge_BP.topk(min(self.hardest, hinge_BP.shape[1]), dim=1).values
        loss = hinge_BK.mean()
        violations = (hinge_BK > 0).to(loss.dtype).mean()
        return LossOutput(loss, {"hinge": loss.detach(), "violations": violations.detach()})


def known_positive_BP(targets: Targets) -> Tensor:
    """Bool [B,P]: column p is the drawn positive of row b, or has the text or the id of any of its positives."""
    columns_P = torch.arange(len(targets.passage_ids_P), device=targets.passage_ids_P.device)
    known_BP = columns_P[None, :] == targets.positive_columns_B[:, None]
    ends = targets.positive_offsets_B1.tolist()
    for row, (start, end) in enumerate(pairwise(ends)):
        positives = targets.positives_K[start:end]
        known_BP[row] |= torch.isin(targets.passage_ids_P, positives)
        known_BP[row] |= torch.isin(targets.passage_keys_P, positives) & (targets.passage_keys_P != 0)
    return known_BP
