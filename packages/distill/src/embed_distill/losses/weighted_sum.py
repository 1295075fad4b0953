"""The loss ``weighted-sum``: several losses of one batch, weighted and added."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from embed_core.embeddings import detach, map_values, values
from embed_core.protocols import shares_rows
from embed_core.types import Batch, LossOutput

if TYPE_CHECKING:
    from embed_core.types import Targets
    from embed_distill.losses.config import WeightedSumConfig


class WeightedSum(nn.Module):
    """``Σ_i w[i] · a[i] · L[i]``; a is 1, or with ``auto_scale`` one over the norm of L[i]'s first gradient.

    That gradient is with respect to all embeddings of the run's whole first batch, so a does not depend on the number
    of ranks; a term without gradient keeps 1. The scales are part of the training state, so a resumed run keeps them.
    Ranks split the rows in the terms that support it.
    Metrics: each term by its name, before its weight and scale; the terms' own by their names, with ``term.`` in front
    where several terms have a metric of that name.
    """

    scale_bits: Tensor

    def __init__(self, config: WeightedSumConfig, losses: Mapping[str, Any]) -> None:
        """``losses`` are the terms by name, without those of weight 0."""
        super().__init__()
        self.config, self.names = config, tuple(losses)
        self.losses = nn.ModuleList(losses.values())
        self._weights = [config.terms[name].weight for name in self.names]
        self._shares = [shares_rows(loss) for loss in losses.values()]
        self.shares_rows = any(self._shares)
        self._measured = not config.auto_scale
        # The bits of float64 values: a cast of the model to half precision leaves integers alone. 0 = not measured.
        self.register_buffer("scale_bits", torch.zeros(len(self.names), dtype=torch.int64))

    @property
    def scales(self) -> Tensor:
        """The factors of the terms besides their weights, float64, in the order of ``names``."""
        return self.scale_bits.view(torch.float64) if self._is_measured() else torch.ones(len(self.names)).double()

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        """The sum; where ``targets.own_rows`` is set, the share of these rows. Raises what the terms raise."""
        if self.config.auto_scale and not self._is_measured():
            self._measure(batch, targets)
        outputs = [self._output(place, batch, targets) for place in range(len(self.names))]
        parts = torch.stack([weight * one.loss for weight, one in zip(self._weights, outputs, strict=True)])
        if self.config.auto_scale:
            parts = parts * self.scales.to(parts)
        return LossOutput(parts.sum(), self._metrics(outputs))

    def _output(self, place: int, batch: Batch, targets: Targets) -> LossOutput:
        output: LossOutput = self.losses[place](batch, targets if self._shares[place] else whole(targets))
        if self._shares[place] or targets.own_rows is None:
            return output
        # Every rank computes the whole term and counts a share of it; the engine adds the shares up.
        start, stop = targets.own_rows
        share = (stop - start) / targets.row_ids_B.shape[0]
        return LossOutput(output.loss * share, {name: value * share for name, value in output.metrics.items()})

    def _metrics(self, outputs: list[LossOutput]) -> dict[str, Tensor]:
        found = {name: output.loss.detach() for name, output in zip(self.names, outputs, strict=True)}
        shown = Counter(name for output in outputs for name in output.metrics)
        for term, output in zip(self.names, outputs, strict=True):
            for name, value in output.metrics.items():
                if name != "loss":  # "loss" is the term itself
                    found[name if shown[name] == 1 and name not in self.names else f"{term}.{name}"] = value
        return found

    def _is_measured(self) -> bool:
        """Reads the device until the scales are there, then remembers it to save the synchronisation."""
        self._measured = self._measured or bool(self.scale_bits.any())
        return self._measured and self.config.auto_scale

    def _measure(self, batch: Batch, targets: Targets) -> None:
        norms = torch.stack([gradient_norm(loss, batch, whole(targets)) for loss in self.losses])
        usable = norms.isfinite() & (norms > 0)
        scales = torch.where(usable, 1 / norms, torch.ones_like(norms))
        self.scale_bits.copy_(scales.view(torch.int64))


def whole(targets: Targets) -> Targets:
    """The targets for a loss that has to be computed over all rows."""
    return targets._replace(own_rows=None)


def gradient_norm(loss: Any, batch: Batch, targets: Targets) -> Tensor:
    """Norm of the gradient of all float values of the batch's embeddings, a float64 scalar."""
    with torch.enable_grad():
        sides = [map_values(detach(side), lambda value: value.requires_grad_()) for side in batch]
        leaves = [value for side in sides for value in values(side)]
        given = torch.autograd.grad(loss(Batch(*sides), targets).loss, leaves, allow_unused=True)
    squares = [gradient.double().square().sum() for gradient in given if gradient is not None]
    if not squares:
        return leaves[0].new_zeros((), dtype=torch.float64)
    return torch.stack(squares).sum().sqrt()
