"""A loss per source: rows of a batch are told apart by their ids, and each kind goes to its own loss.

Suffixes as in :mod:`embed_core.types`; M counts picked rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from embed_core.embeddings import ragged_index, select
from embed_core.errors import ConfigError
from embed_core.protocols import keeps_rows_apart, shares_rows
from embed_core.types import Batch, LossOutput, Targets, TeacherVectors
from embed_data.mix.dataset import MixDataset

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_data.mix.config import BySourceLossConfig


class BySourceLoss(nn.Module):
    """``1/B · Σ_b w[b] · ℓ[b]``: w is the weight of row b's source, ℓ[b] its term in the loss of its strategy.

    Rows of in-batch sources see each other's passages; rows of own-only sources see their own group, by a loss that
    looks no further. Different weights within one batch need an inner loss that ``shares_rows``, as `infonce` does:
    its part of a range of rows is asked for, with all passages as negatives. Metrics are means over the rows, without
    the weights.
    """

    def __init__(self, inner: nn.Module, own_only: nn.Module | None, dataset: MixDataset) -> None:
        super().__init__()
        self.inner, self.own_only = inner, own_only
        configs = [part.config for part in dataset.parts]
        self._weights = [config.weight for config in configs]
        self._starts = torch.as_tensor(dataset.starts, dtype=torch.int64)
        self._own = torch.tensor([config.negative_strategy == "own-only" for config in configs])
        losses = [loss for loss in (inner, own_only) if loss is not None]
        self.in_batch_by_row = all(map(keeps_rows_apart, losses))
        self._plain = not bool(self._own.any()) and set(self._weights) == {1.0}

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        """Raises ConfigError for different weights in one batch under a loss that cannot tell rows apart."""
        if self._plain:
            output: LossOutput = self.inner(batch, targets)
            return output
        B = targets.row_ids_B.shape[0]
        part_B = torch.searchsorted(self._starts, targets.row_ids_B.cpu(), right=True) - 1
        own_B = self._own[part_B]
        total: Any = 0.0
        metrics: dict[str, Tensor] = {}
        for loss, chosen_B in ((self.inner, ~own_B), (self.own_only, own_B)):
            rows_M = chosen_B.nonzero().squeeze(1)
            if not rows_M.numel():
                continue
            assert loss is not None, "build_loss sees to it"
            rows_M = rows_M[torch.argsort(part_B[rows_M], stable=True)]
            output = self._weighted(loss, *subset(batch, targets, rows_M), part_B[rows_M].tolist())
            share = rows_M.shape[0] / B
            total = total + share * output.loss
            for name, value in output.metrics.items():
                metrics[name] = metrics.get(name, torch.zeros_like(value)) + share * value
        return LossOutput(total, metrics)

    def _weighted(self, loss: nn.Module, batch: Batch, targets: Targets, parts: list[int]) -> LossOutput:
        """The mean over these rows, which are sorted by source."""
        runs = _runs([self._weights[part] for part in parts])
        if len(runs) == 1:
            output = loss(batch, targets)
            return LossOutput(runs[0][0] * output.loss, output.metrics)
        if not shares_rows(loss):
            raise ConfigError(
                f"loss by-source: sources of different weight are in one batch, and {type(loss).__name__} cannot tell "
                "rows apart: use the sampler `by-source`, or an inner loss that shares rows, such as `infonce`"
            )
        total: Any = 0.0
        metrics: dict[str, Tensor] = {}
        for weight, start, stop in runs:
            output = loss(batch, targets._replace(own_rows=(start, stop)))
            total = total + weight * output.loss
            for name, value in output.metrics.items():
                metrics[name] = metrics.get(name, torch.zeros_like(value)) + value
        return LossOutput(total, metrics)


def build_loss(config: BySourceLossConfig, context: BuildContext) -> BySourceLoss:
    """See :meth:`BySourceLossConfig.build`."""
    dataset = context.dataset()
    while not isinstance(dataset, MixDataset) and hasattr(dataset, "inner"):  # a dataset around it: the rows are its
        dataset = dataset.inner
    if not isinstance(dataset, MixDataset):
        raise ConfigError(f"loss by-source: the data is {dataset.name!r}, no `mix`: use the loss `{config.inner.kind}`")
    alone = [part.name for part in dataset.parts if part.config.negative_strategy == "own-only"]
    if alone and config.own_only is None:
        raise ConfigError(
            f"loss by-source: source {alone[0]!r} has negative_strategy own-only: set `own_only`, for instance to "
            "{kind: infonce, in_batch: false}"
        )
    inner: Any = config.inner.build(context)
    own_only: Any = config.own_only.build(context) if alone and config.own_only is not None else None
    return BySourceLoss(inner, own_only, dataset)


def subset(batch: Batch, targets: Targets, rows_M: Tensor) -> tuple[Batch, Targets]:
    """The rows ``rows_M`` of a global batch, in that order, each with its group; gradients flow through."""
    rows_M = rows_M.to(targets.row_ids_B.device)
    columns_P, groups_M1 = ragged_index(targets.groups_B1, rows_M)
    known_K, known_M1 = ragged_index(targets.positive_offsets_B1, rows_M)
    assert targets.own_rows is None, "a loss that does not share rows is given all of them"
    taught = targets.teacher and TeacherVectors(targets.teacher.query_BW[rows_M], targets.teacher.passage_PW[columns_P])
    chosen = Targets(
        groups_B1=groups_M1,
        row_ids_B=targets.row_ids_B[rows_M],
        query_ids_B=targets.query_ids_B[rows_M],
        passage_ids_P=targets.passage_ids_P[columns_P],
        passage_keys_P=targets.passage_keys_P[columns_P],
        positives_K=targets.positives_K[known_K],
        positive_offsets_B1=known_M1,
        scores_P=None if targets.scores_P is None else targets.scores_P[columns_P],
        step=targets.step,
        teacher=taught,
        in_batch_B=None if targets.in_batch_B is None else targets.in_batch_B[rows_M],
    )
    return Batch(select(batch.query, rows_M), select(batch.passage, columns_P)), chosen


def _runs(weights: list[float]) -> list[tuple[float, int, int]]:
    """Ranges of equal weight, as (weight, start, stop)."""
    runs: list[tuple[float, int, int]] = []
    for at, weight in enumerate(weights):
        if runs and runs[-1][0] == weight:
            runs[-1] = (weight, runs[-1][1], at + 1)
        else:
            runs.append((weight, at, at + 1))
    return runs
