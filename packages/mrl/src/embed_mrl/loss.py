"""Another loss at several dimensions. Suffixes of :mod:`embed_core.types`; d counts the first values of a vector."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional

from embed_core.distributed.seeds import seed_of
from embed_core.embeddings import detach, missing_kind
from embed_core.protocols import TakesOtherDense, keeps_rows_apart, provides
from embed_core.types import Batch, Embeddings, LossOutput
from embed_mrl import prefix
from embed_mrl.dims import resolved

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embed_core.protocols import Loss
    from embed_core.types import Targets
    from embed_mrl.config import MatryoshkaConfig

_SEED_TAG = 0x4D524C
"""Separates the draw of dimensions from other draws by (seed, step)."""


class MatryoshkaLoss(nn.Module):
    """``Σ_d w[d] · L(v[:d] / ‖v[:d]‖)`` (Kusupati et al. 2022, arXiv 2205.13147), L the inner loss.

    Only dense vectors are cut. What else a loss reads is the same at every dimension: of a loss that offers
    :class:`~embed_core.protocols.TakesOtherDense`, terms without dense vectors are counted once, with the full
    dimension. To another loss lexical weights and token vectors are given at every dimension, with a gradient at the
    full one only.

    With ``n_dims_per_step``, the dimensions besides the full one are drawn by (seed, step): the same on every rank and
    after a resume.
    Metrics: the inner loss's own at the full dimension; ``loss@d`` and, where it has one, ``accuracy@d`` at the others.
    """

    inner: Any

    def __init__(self, config: MatryoshkaConfig, inner: Loss, seed: int) -> None:
        super().__init__()
        self.config, self.inner, self._seed = config, inner, seed
        self.shares_rows = bool(getattr(inner, "shares_rows", False))
        self.in_batch_by_row = keeps_rows_apart(inner)

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        """The weighted sum; where the inner loss shares rows, of its parts.

        Raises ConfigError without dense vectors, for dimensions they do not have, and what the inner loss raises.
        """
        full = int(_dense(batch.query).shape[1])
        dims = self._dims(full, targets.step)
        whole, others = self._outputs(batch, targets, dims)
        loss, metrics = self._weight(full) * whole.loss, dict(whole.metrics)
        for dim, output in zip(dims[1:], others, strict=True):
            loss = loss + self._weight(dim) * output.loss
            metrics[f"loss@{dim}"] = output.loss.detach()
            if "accuracy" in output.metrics:
                metrics[f"accuracy@{dim}"] = output.metrics["accuracy"]
        return LossOutput(loss, metrics)

    def _dims(self, full: int, step: int) -> list[int]:
        """The dimensions of this step, the full one first, then descending."""
        dims = resolved(self.config.dims, full, "loss.dims")
        count = self.config.n_dims_per_step
        if count == -1 or count >= len(dims):
            return list(dims)
        drawn = random.Random(seed_of(self._seed, step, _SEED_TAG)).sample(dims[1:], count - 1)
        return [full, *sorted(drawn, reverse=True)]

    def _weight(self, dim: int) -> float:
        if self.config.weights is None or self.config.dims is None or dim not in self.config.dims:
            return 1.0
        return self.config.weights[self.config.dims.index(dim)]

    def _outputs(self, batch: Batch, targets: Targets, dims: Sequence[int]) -> tuple[LossOutput, list[LossOutput]]:
        """The inner loss at the full dimension, and at each of the others."""
        views = [Batch(*(cut(side, dim) for side in batch)) for dim in dims]
        if provides(self.inner, TakesOtherDense):
            pairs = [(_dense(view.query), _dense(view.passage)) for view in views[1:]]
            whole, parts = self.inner.with_other_dense(views[0], targets, pairs)
            return whole, [LossOutput(part, {}) for part in parts]
        if prefix.serves(self.inner, batch, targets, dims):
            outputs = prefix.outputs(self.inner, batch, views, targets, dims)
        else:
            outputs = [self.inner(view, targets) for view in [views[0], *map(_dense_gradient_only, views[1:])]]
        return outputs[0], list(outputs[1:])


def cut(embeddings: Embeddings, dim: int) -> Embeddings:
    """The first ``dim`` values of the dense vectors at unit length, as new tensors; the other kinds as they are."""
    return embeddings._replace(dense_ND=functional.normalize(_dense(embeddings)[:, :dim], dim=-1))


def _dense_gradient_only(view: Batch) -> Batch:
    return Batch(*(detach(side)._replace(dense_ND=side.dense_ND) for side in view))


def _dense(embeddings: Embeddings) -> Tensor:
    if embeddings.dense_ND is None:
        raise missing_kind(embeddings, "dense")
    return embeddings.dense_ND
