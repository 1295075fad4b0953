"""Each loss against a loop in float64, value and gradient; its promises; its errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.errors import ConfigError, DataError
from embed_core.testing import check_loss, permuted, random_batch
from embed_core.testing.batches import leaves, to_dtype
from embed_core.types import Batch, LossOutput, Targets, TeacherVectors
from embed_distill.losses import blocks
from embed_distill.losses import config as configs

WIDTH = 16
CONTEXT = BuildContext(registry=Registry(), announce=lambda line: None)
Oracle = Callable[[list[Any], list[Any], list[Any], list[Any], list[range]], Tensor]


def taught(targets: Targets, width: int = WIDTH) -> Targets:
    """With vectors of a teacher, the same for the same text wherever it stands; not of unit length."""

    def vectors(ids: Tensor) -> Tensor:
        drawn = [torch.randn(width, generator=torch.Generator().manual_seed(one)) for one in ids.tolist()]
        return torch.stack(drawn)

    return targets._replace(teacher=TeacherVectors(vectors(targets.query_ids_B), vectors(targets.passage_ids_P)))


class Taught(torch.nn.Module):
    """A loss that gets a teacher's vectors with every batch, and never a run's first one."""

    def __init__(self, config: Any, width: int = WIDTH) -> None:
        super().__init__()
        self.inner, self.width = config.build(CONTEXT), width

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        found: LossOutput = self.inner(batch, taught(targets, self.width)._replace(step=1))
        return found


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.norm() * b.norm())


def columns(batch: Batch, targets: Targets) -> tuple[list[Any], list[Any], list[Any], list[Any], list[range]]:
    """Student queries and passages, the teacher's at unit length, the passages of each row."""
    assert targets.teacher is not None
    assert batch.query.dense_ND is not None
    assert batch.passage.dense_ND is not None
    bounds = targets.groups_B1.tolist()
    teacher = [list(normalize(side.double(), dim=-1)) for side in targets.teacher]
    groups = [range(start, stop) for start, stop in pairwise(bounds)]
    return list(batch.query.dense_ND), list(batch.passage.dense_ND), *teacher, groups  # type: ignore[return-value]


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def mse(q: Any, p: Any, tq: Any, tp: Any, groups: Any) -> Tensor:
    return mean([(s - t).pow(2).sum() / WIDTH for s, t in zip(q + p, tq + tp, strict=True)])


def cosine_loss(q: Any, p: Any, tq: Any, tp: Any, groups: Any) -> Tensor:
    return mean([1 - cosine(s, t) for s, t in zip(q, tq, strict=True)])


def l2(q: Any, p: Any, tq: Any, tp: Any, groups: Any) -> Tensor:
    return mean([(s - t).pow(2).sum().sqrt() for s, t in zip(p, tp, strict=True)])


def similarity(q: Any, p: Any, tq: Any, tp: Any, groups: Any) -> Tensor:
    s, t = q + p, tq + tp
    return mean([(cosine(s[i], s[j]) - cosine(t[i], t[j])) ** 2 for i in range(len(s)) for j in range(len(s))])


def kl_group(q: Any, p: Any, tq: Any, tp: Any, groups: Any) -> Tensor:
    rows = []
    for row, group in enumerate(groups):
        if len(group) > 1:
            student = torch.stack([q[row] @ p[i] / 0.1 for i in group]).softmax(0)
            teacher = torch.stack([tq[row] @ tp[i] / 0.3 for i in group]).softmax(0)
            rows.append((teacher * (teacher / student).log()).sum())
    return mean(rows)


def kl_batch(q: Any, p: Any, tq: Any, tp: Any, groups: Any) -> Tensor:
    rows = []
    for row in range(len(groups)):
        student = torch.stack([q[row] @ one / 0.2 for one in p]).softmax(0)
        teacher = torch.stack([tq[row] @ one / 0.2 for one in tp]).softmax(0)
        rows.append((teacher * (teacher / student).log()).sum())
    return mean(rows)


def margins(q: Any, p: Any, tq: Any, tp: Any, groups: Any) -> Tensor:
    return mean([
        (q[row] @ p[group[0]] - q[row] @ p[i] - 0.5 * (tq[row] @ tp[group[0]] - tq[row] @ tp[i])) ** 2
        for row, group in enumerate(groups) for i in group[1:]
    ])  # fmt: skip


def margins_batch(q: Any, p: Any, tq: Any, tp: Any, groups: Any) -> Tensor:
    return mean([
        (q[row] @ p[group[0]] - q[row] @ p[i] - (tq[row] @ tp[group[0]] - tq[row] @ tp[i])) ** 2
        for row, group in enumerate(groups) for i in range(len(p)) if i != group[0]
    ])  # fmt: skip


