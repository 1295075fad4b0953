"""Teacher targets and their cross-entropies on ragged groups, against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from embed_core.embeddings import offsets_of
from embed_core.losses import contrastive
from embed_core.losses import score_distillation as teaching
from embed_core.types import Targets

torch.set_num_threads(1)
NAN = math.nan
SIZES = [3, 1, 2]
SCORES = [2.0, 1.0, -1.0, 4.0, 0.5, 0.25]


def targets_of(sizes: list[int], scores: list[float] | None) -> Targets:
    B, P = len(sizes), sum(sizes)
    empty = torch.zeros(0, dtype=torch.int64)
    return Targets(
        groups_B1=offsets_of(torch.tensor(sizes)),
        row_ids_B=torch.arange(B),
        query_ids_B=torch.arange(B),
        passage_ids_P=torch.arange(P),
        passage_keys_P=torch.zeros(P, dtype=torch.int64),
        positives_K=empty,
        positive_offsets_B1=torch.zeros(B + 1, dtype=torch.int64),
        scores_P=None if scores is None else torch.tensor(scores),
        step=0,
    )


def logits_of(B: int, P: int, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(B, P, generator=generator, dtype=torch.float64) * scale).requires_grad_()


def test_the_target_is_a_softmax_over_the_own_group_at_the_temperature() -> None:
    targets = targets_of(SIZES, SCORES)
    judged = teaching.teacher_targets(targets, teaching.group_table(targets), temperature=2.0)
    assert judged is not None
    assert judged.covered.tolist() == [True, True, True]
    expected = torch.zeros(3, 3)
    for row, (low, high) in enumerate([(0, 3), (3, 4), (4, 6)]):
        expected[row, : high - low] = (torch.tensor(SCORES[low:high]) / 2).softmax(0)
    torch.testing.assert_close(judged.target, expected)


def test_a_row_with_any_score_missing_is_not_covered() -> None:
    targets = targets_of(SIZES, [2.0, NAN, -1.0, NAN, 0.5, 0.25])
    judged = teaching.teacher_targets(targets, teaching.group_table(targets), temperature=1.0)
    assert judged is not None
    assert judged.covered.tolist() == [False, False, True]
    assert judged.target[:2].abs().sum() == 0
    assert judged.target[2].sum().item() == pytest.approx(1)


@pytest.mark.parametrize("scores", [None, [NAN] * 6])
def test_a_batch_without_scores_has_no_teacher(scores: list[float] | None) -> None:
    targets = targets_of(SIZES, scores)
    assert teaching.teacher_targets(targets, teaching.group_table(targets), temperature=1.0) is None


def brute_sequential(logits: Tensor, mask: Tensor, targets: Targets, target: Tensor) -> Tensor:
    rows = []
    starts = targets.groups_B1.tolist()
    for b in range(logits.shape[0]):
        total = logits[b].sum() * 0
        for i in range(starts[b + 1] - starts[b]):
            own, later = range(starts[b], starts[b + 1]), range(starts[b] + i, starts[b + 1])
            kept = [logits[b, p] for p in range(logits.shape[1]) if p in later or not (p in own or mask[b, p])]
            total = total + target[b, i].double() * (torch.stack(kept).logsumexp(0) - logits[b, starts[b] + i])
        rows.append(total)
    return torch.stack(rows)


def brute_group(logits: Tensor, targets: Targets, target: Tensor) -> Tensor:
    starts = targets.groups_B1.tolist()
    rows = []
    for b in range(logits.shape[0]):
        own = logits[b, starts[b] : starts[b + 1]].log_softmax(0)
        rows.append(-(target[b, : len(own)].double() * own).sum())
    return torch.stack(rows)


@pytest.mark.parametrize("sizes", [[3, 1, 2], [1, 1], [4], [2, 2, 2], [1], [6, 1, 1, 4]])
@pytest.mark.parametrize("masked", [False, True, "all others"])
@pytest.mark.parametrize("scale", [3.0, 1000.0])
def test_cross_entropies_equal_loops_in_value_and_gradient(sizes: list[int], masked: bool | str, scale: float) -> None:
    B, P = len(sizes), sum(sizes)
    generator = torch.Generator().manual_seed(1)
    targets = targets_of(sizes, torch.randn(P, generator=generator).tolist())
    own, table = contrastive.own_group(targets), teaching.group_table(targets)
    mask = ~own if masked == "all others" else (torch.rand(B, P, generator=generator) < 0.4) & bool(masked)
    judged = teaching.teacher_targets(targets, table, temperature=1.0)
    assert judged is not None
    logits = logits_of(B, P, scale)
    upstream = torch.randn(B, generator=generator, dtype=torch.float64)
    pairs = [
        (
            teaching.sequential_cross_entropy(logits, mask, own, table, judged),
            brute_sequential(logits, mask, targets, judged.target),
        ),
        (teaching.group_cross_entropy(logits, table, judged), brute_group(logits, targets, judged.target)),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        (a,) = torch.autograd.grad((ours * upstream).sum(), logits)
        (b,) = torch.autograd.grad((theirs * upstream).sum(), logits)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_huge_fp32_logits_stay_finite() -> None:
    targets = targets_of([3, 1], SCORES[:4])
    own, table = contrastive.own_group(targets), teaching.group_table(targets)
    judged = teaching.teacher_targets(targets, table, temperature=1.0)
    assert judged is not None
    logits = (torch.tensor([[1e33, -1e33, 0, 5], [3, -1e33, 2, 1e33]])).requires_grad_()
    loss = teaching.sequential_cross_entropy(logits, own.logical_not(), own, table, judged)
    assert loss.isfinite().all()
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
