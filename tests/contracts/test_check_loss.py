"""`check_loss` passes an honest loss and catches each broken promise."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from embed_core.testing import check_loss
from embed_core.types import Batch, LossOutput, Targets

torch.set_num_threads(1)
Reduce = Callable[[Tensor, Batch, Targets], LossOutput]


class CrossEntropy:
    """In-batch cross-entropy, reduced and dressed up by ``finish``."""

    def __init__(self, finish: Reduce) -> None:
        self.finish = finish

    def __call__(self, batch: Batch, targets: Targets) -> LossOutput:
        assert batch.query.dense_ND is not None
        assert batch.passage.dense_ND is not None
        logits_BP = batch.query.dense_ND @ batch.passage.dense_ND.T
        rows_B = torch.nn.functional.cross_entropy(logits_BP, targets.positive_columns_B, reduction="none")
        return self.finish(rows_B, batch, targets)


def mean(rows_B: Tensor, batch: Batch, targets: Targets) -> LossOutput:
    return LossOutput(rows_B.mean(), {"dense": rows_B.mean().detach()})


def test_honest_loss_passes() -> None:
    check_loss(CrossEntropy(mean))


def test_single_row_without_negatives_may_cost_nothing() -> None:
    assert float(CrossEntropy(mean)(*_one_row()).loss.detach()) == 0.0


def _one_row() -> tuple[Batch, Targets]:
    from embed_core.testing import random_batch

    return random_batch(1, negatives=(0,))


def summed(rows_B: Tensor, batch: Batch, targets: Targets) -> LossOutput:
    return LossOutput(rows_B.sum(), {})


def per_row(rows_B: Tensor, batch: Batch, targets: Targets) -> LossOutput:
    return LossOutput(rows_B, {})


def detached(rows_B: Tensor, batch: Batch, targets: Targets) -> LossOutput:
    return LossOutput(rows_B.mean().detach(), {})


def bare(rows_B: Tensor, batch: Batch, targets: Targets) -> LossOutput:
    return rows_B.mean()  # type: ignore[return-value]


def graph_in_metrics(rows_B: Tensor, batch: Batch, targets: Targets) -> LossOutput:
    return LossOutput(rows_B.mean(), {"dense": rows_B.mean()})


def float_metric(rows_B: Tensor, batch: Batch, targets: Targets) -> LossOutput:
    return LossOutput(rows_B.mean(), {"dense": 1.0})  # type: ignore[dict-item]


def vector_metric(rows_B: Tensor, batch: Batch, targets: Targets) -> LossOutput:
    return LossOutput(rows_B.mean(), {"dense": rows_B.detach()})


def by_position(rows_B: Tensor, batch: Batch, targets: Targets) -> LossOutput:
    weight_B = torch.arange(1, len(rows_B) + 1, dtype=rows_B.dtype)
    return LossOutput((rows_B * weight_B / weight_B.sum()).sum(), {})


def random(rows_B: Tensor, batch: Batch, targets: Targets) -> LossOutput:
    return LossOutput(rows_B.mean() * torch.rand(()), {})


def in_place(rows_B: Tensor, batch: Batch, targets: Targets) -> LossOutput:
    value = rows_B.mean().clone()
    assert batch.query.dense_ND is not None
    batch.query.dense_ND.data.mul_(2)
    return LossOutput(value, {})


def unmatched(rows_B: Tensor, batch: Batch, targets: Targets) -> LossOutput:
    return LossOutput(rows_B.mean() / (len(rows_B) - 1), {})


def unconnected(rows_B: Tensor, batch: Batch, targets: Targets) -> LossOutput:
    return LossOutput(rows_B.detach().mean() * torch.ones((), requires_grad=True), {})


def narrowed(rows_B: Tensor, batch: Batch, targets: Targets) -> LossOutput:
    noise = 1.0 if rows_B.dtype == torch.float32 else 1.01
    return LossOutput(rows_B.mean() * noise, {})


@pytest.mark.parametrize(
    ("finish", "message"),
    [
        (summed, "reduce by the mean over rows, not by the sum"),
        (per_row, "not that of a scalar"),
        (detached, "the loss has no gradient"),
        (bare, "must return LossOutput, not Tensor"),
        (graph_in_metrics, "keeps the graph alive"),
        (float_metric, "is float, not a tensor"),
        (vector_metric, r"metric 'dense' has shape \(6,\)"),
        (by_position, "with the rows in another order"),
        (random, "must depend on its inputs alone"),
        (in_place, "changed query.dense in place"),
        (unmatched, r"1 rows: the loss is (inf|nan)"),
        (unconnected, "reaches no embedding"),
        (narrowed, "float32 gives"),
    ],
)
def test_broken_promise_is_named(finish: Reduce, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_loss(CrossEntropy(finish))


def test_gradient_of_the_wrong_rows_is_caught() -> None:
    """The value is right, the gradient goes to the row before."""

    def loss(batch: Batch, targets: Targets) -> LossOutput:
        assert batch.query.dense_ND is not None
        query_BD = batch.query.dense_ND
        straight_BD = query_BD.detach() + query_BD[:1] - query_BD[:1].detach()
        return CrossEntropy(mean)(batch._replace(query=batch.query._replace(dense_ND=straight_BD)), targets)

    with pytest.raises(AssertionError, match=r"the gradient of query.dense is not that of the same rows"):
        check_loss(loss)


def test_teacher_scores_that_are_missing_must_not_spread() -> None:
    def loss(batch: Batch, targets: Targets) -> LossOutput:
        assert targets.scores_P is not None
        value = CrossEntropy(mean)(batch, targets).loss * targets.scores_P.mean()
        return LossOutput(value, {})

    with pytest.raises(AssertionError, match="the loss is nan"):
        check_loss(loss, scores=True)
