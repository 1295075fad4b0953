"""The unified loss on what FlagEmbedding cannot do: ragged groups, masks, missing teacher scores, other weights."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from embed_bge.loss_config import BGEUnifiedConfig
from embed_core import embeddings as ops
from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.embeddings import offsets_of
from embed_core.errors import ConfigError
from embed_core.protocols import Loss
from embed_core.testing.losses import check_loss
from embed_core.types import Batch, Embeddings, MultiVectors, SparseVectors, Targets

torch.set_num_threads(1)
NAN = math.nan
SIZES = [3, 1, 4, 2]
QUERY_IDS = [1, 2, 3, 1]
PASSAGE_IDS = [11, 12, 13, 14, 15, 11, 17, 14, 19, 20]
"""Passage 5 is row 0's positive again, passage 7 row 1's; row 3 asks what row 0 asks."""
POSITIVES = [[11, 17], [14], [15], [19]]
SCORES = [2.0, 1.0, -1.0, NAN, 1.5, 1.0, 0.5, 0.0, 3.0, NAN]
"""Rows 0 and 2 are covered; row 3 only in part, which is not enough."""
NO_MASK = {"same_text": False, "same_id": False}


def side(lengths: list[int], seed: int) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    offsets = offsets_of(torch.tensor(lengths))
    ids = torch.cat([torch.randperm(15, generator=generator)[:n] for n in lengths])
    total = int(offsets[-1])
    e = Embeddings(
        torch.nn.functional.normalize(torch.randn(len(lengths), 5, generator=generator, dtype=torch.float64), dim=-1),
        SparseVectors(torch.rand(total, generator=generator, dtype=torch.float64) / 4, ids, offsets),
        MultiVectors(torch.randn(total, 4, generator=generator, dtype=torch.float64) / 2, offsets),
    )
    return ops.map_values(e, lambda value: value.requires_grad_())


def batch() -> Batch:
    return Batch(side([3, 1, 4, 2], 1), side([5, 2, 7, 1, 3, 5, 6, 2, 4, 1], 2))


def targets_of(scores: list[float] | None = None, step: int = 0) -> Targets:
    return Targets(
        groups_B1=offsets_of(torch.tensor(SIZES)),
        row_ids_B=torch.arange(4),
        query_ids_B=torch.tensor(QUERY_IDS),
        passage_ids_P=torch.tensor(PASSAGE_IDS),
        passage_keys_P=torch.zeros(10, dtype=torch.int64),
        positives_K=torch.tensor([h for row in POSITIVES for h in row]),
        positive_offsets_B1=offsets_of(torch.tensor([len(row) for row in POSITIVES])),
        scores_P=None if scores is None else torch.tensor(scores),
        step=step,
    )


def build(**options: Any) -> Loss:
    return BGEUnifiedConfig(**options).build(BuildContext(registry=Registry()))


def pair_scores(b: Batch, i: int, j: int) -> dict[str, Tensor]:
    """One query, one passage, token by token."""
    q, p = ops.slice_rows(b.query, i, i + 1), ops.slice_rows(b.passage, j, j + 1)
    assert q.dense_ND is not None and p.dense_ND is not None  # noqa: PT018
    assert q.sparse is not None and p.sparse is not None  # noqa: PT018
    assert q.multi is not None and p.multi is not None  # noqa: PT018
    lexical = q.sparse.weights_K.sum() * 0
    for x, token in enumerate(q.sparse.ids_K.tolist()):
        for y, other in enumerate(p.sparse.ids_K.tolist()):
            if token == other:
                lexical = lexical + q.sparse.weights_K[x] * p.sparse.weights_K[y]
    late = torch.stack([torch.stack([v @ w for w in p.multi.vectors_TC]).max() for v in q.multi.vectors_TC]).mean()
    return {"dense": q.dense_ND[0] @ p.dense_ND[0], "sparse": lexical, "multi": late}


def false_negatives(config: BGEUnifiedConfig) -> set[tuple[int, int]]:
    """By hand, from the hashes above: (row, passage) pairs that are known positives."""
    if not config.mask.same_text:
        return set()
    known = {0: {11, 17, 19}, 1: {14}, 2: {15}, 3: {11, 17, 19}}
    starts = [0, 3, 4, 8]
    return {(b, p) for b in range(4) for p in range(10) if PASSAGE_IDS[p] in known[b] and p != starts[b]}


def brute(b: Batch, targets: Targets, config: BGEUnifiedConfig) -> Tensor:
    """The definition in loops over rows and passages."""
    starts = targets.groups_B1.tolist()
    table = [[pair_scores(b, i, j) for j in range(10)] for i in range(4)]
    for row in table:
        for cell in row:
            for kind in cell:
                cell[kind] = cell[kind] / config.temperature
            cell["ensemble"] = sum(w * cell[k] for k, w in config.ensemble.model_dump().items())
    false = false_negatives(config)
    if config.mask.margin is not None:
        for i in range(4):
            limit = table[i][starts[i]]["dense"] + config.mask.margin / config.temperature
            false |= {(i, j) for j in range(10) if j != starts[i] and table[i][j]["dense"] > limit}
    own = [set(range(starts[i], starts[i + 1])) for i in range(4)]
    competes = [True] * 4 if targets.in_batch_B is None else targets.in_batch_B.tolist()

    def candidate(i: int, j: int) -> bool:
        owner = next(row for row in range(4) if j in own[row])
        return owner == i or (config.in_batch and competes[i] and competes[owner])

    seen = [{j for j in range(10) if (i, j) not in false and candidate(i, j)} for i in range(4)]

    def log_softmax(i: int, kind: str, target: int, columns: set[int]) -> Tensor:
        return table[i][target][kind] - torch.stack([table[i][j][kind] for j in sorted(columns)]).logsumexp(0)

    def taught(i: int) -> Tensor | None:
        if not config.knowledge_distillation or targets.scores_P is None:
            return None
        scores = targets.scores_P[starts[i] : starts[i + 1]].double()
        return None if scores.isnan().any() else (scores / config.teacher_temperature).softmax(0)

    def term(kind: str) -> Tensor:
        hard = [-log_softmax(i, kind, starts[i], seen[i]) for i in range(4)]
        covered = [(i, t) for i in range(4) if (t := taught(i)) is not None]
        if config.kd_loss_type == "kl_div":
            soft = [
                -sum(t[n] * log_softmax(i, kind, j, own[i]) for n, j in enumerate(sorted(own[i]))) for i, t in covered
            ]
            return torch.stack(hard).mean() + (torch.stack(soft).mean() if soft else 0)
        for i, t in covered:
            hard[i] = -sum(
                t[n] * log_softmax(i, kind, j, (seen[i] - own[i]) | {x for x in own[i] if x >= j})
                for n, j in enumerate(sorted(own[i]))
            )
        return torch.stack(hard).mean()

    if not config.unified_finetuning:
        return term("dense")
    loss = sum(w * term(kind) for kind, w in config.weights.model_dump().items()) / 4
    if config.use_self_distill and targets.step > config.self_distill_start_step:
        distilled = torch.zeros((), dtype=torch.float64)
        for kind, weight in config.self_distill_weights.model_dump().items():
            for i in range(4):
                for j in seen[i]:
                    teacher = log_softmax(i, "ensemble", j, seen[i]).detach().exp()
                    distilled = distilled - weight * teacher * log_softmax(i, kind, j, seen[i]) / 4
        loss = (loss + distilled / 3) / 2
    assert isinstance(loss, Tensor)
    return loss


SOFT = {"temperature": 0.3}
KD = {**SOFT, "knowledge_distillation": True}
CASES: list[dict[str, Any]] = [
    SOFT,
    {**SOFT, "mask": NO_MASK},
    {**SOFT, "mask": {"margin": -0.2}},
    {**SOFT, "use_self_distill": True},
    {
        **SOFT,
        "use_self_distill": True,
        "mask": NO_MASK,
        "self_distill_weights": {"dense": 0, "sparse": 2, "multi": 0.5},
    },
    {**SOFT, "weights": {"dense": 0.5, "sparse": 3, "multi": 0, "ensemble": 2}, "ensemble": {"dense": 2, "sparse": 5}},
    {**SOFT, "in_batch": False},
    {**SOFT, "unified_finetuning": False},
    {**KD, "kd_loss_type": "kl_div"},
    {**KD, "kd_loss_type": "kl_div", "teacher_temperature": 4.0, "in_batch": False},
    {**KD, "kd_loss_type": "m3_kd_loss"},
    {**KD, "kd_loss_type": "m3_kd_loss", "teacher_temperature": 4.0, "mask": NO_MASK},
    {**KD, "kd_loss_type": "m3_kd_loss", "in_batch": False, "use_self_distill": True},
    {**KD, "kd_loss_type": "m3_kd_loss", "unified_finetuning": False},
    {"use_self_distill": True},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_value_and_gradient_equal_loops_on_ragged_groups(options: dict[str, Any]) -> None:
    compare(options, targets_of(SCORES))


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("in_batch", [[True, False, True, False], [False] * 4], ids=["some", "none"])
def test_rows_without_in_batch_negatives_equal_loops(options: dict[str, Any], in_batch: list[bool]) -> None:
    compare(options, targets_of(SCORES)._replace(in_batch_B=torch.tensor(in_batch)))


def test_without_in_batch_negatives_a_row_has_no_gradient_from_the_others() -> None:
    """Row 0 keeps to its group of three: its passages get the gradient that row 0 gives alone, the others none."""
    b, targets = batch(), targets_of()._replace(in_batch_B=torch.tensor([False, True, True, True]))
    assert b.query.dense_ND is not None and b.passage.dense_ND is not None  # noqa: PT018
    options = {"temperature": 0.3, "unified_finetuning": False, "mask": NO_MASK}
    found = torch.autograd.grad(build(**options)(b, targets).loss, [b.query.dense_ND, b.passage.dense_ND])
    logits = b.query.dense_ND[:1] @ b.passage.dense_ND[:3].T / 0.3
    alone = torch.nn.functional.cross_entropy(logits, torch.tensor([0])) / 4
    theirs = torch.autograd.grad(alone, [b.query.dense_ND, b.passage.dense_ND])
    torch.testing.assert_close(found[0][0], theirs[0][0])
    torch.testing.assert_close(found[1][:3], theirs[1][:3])
    assert found[1][3:].abs().max() > 0


def compare(options: dict[str, Any], targets: Targets) -> None:
    """Value and gradients of the loss and of its definition in loops."""
    b = batch()
    mine = build(**options)(b, targets).loss
    theirs = brute(b, targets, BGEUnifiedConfig(**options))
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)  # the teacher is fp32
    values = [*ops.values(b.query), *ops.values(b.passage)]
    found = [torch.autograd.grad(loss, values, allow_unused=True) for loss in (mine, theirs)]
    for one, other in zip(*found, strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(*torch.broadcast_tensors(
            zero.double() if one is None else one, zero.double() if other is None else other
        ), rtol=1e-6, atol=1e-7)  # fmt: skip


@pytest.mark.parametrize("options", CASES, ids=str)
def test_keeps_the_promises_of_a_loss(options: dict[str, Any]) -> None:
    check_loss(build(**options), parts=("dense", "sparse", "multi"), scores=True)


def test_rows_without_scores_keep_the_plain_loss() -> None:
    """No scores at all, and only missing ones, are the loss without a teacher; ``teacher`` says so."""
    plain = build(temperature=0.3)(batch(), targets_of()).loss
    for kind in ("kl_div", "m3_kd_loss"):
        for scores in (None, [NAN] * 10):
            output = build(temperature=0.3, knowledge_distillation=True, kd_loss_type=kind)(batch(), targets_of(scores))
            torch.testing.assert_close(output.loss, plain)
            assert output.metrics["teacher"].item() == 0


def test_scores_are_not_used_unless_asked_for() -> None:
    with_scores, without = build()(batch(), targets_of(SCORES)), build()(batch(), targets_of())
    assert torch.equal(with_scores.loss, without.loss)


@pytest.mark.parametrize(("start", "first"), [(-1, 0), (0, 1), (3, 4)])
def test_self_distillation_starts_after_the_start_step(start: int, first: int) -> None:
    loss = build(use_self_distill=True, self_distill_start_step=start)
    active = [loss(batch(), targets_of(step=step)).metrics["self_distill"].item() > 0 for step in range(6)]
    assert active == [step >= first for step in range(6)]


def test_metrics_are_the_terms_before_their_weights() -> None:
    output = build(use_self_distill=True, knowledge_distillation=True)(batch(), targets_of(SCORES))
    m = output.metrics
    assert set(m) == {"dense", "sparse", "multi", "ensemble", "self_distill", "teacher", "accuracy", "masked"}
    total = ((m["dense"] + m["ensemble"] + 0.1 * m["sparse"] + m["multi"]) / 4 + m["self_distill"]) / 2
    torch.testing.assert_close(output.loss.detach(), total)
    assert m["teacher"].item() == 0.5
    assert m["masked"].item() == pytest.approx(len(false_negatives(BGEUnifiedConfig())) / 36)
    assert not any(value.requires_grad for value in m.values())


def test_terms_of_weight_zero_need_no_embeddings() -> None:
    """A dense-only model trains with the other weights at 0, and without them is told what it lacks."""
    b = batch()
    dense = Batch(Embeddings(b.query.dense_ND), Embeddings(b.passage.dense_ND))
    off = {"sparse": 0, "multi": 0}
    output = build(weights={**off, "ensemble": 0})(dense, targets_of())
    assert set(output.metrics) == {"dense", "accuracy", "masked"}
    torch.testing.assert_close(output.loss * 4, build(unified_finetuning=False)(dense, targets_of()).loss)
    twice = build(weights=off, ensemble=off)(dense, targets_of())
    torch.testing.assert_close(twice.loss, 2 * output.loss)
    with pytest.raises(ConfigError, match=r"^'sparse' scores are asked for, but the model gives only: dense; use"):
        build()(dense, targets_of())


ZERO = {"dense": 0, "sparse": 0, "multi": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"weights": {**ZERO, "ensemble": 0}},
            "weights are all 0: give at least one of dense, sparse, multi, ensemble",
        ),
        ({"ensemble": ZERO}, "ensemble weights are all 0: give one a value above 0, or set weights.ensemble: 0"),
        (
            {"use_self_distill": True, "self_distill_weights": ZERO},
            "self_distill_weights are all 0: give one a value above 0, or set use_self_distill: false",
        ),
        (
            {"use_self_distill": True, "unified_finetuning": False},
            "use_self_distill needs unified_finetuning: true: a dense vector alone has no ensemble",
        ),
        ({"kd_loss_type": "kl"}, "Input should be 'kl_div' or 'm3_kd_loss'"),
        ({"temperature": 0}, "greater than 0"),
        ({"teacher_temperature": -1}, "greater than 0"),
    ],
)
def test_settings_that_cannot_train_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        BGEUnifiedConfig(**options)
    assert message in str(caught.value)


def test_the_config_imports_no_torch() -> None:
    code = "import sys, embed_bge.loss_config, embed_core.losses.config; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