ORACLES: dict[str, tuple[Any, Oracle]] = {
    "mse": (configs.TeacherMSEConfig(), mse),
    "cosine of queries": (configs.TeacherCosineConfig(texts="queries"), cosine_loss),
    "l2 of passages": (configs.TeacherL2Config(texts="passages"), l2),
    "similarity": (configs.TeacherSimilarityConfig(), similarity),
    "kl": (configs.TeacherKLConfig(temperature=0.1, teacher_temperature=0.3), kl_group),
    "kl in the batch": (configs.TeacherKLConfig(temperature=0.2, over="batch"), kl_batch),
    "margins": (configs.MarginMSEConfig(teacher_scale=0.5), margins),
    "margins in the batch": (configs.MarginMSEConfig(over="batch"), margins_batch),
}


def gradients(value: Tensor, batch: Batch) -> list[Tensor]:
    found = torch.autograd.grad(value, list(leaves(batch).values()), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves(batch).values(), strict=True)]


def assert_same(value: Tensor, other: Tensor, batch: Batch, tolerance: float = 1e-12) -> None:
    assert value.detach().item() == pytest.approx(other.detach().item(), abs=tolerance)
    for one, two in zip(gradients(value, batch), gradients(other, batch), strict=True):
        assert torch.allclose(one, two, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("block", [None, 25], ids=["whole", "in blocks"])
def test_value_and_gradient(name: str, block: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if block is not None:
        monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", block)
    config, oracle = ORACLES[name]
    batch, targets = random_batch(dtype=torch.float64, width=WIDTH)
    targets = taught(targets)
    found = config.build(CONTEXT)(batch, targets)
    q, p, tq, tp, groups = columns(batch, targets)
    assert_same(found.loss, oracle(q, p, tq, tp, groups), batch)
    assert found.metrics["loss"] == found.loss.detach()
    if "cosine" in found.metrics:
        texts = {"queries": slice(0, 6), "passages": slice(6, None)}.get(config.texts, slice(None))
        pairs = list(zip(q + p, tq + tp, strict=True))[texts]
        assert float(found.metrics["cosine"]) == pytest.approx(float(mean([cosine(*pair) for pair in pairs]).detach()))


@pytest.mark.parametrize("name", ORACLES)
def test_the_shares_of_the_rows_add_up(name: str) -> None:
    """Three ranks, one of them without rows: value, gradient and metrics of their parts."""
    loss = ORACLES[name][0].build(CONTEXT)
    assert loss.shares_rows
    batch, targets = random_batch(7, dtype=torch.float64, width=WIDTH)
    targets = taught(targets)
    whole = loss(batch, targets)
    parts = [loss(batch, targets._replace(own_rows=rows)) for rows in ((0, 3), (3, 3), (3, 7))]
    assert parts[1].loss.item() == 0
    assert_same(torch.stack([part.loss for part in parts]).sum(), whole.loss, batch)
    for metric, value in whole.metrics.items():
        assert sum(float(part.metrics[metric]) for part in parts) == pytest.approx(float(value)), metric


PROMISES: dict[str, tuple[Any, bool, int]] = {
    **{name: (config, False, WIDTH) for name, (config, _) in ORACLES.items()},
    "kl by scores, where rows have some": (configs.TeacherKLConfig(), True, 40),
    "margins by scores alone": (configs.MarginMSEConfig(source="scores", teacher_scale=0.1), True, WIDTH),
    "similarity of another width": (configs.TeacherSimilarityConfig(texts="passages"), False, 40),
    "first values": (configs.TeacherMSEConfig(teacher_dims="first", normalize=False), False, 40),
    "spread-out": (configs.SpreadOutConfig(mean_weight=1.0), False, WIDTH),
    "weighted": (
        configs.WeightedSumConfig(terms={
            "mse": configs.TermConfig(loss=configs.TeacherMSEConfig(), weight=0.3),
            "spread": configs.TermConfig(loss=configs.SpreadOutConfig(mean_weight=0.1), weight=2.0),
        }, auto_scale=True), False, WIDTH,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROMISES)
def test_promises_of_a_loss(name: str) -> None:
    config, scores, width = PROMISES[name]
    check_loss(Taught(config, width), scores=scores)


def test_scores_come_before_vectors_row_by_row() -> None:
    """Of six rows, with three negatives each, 2 and 5 have no scores."""
    batch, targets = random_batch(dtype=torch.float64, negatives=(3,), scores=True, repeats=False)
    targets = taught(targets)
    assert targets.scores_P is not None
    auto = configs.TeacherKLConfig(temperature=0.1).build(CONTEXT)(batch, targets).loss
    q, p, tq, tp, groups = columns(batch, targets)
    rows = []
    for row, group in enumerate(groups):
        given = targets.scores_P[group[0] : group[-1] + 1].double()
        vectors = torch.stack([tq[row] @ tp[i] for i in group]) / 0.1
        teacher = (vectors if row in (2, 5) else given).softmax(0)
        student = torch.stack([q[row] @ p[i] for i in group]).div(0.1).softmax(0)
        rows.append((teacher * (teacher / student).log()).sum())
    assert_same(auto, mean(rows), batch)
    scored = configs.TeacherKLConfig(temperature=0.1, source="scores").build(CONTEXT)
    only = mean([value for row, value in enumerate(rows) if row not in (2, 5)])
    assert_same(scored(batch, targets).loss, only, batch)
    assert_same(scored(batch, targets._replace(teacher=None)).loss, only, batch)
    vectors_only = configs.TeacherKLConfig(temperature=0.1, source="vectors").build(CONTEXT)(batch, targets).loss
    assert_same(vectors_only, kl_at(batch, targets), batch)


def kl_at(batch: Batch, targets: Targets) -> Tensor:
    plain = configs.TeacherKLConfig(temperature=0.1).build(CONTEXT)
    found: Tensor = plain(batch, targets._replace(scores_P=None)).loss
    return found


def test_agreement_counts_the_rows_with_the_teachers_best_passage() -> None:
    batch, targets = random_batch(negatives=(3,), repeats=False)
    targets = taught(targets)
    assert batch.query.dense_ND is not None
    copied = TeacherVectors(batch.query.dense_ND.detach(), batch.passage.dense_ND.detach())  # type: ignore[union-attr]
    for over in ("group", "batch"):
        loss = configs.TeacherKLConfig(over=over).build(CONTEXT)
        same = loss(batch, targets._replace(teacher=copied))
        assert float(same.metrics["agreement"]) == 1
        assert float(same.loss.detach()) == pytest.approx(0, abs=1e-6)
        turned = loss(batch, targets._replace(teacher=TeacherVectors(-copied.query_BW, copied.passage_PW)))
        assert float(turned.metrics["agreement"]) == 0


def test_a_first_batch_with_nothing_to_learn_from_is_an_error_and_a_later_one_is_not() -> None:
    loss = configs.TeacherKLConfig().build(CONTEXT)
    batch, targets = random_batch(negatives=(0,), repeats=False)
    with pytest.raises(DataError, match=r"more than 1: give the rows negatives, or set over: batch"):
        loss(batch, taught(targets))
    later = loss(batch, taught(targets)._replace(step=3)).loss
    assert float(later.detach()) == 0
    later.backward()
    batch, targets = random_batch(negatives=(2,))
    for kind, source, found in (
        ("teacher-kl", "auto", "neither scores (`pos_scores`, `neg_scores`) nor a teacher's vectors"),
        ("margin-mse", "scores", "no row of the first batch has a score for each passage"),
    ):
        config = {"teacher-kl": configs.TeacherKLConfig, "margin-mse": configs.MarginMSEConfig}[kind]
        with pytest.raises(DataError) as caught:
            config(source=source).build(CONTEXT)(batch, targets)
        assert found in str(caught.value)
        assert kind in str(caught.value)
        assert "\n" not in str(caught.value)


def test_no_teacher_is_an_error_that_names_the_dataset_to_use() -> None:
    batch, targets = random_batch()
    for config in (
        configs.TeacherMSEConfig(), configs.TeacherCosineConfig(), configs.TeacherL2Config(),
        configs.TeacherSimilarityConfig(), configs.TeacherKLConfig(over="batch"), configs.MarginMSEConfig(over="batch"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=rf"loss '{config.kind}' compares .*{{kind: with-teacher"):
            config.build(CONTEXT)(batch, targets)


def test_unequal_widths_name_both_and_the_ways_out() -> None:
    batch, targets = random_batch(width=WIDTH)
    wide, narrow = taught(targets, 40), taught(targets, 8)
    with pytest.raises(
        ConfigError, match=r"student's have 16 values and the teacher's 40: .*out_dim: 40.*teacher_dims: first"
    ):
        configs.TeacherMSEConfig().build(CONTEXT)(batch, wide)
    for config in (configs.TeacherMSEConfig(), configs.TeacherL2Config(teacher_dims="first")):
        with pytest.raises(ConfigError, match=r"the teacher's 8: bring .*teacher-similarity") as caught:
            config.build(CONTEXT)(batch, narrow)
        assert "teacher_dims" not in str(caught.value)
    for free in (configs.TeacherSimilarityConfig(), configs.TeacherKLConfig(), configs.MarginMSEConfig()):
        assert math.isfinite(float(free.build(CONTEXT)(batch, wide).loss.detach()))


def test_the_teachers_first_values_are_a_vector_of_unit_length() -> None:
    batch, targets = random_batch(width=WIDTH, dtype=torch.float64)
    wide = taught(targets, 40)
    assert wide.teacher is not None
    cut = TeacherVectors(*(normalize(side[:, :WIDTH].double(), dim=-1) for side in wide.teacher))
    for kind in (configs.TeacherMSEConfig, configs.TeacherL2Config):
        first = kind(teacher_dims="first", normalize=False).build(CONTEXT)(batch, wide).loss
        assert_same(first, kind().build(CONTEXT)(batch, targets._replace(teacher=cut)).loss, batch, 1e-7)


def test_lengths_are_the_datasets_where_normalize_is_off() -> None:
    batch, targets = random_batch(width=WIDTH, dtype=torch.float64)
    targets = taught(targets)
    assert targets.teacher is not None
    q, p, *_ = columns(batch, targets)
    raw = [one.double() for side in targets.teacher for one in side]
    wanted = mean([(s - t).pow(2).mean() for s, t in zip(q + p, raw, strict=True)])
    assert_same(configs.TeacherMSEConfig(normalize=False).build(CONTEXT)(batch, targets).loss, wanted, batch)
    cosines = configs.MarginMSEConfig().build(CONTEXT)(batch, targets).loss
    products = configs.MarginMSEConfig(normalize=False).build(CONTEXT)(batch, targets).loss
    assert float(products.detach()) > 2 * float(cosines.detach())


def test_spread_out_counts_pairs_of_different_texts() -> None:
    """Row 1's positive is the text of row 0's: their cosine of 1 is nobody's to reduce."""
    batch, targets = random_batch(dtype=torch.float64, width=4)
    batch = Batch(*(side._replace(dense_ND=(side.dense_ND.detach() + 0.4).requires_grad_()) for side in batch))  # type: ignore[union-attr]
    ids = targets.passage_ids_P.tolist()
    assert len(set(ids)) == len(ids) - 1
    found = configs.SpreadOutConfig(mean_weight=0.5, aggregation="mean").build(CONTEXT)(batch, targets)
    assert float(found.metrics["second_moment"]) > 1 / 4
    terms = []
    for side, names in ((batch.query, targets.query_ids_B.tolist()), (batch.passage, ids)):
        assert side.dense_ND is not None
        vectors = list(side.dense_ND)
        cosines = [
            cosine(a, b)
            for a, i in zip(vectors, names, strict=True)
            for b, j in zip(vectors, names, strict=True)
            if i != j
        ]
        terms.append(0.5 * mean(cosines) ** 2 + torch.relu(mean([c * c for c in cosines]) - 1 / 4))
    assert_same(found.loss, mean(terms), batch)
    summed = configs.SpreadOutConfig(mean_weight=0.5).build(CONTEXT)(batch, targets)
    assert_same(summed.loss, 2 * mean(terms), batch)


def test_configs_say_what_does_not_belong_together() -> None:
    for make, message in (
        (lambda: configs.TeacherKLConfig(source="scores", over="batch"), "set over: group, or source: vectors"),
        (lambda: configs.SpreadOutConfig(second_moment_weight=0), "give one of them a value above 0"),
        (lambda: configs.WeightedSumConfig(terms={}), "give at least one term, with a weight above 0"),
        (lambda: weighted({"a": 0.0}), "give at least one term, with a weight above 0"),
        (lambda: weighted({"a.b": 1.0}), "the term 'a.b': names have letters"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def weighted(weights: dict[str, float], **options: Any) -> configs.WeightedSumConfig:
    kinds = [configs.TeacherMSEConfig(), configs.SpreadOutConfig(mean_weight=1.0), configs.TeacherKLConfig()]
    terms = {n: configs.TermConfig(loss=k, weight=w) for (n, w), k in zip(weights.items(), kinds, strict=False)}
    return configs.WeightedSumConfig(terms=terms, **options)


def test_the_order_of_rows_changes_nothing_under_shares() -> None:
    """Rows permuted, then shared: the parts are other ones, their sum is not."""
    loss = configs.TeacherKLConfig().build(CONTEXT)
    batch, targets = random_batch(6, dtype=torch.float64)
    moved, moved_targets = permuted(to_dtype(batch, torch.float64), targets, [3, 1, 5, 0, 2, 4])
    whole = float(loss(batch, taught(targets)).loss.detach())
    parts = [loss(moved, taught(moved_targets)._replace(own_rows=rows)).loss.detach() for rows in ((0, 1), (1, 6))]
    assert float(sum(parts)) == pytest.approx(whole)
