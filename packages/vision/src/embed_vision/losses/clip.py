"""CLIP's symmetric cross-entropy with a learned scale (loss kind ``clip``)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from embed_core.embeddings import missing_kind
from embed_core.losses.config import InfoNCEConfig
from embed_core.losses.infonce import InfoNCE
from embed_core.types import LossOutput

if TYPE_CHECKING:
    from embed_core.types import Batch, Targets
    from embed_vision.losses.config import ClipLossConfig


class ClipLoss(nn.Module):
    """InfoNCE in both directions over ``exp(logit_scale) · q·p`` (Radford et al. 2021, arXiv 2103.00020).

    The loss is the mean over both directions and the rows; each query competes for its positive with all P passages,
    each positive for its query with the B queries. Memory is that of :class:`~embed_core.losses.infonce.InfoNCE`: large
    tables are computed in tiles, twice, and each rank computes its own rows.
    Metrics: ``loss``, ``accuracy``, ``masked``, and ``scale``, the factor at this step.
    """

    shares_rows = True

    def __init__(self, config: ClipLossConfig, start: float) -> None:
        """``start`` is the logarithm of the scale."""
        super().__init__()
        self.config = config
        # One element, not a scalar: DeepSpeed broadcasts parameters as bytes, and a scalar has no byte view.
        self.logit_scale = nn.Parameter(torch.tensor([float(start)]), requires_grad=config.learnable)

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        """The mean over the B rows, or the share of ``targets.own_rows``. Raises ConfigError without dense vectors."""
        query_BD = batch.query.dense_ND
        if query_BD is None or batch.passage.dense_ND is None:
            raise missing_kind(batch.query if query_BD is None else batch.passage, "dense")
        scale = _below(self.logit_scale.squeeze(), math.log(self.config.max_scale)).exp().to(query_BD.dtype)
        # Scaling the queries carries the scale's gradient through the tiled loss, which has no scale of its own.
        scaled = batch._replace(query=batch.query._replace(dense_ND=query_BD * scale))
        loss, metrics = self._infonce(scale)(scaled, targets)
        B = query_BD.shape[0]
        start, stop = targets.own_rows or (0, B)
        return LossOutput(loss, {**metrics, "scale": scale.detach() * ((stop - start) / B)})

    def _infonce(self, scale: Tensor) -> InfoNCE:
        mask = self.config.mask
        if mask.margin is not None:  # the margin is in units of the similarity
            mask = mask.model_copy(update={"margin": mask.margin * float(scale.detach())})
        return InfoNCE(InfoNCEConfig(temperature=1.0, symmetric=True, mask=mask))


def _below(value: Tensor, limit: float) -> Tensor:
    """``value``, clamped to at most ``limit``."""
    below: Tensor = _Below.apply(value, limit)
    return below


class _Below(torch.autograd.Function):
    """Clamps without trapping: above the limit, gradients that lead back below it still pass.

    CLIP clamps the parameter itself after each step, which under ZeRO would not reach the optimizer's own copy.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, limit: float) -> Tensor:
        ctx.beyond = bool(value > limit)
        return value.clamp(max=limit)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient.clamp(min=0) if ctx.beyond else gradient, None
