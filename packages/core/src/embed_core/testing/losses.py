"""Checks what :class:`embed_core.protocols.Loss` promises."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from embed_core.protocols import Loss
from embed_core.testing.batches import Part, leaves, permuted, random_batch, to_dtype
from embed_core.types import Batch, LossOutput, Targets

COPIES = 4


def check_loss(
    loss: Loss, *, parts: Sequence[Part] = ("dense",), scores: bool = False, tolerance: float = 1e-5
) -> None:
    """Assert a loss's promises on synthetic batches whose embeddings hold ``parts``.

    Checked, with ragged groups, rows without negatives, two rows of one positive, and a single row: a finite scalar
    with a gradient that reaches the embeddings; detached scalar metrics; the inputs are left alone; the same value
    twice; the same value and gradient when the rows come in another order; the same in float64 within ``tolerance``
    (relative); a mean over rows rather than a sum. ``scores`` gives most rows teacher scores.

    Raises AssertionError.
    """
    for rows, negatives in ((6, (2, 0, 1, 3)), (5, (0,)), (4, (3,)), (1, (2,)), (1, (0,))):
        batch, targets = random_batch(rows, parts=parts, negatives=negatives, scores=scores, seed=rows)
        before = {name: value.detach().clone() for name, value in leaves(batch).items()}
        output = loss(batch, targets)
        _check_output(output, f"{rows} rows")
        for name, value in leaves(batch).items():
            assert torch.equal(value.detach(), before[name]), f"the loss changed {name} in place"
    batch, targets = random_batch(parts=parts, scores=scores)
    _check_repeatable(loss, batch, targets)
    _check_order(loss, batch, targets, tolerance)
    _check_wide(loss, batch, targets, tolerance)
    _check_mean(loss, parts, scores)


def _check_output(output: LossOutput, context: str) -> None:
    assert isinstance(output, LossOutput), f"a loss must return LossOutput, not {type(output).__name__}"
    value = output.loss
    assert value.shape == (), f"{context}: the loss has shape {tuple(value.shape)}, not that of a scalar"
    assert bool(torch.isfinite(value)), f"{context}: the loss is {float(value.detach())}"
    assert value.requires_grad, f"{context}: the loss has no gradient"
    for name, metric in output.metrics.items():
        assert isinstance(metric, Tensor), f"metric {name!r} is {type(metric).__name__}, not a tensor"
        assert metric.shape == (), f"metric {name!r} has shape {tuple(metric.shape)}, not that of a scalar"
        assert not metric.requires_grad, f"metric {name!r} keeps the graph alive: detach it"


def _gradients(loss: Loss, batch: Batch, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
    tensors = leaves(batch)
    value = loss(batch, targets).loss
    found = torch.autograd.grad(value, list(tensors.values()), allow_unused=True)
    given = {name: gradient for name, gradient in zip(tensors, found, strict=True) if gradient is not None}
    for name, gradient in given.items():
        assert bool(torch.isfinite(gradient).all()), f"the gradient of {name} is not finite"
    assert any(bool(gradient.any()) for gradient in given.values()), "the gradient reaches no embedding"
    return value.detach(), given


def _check_repeatable(loss: Loss, batch: Batch, targets: Targets) -> None:
    first, second = (float(loss(batch, targets).loss.detach()) for _ in range(2))
    assert first == second, f"the same batch costs {first} and then {second}: a loss must depend on its inputs alone"


def _check_order(loss: Loss, batch: Batch, targets: Targets, tolerance: float) -> None:
    order = torch.randperm(len(targets.row_ids_B), generator=torch.Generator().manual_seed(1)).tolist()
    moved, moved_targets = permuted(batch, targets, order)
    value, gradients = _gradients(loss, batch, targets)
    other, other_gradients = _gradients(loss, moved, moved_targets)
    assert _close(value, other, tolerance), (
        f"the loss is {float(value):.6g} and, with the rows in another order, {float(other):.6g}"
    )
    expected, _ = permuted(_filled(batch, gradients), targets, order)
    for name, gradient in other_gradients.items():
        same = _close(leaves(expected)[name].detach(), gradient, tolerance)
        assert same, f"with the rows in another order the gradient of {name} is not that of the same rows"


def _check_wide(loss: Loss, batch: Batch, targets: Targets, tolerance: float) -> None:
    narrow = loss(batch, targets).loss
    wide = loss(to_dtype(batch, torch.float64), targets).loss
    assert _close(narrow, wide, max(tolerance, 1e-4)), (
        f"float32 gives {float(narrow.detach()):.6g}, float64 {float(wide.detach()):.6g}"
    )


def _check_mean(loss: Loss, parts: Sequence[Part], scores: bool) -> None:
    rows = 16
    batch, targets = random_batch(rows, parts=parts, scores=scores, repeats=False)
    once = float(loss(batch, targets).loss.detach())
    several = float(loss(*permuted(batch, targets, [*range(rows)] * COPIES)).loss.detach())
    # Copies of the negatives may add log(COPIES) to a softmax's mean; a sum grows with the rows.
    assert several <= 2 * (once + math.log(COPIES)), (
        f"the same rows {COPIES} times over cost {several:.3g} instead of {once:.3g}: "
        "reduce by the mean over rows, not by the sum"
    )


def _filled(batch: Batch, values: dict[str, Tensor]) -> Batch:
    """``batch`` with its float tensors replaced by ``values``, zero where there is none."""
    query, passage = (
        embeddings._replace(
            dense_ND=_value(values, f"{column}.dense", embeddings.dense_ND),
            sparse=embeddings.sparse
            and embeddings.sparse._replace(weights_K=_value(values, f"{column}.sparse", embeddings.sparse.weights_K)),
            multi=embeddings.multi
            and embeddings.multi._replace(vectors_TC=_value(values, f"{column}.multi", embeddings.multi.vectors_TC)),
        )
        for column, embeddings in zip(("query", "passage"), batch, strict=True)
    )
    return Batch(query, passage)


def _value(values: dict[str, Tensor], name: str, like: Tensor | None) -> Tensor | None:
    return like if like is None else values.get(name, torch.zeros_like(like))


def _close(first: Tensor, second: Tensor, tolerance: float) -> bool:
    return bool(torch.allclose(first.detach().double(), second.detach().double(), rtol=tolerance, atol=tolerance))
