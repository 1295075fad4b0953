"""The same value and gradient as sentence-transformers' losses on the same inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.testing import random_batch
from embed_core.testing.batches import leaves
from embed_core.types import Batch, Targets, TeacherVectors
from embed_distill.losses import config as configs

st = pytest.importorskip("sentence_transformers.losses")
CONTEXT = BuildContext(registry=Registry(), announce=lambda line: None)
ROWS, NEGATIVES, WIDTH, TOLERANCE = 6, 3, 16, 1e-5


class _Columns(torch.nn.Module):
    """What their losses call a model, giving embeddings that are at hand."""

    device = torch.device("cpu")

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features


@pytest.fixture
def batch() -> tuple[Batch, Targets]:
    """Groups of four; teacher vectors of unit length, teacher scores in every row."""
    batch, targets = random_batch(ROWS, negatives=(NEGATIVES,), width=WIDTH, repeats=False)
    generator = torch.Generator().manual_seed(8)
    vectors = [normalize(torch.randn(n, WIDTH, generator=generator), dim=-1) for n in (ROWS, ROWS * (1 + NEGATIVES))]
    scores_P = torch.randn(ROWS * (1 + NEGATIVES), generator=generator) * 2
    return batch, targets._replace(teacher=TeacherVectors(*vectors), scores_P=scores_P)


def columns(query: Tensor, passage: Tensor) -> list[Tensor]:
    """One tensor per column of a dataset of theirs: anchors, positives, each hard negative."""
    return [query, *passage.reshape(ROWS, 1 + NEGATIVES, -1).unbind(1)]


def dense(batch: Batch) -> tuple[Tensor, Tensor]:
    assert batch.query.dense_ND is not None
    assert batch.passage.dense_ND is not None
    return batch.query.dense_ND, batch.passage.dense_ND


def theirs(loss: Any, batch: Batch, labels: Tensor | None) -> Tensor:
    features = [{"sentence_embedding": column} for column in columns(*dense(batch))]
    found = loss(features, labels)
    return torch.stack(list(found.values())).sum() if isinstance(found, dict) else found


def assert_same(ours: Tensor, other: Tensor, batch: Batch) -> None:
    assert float(ours.detach()) == pytest.approx(float(other.detach()), abs=TOLERANCE)
    assert abs(float(ours.detach())) > 1e-3
    tensors = list(leaves(batch).values())
    pairs = zip(torch.autograd.grad(ours, tensors), torch.autograd.grad(other, tensors), strict=True)
    for one, two in pairs:
        assert torch.allclose(one, two, atol=TOLERANCE, rtol=TOLERANCE)
        assert bool(one.any())


def vectors_as_labels(targets: Targets) -> Tensor:
    """[B, columns, W]."""
    assert targets.teacher is not None
    return torch.stack(columns(*targets.teacher), dim=1)


@pytest.mark.parametrize(
    ("config", "loss"),
    [
        (configs.TeacherMSEConfig(), lambda: st.MSELoss(_Columns())),
        (configs.TeacherCosineConfig(), lambda: st.EmbedDistillLoss(_Columns(), distance_metric="cosine")),
        (configs.TeacherL2Config(), lambda: st.EmbedDistillLoss(_Columns(), distance_metric="l2")),
    ],
    ids=["mse", "cosine", "l2"],
)
def test_embedding_match(batch: tuple[Batch, Targets], config: Any, loss: Any) -> None:
    found, targets = batch
    other = theirs(loss(), found, vectors_as_labels(targets))
    assert_same(config.build(CONTEXT)(found, targets).loss, other, found)


@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (0.5, 2.0)])
def test_kl_of_scores(batch: tuple[Batch, Targets], temperatures: tuple[float, float]) -> None:
    found, targets = batch
    assert targets.scores_P is not None
    student, teacher = temperatures
    config = configs.TeacherKLConfig(
        source="scores", temperature=student, teacher_temperature=teacher, temperature_squared=True
    )
    loss = st.DistillKLDivLoss(_Columns(), student_temperature=student, teacher_temperature=teacher)
    other = theirs(loss, found, targets.scores_P.reshape(ROWS, -1))
    assert_same(config.build(CONTEXT)(found, targets).loss, other, found)


def test_kl_of_the_teachers_cosines(batch: tuple[Batch, Targets]) -> None:
    found, targets = batch
    labels = vectors_as_labels(targets)
    cosines = (labels[:, :1] * labels[:, 1:]).sum(-1)
    config = configs.TeacherKLConfig(source="vectors", temperature=0.3, temperature_squared=True)
    other = theirs(st.DistillKLDivLoss(_Columns(), temperature=0.3), found, cosines)
    assert_same(config.build(CONTEXT)(found, targets).loss, other, found)


def test_margin_mse(batch: tuple[Batch, Targets]) -> None:
    found, targets = batch
    assert targets.scores_P is not None
    other = theirs(st.MarginMSELoss(_Columns()), found, targets.scores_P.reshape(ROWS, -1))
    assert_same(configs.MarginMSEConfig().build(CONTEXT)(found, targets).loss, other, found)


@pytest.mark.parametrize("aggregation", ["sum", "mean"])
def test_spread_out(aggregation: Any) -> None:
    """They take each column of a dataset by itself: the same where a row has one passage."""
    found, targets = random_batch(ROWS, negatives=(0,), width=WIDTH, repeats=False)
    # Vectors that lie together, so that the second moment is above that of a sphere.
    shifted = [
        side._replace(dense_ND=(value.detach() + 0.3).requires_grad_())
        for side, value in zip(found, dense(found), strict=True)
    ]
    found = Batch(*shifted)
    loss = st.GlobalOrthogonalRegularizationLoss(
        _Columns(), mean_weight=0.7, second_moment_weight=1.5, aggregation=aggregation
    )
    features = [{"sentence_embedding": column} for column in dense(found)]
    other = torch.stack(list(loss(features).values())).sum()
    config = configs.SpreadOutConfig(mean_weight=0.7, second_moment_weight=1.5, aggregation=aggregation)
    assert_same(config.build(CONTEXT)(found, targets).loss, other, found)
