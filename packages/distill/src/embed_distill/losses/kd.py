"""Knowledge distillation: adds a teacher's loss to any loss. Suffixes of :mod:`embed_core.types`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from embed_core.protocols import keeps_rows_apart, shares_rows
from embed_core.types import LossOutput

if TYPE_CHECKING:
    from embed_core.protocols import Loss
    from embed_core.types import Batch, Targets
    from embed_distill.losses.config import DistilledConfig


class DistilledLoss(nn.Module):
    """``(1 - alpha) · inner + alpha · kd`` (Hinton, Vinyals & Dean 2015, arXiv 1503.02531).

    A term of weight 0 is not computed. Ranks split the rows where both losses support it.
    Metrics: the inner loss's own, its value as ``task``; the other's as ``kd/NAME``, its value as ``kd``.
    """

    inner: Any
    kd: Any

    def __init__(self, config: DistilledConfig, inner: Loss, kd: Loss) -> None:
        super().__init__()
        self.inner, self.kd, self.alpha = inner, kd, config.alpha
        self.shares_rows = all(shares_rows(loss) for loss in (inner, kd))
        self.in_batch_by_row = keeps_rows_apart(inner)  # a teacher's vectors need no negatives

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        """The weighted sum; where ranks split the rows, this rank's share. Raises what the two raise."""
        if self.alpha == 0:
            output: LossOutput = self.inner(batch, targets)
            return output
        taught: LossOutput = self.kd(batch, targets)
        metrics = {
            "kd": taught.loss.detach(),
            **{f"kd/{n}": value for n, value in taught.metrics.items() if n != "loss"},
        }
        if self.alpha == 1:
            return LossOutput(taught.loss, metrics)
        task: LossOutput = self.inner(batch, targets)
        own = {name: value for name, value in task.metrics.items() if name != "loss"}
        metrics = {**own, "task": task.loss.detach(), **metrics}
        return LossOutput((1 - self.alpha) * task.loss + self.alpha * taught.loss, metrics)
