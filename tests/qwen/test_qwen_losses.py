"""The paper's InfoNCE against a loop in float64, and against ms-swift's where they have the same settings."""

from __future__ import annotations

import itertools
import math
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.embeddings import offsets_of
from embed_core.errors import ConfigError
from embed_core.losses import tiled_cross_entropy
from embed_core.losses.config import MaskConfig
from embed_core.testing import check_loss, random_batch
from embed_core.types import Batch, Embeddings, Targets
from embed_qwen.losses_config import Qwen3InfoNCEConfig, SwiftInfoNCEConfig

torch.set_num_threads(1)
ALONE = {"in_batch": False, "query_query": False, "document_document": False}
WAYS: list[dict[str, Any]] = [
    {},
    {"positives": "known"},
    {"hard_negatives": "own"},
    {"hard_negatives": "own", "positives": "known", "document_document": False},
    {"query_query": False, "mask": MaskConfig(margin=-0.2)},
    ALONE,
    ALONE | {"positives": "known"},
]


def build(config: Any) -> Any:
    return config.build(BuildContext(registry=Registry()))


def value_and_gradients(loss: Any, batch: Batch, targets: Targets) -> list[Tensor]:
    value = loss(batch, targets).loss
    return [value.detach(), *torch.autograd.grad(value, [batch.query.dense_ND, batch.passage.dense_ND])]


def entangled(seed: int, negatives: tuple[int, ...] = (2, 0, 1, 3), rows: int = 7) -> tuple[Batch, Targets]:
    """Rows 0 and 1 share a positive, 2 and 3 a query text, 4 lists a passage of row 5 as known, 6 the id of another."""
    batch, targets = random_batch(rows, negatives=negatives, width=6, seed=seed, dtype=torch.float64)
    first = targets.groups_B1.tolist()
    queries, keys = targets.query_ids_B.clone(), targets.passage_keys_P.clone()
    queries[3] = queries[2]
    keys[first[6]], keys[first[5] - 1] = 77, 77
    listed = [[int(targets.passage_ids_P[first[row]])] for row in range(rows)]
    listed[4].append(int(targets.passage_ids_P[first[6] - 1]))
    return batch, targets._replace(
        query_ids_B=queries,
        passage_keys_P=keys,
        positives_K=torch.tensor([one for row in listed for one in row]),
        positive_offsets_B1=offsets_of(torch.tensor([len(row) for row in listed])),
    )


def known_to(targets: Targets, mask: MaskConfig, row: int) -> set[tuple[str, int]]:
    """Texts and ids of the row's known positives; rows of one query text share theirs."""
    texts, found = targets.passage_ids_P.tolist(), set()
    offsets, first = targets.positive_offsets_B1.tolist(), targets.groups_B1.tolist()
    for other, query in enumerate(targets.query_ids_B.tolist()):
        if query == int(targets.query_ids_B[row]):
            listed = targets.positives_K[offsets[other] : offsets[other + 1]].tolist()
            found |= {("text", one) for one in [*listed, texts[first[other]]] if mask.same_text}
            keys = [*listed, int(targets.passage_keys_P[first[other]])]
            found |= {("key", one) for one in keys if mask.same_id and one}
    return found


def by_loop(config: Qwen3InfoNCEConfig, batch: Batch, targets: Targets) -> Tensor:
    """The definition, one exponential at a time."""
    q, d = batch.query.dense_ND, batch.passage.dense_ND
    assert q is not None
    assert d is not None
    first, tau = targets.groups_B1.tolist(), config.temperature
    B, P = len(first) - 1, first[-1]
    total = q.new_zeros(())
    for i in range(B):
        own = first[i]
        known = known_to(targets, config.mask, i)

        def is_known(p: int, known: set[tuple[str, int]] = known) -> bool:
            return ("text", int(targets.passage_ids_P[p])) in known or ("key", int(targets.passage_keys_P[p])) in known

        limit = math.inf if config.mask.margin is None else float(q[i].detach() @ d[own].detach()) + config.mask.margin
        group = range(first[i], first[i + 1])
        everything = range(P) if config.in_batch else group
        if config.in_batch and config.hard_negatives == "own":
            everything = sorted({*first[:-1], *group})  # type: ignore[assignment]
        rivals = [p for p in everything if p != own and not is_known(p)]
        sums = [(q[i] @ d[p]) for p in rivals if float((q[i] @ d[p]).detach()) <= limit]
        if config.query_query:
            others = [j for j in range(B) if j != i and not is_known(first[j])]
            sums += [q[i] @ q[j] for j in others if float((q[i] @ q[j]).detach()) <= limit]
        if config.document_document:
            sums += [d[own] @ d[p] for p in rivals]
        Z = sum(((one / tau).exp() for one in sums), q.new_zeros(()))
        mine = [own]
        if config.positives == "known":
            mine += [p for p in (range(P) if config.in_batch else group) if p != own and is_known(p)]
        terms = [-((q[i] @ d[p] / tau).exp() / ((q[i] @ d[p] / tau).exp() + Z)).log() for p in mine]
        total = total + sum(terms, q.new_zeros(())) / len(terms)
    return total / B


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("negatives", [(2, 0, 1, 3), (2,), (0,)], ids=str)
@pytest.mark.parametrize("tile", [10**9, 24])
def test_value_and_gradient_are_those_of_the_definition(
    way: dict[str, Any], negatives: tuple[int, ...], tile: int
) -> None:
    config = Qwen3InfoNCEConfig(temperature=0.3, **way)
    batch, targets = entangled(3, negatives)
    wanted = by_loop(config, batch, targets)
    pairs = [batch.query.dense_ND, batch.passage.dense_ND]
    gradients = torch.autograd.grad(wanted, pairs, allow_unused=True)
    with mock.patch.object(tiled_cross_entropy, "TILE_BYTES", 8 * tile):
        found = value_and_gradients(build(config), batch, targets)
    assert float(found[0]) == pytest.approx(float(wanted.detach()), abs=1e-10)
    for ours, theirs, leaf in zip(found[1:], gradients, pairs, strict=True):
        torch.testing.assert_close(ours, torch.zeros_like(leaf) if theirs is None else theirs, rtol=0, atol=1e-10)


def test_every_mask_and_positive_of_the_comparison_counts() -> None:
    """Each of them changes the value, so that a mistake in one would be seen above."""
    batch, targets = entangled(3)
    base = {"temperature": 0.3, "mask": MaskConfig(margin=-0.2)}

    def value(**changes: Any) -> float:
        return float(build(Qwen3InfoNCEConfig(**{**base, **changes}))(batch, targets).loss.detach())

    changed: list[dict[str, Any]] = [
        {"mask": MaskConfig(margin=-0.2, same_text=False)},
        {"mask": MaskConfig(margin=-0.2, same_id=False)},
        {"mask": MaskConfig()},
        {"query_query": False},
        {"document_document": False},
        {"hard_negatives": "own"},
        {"positives": "known"},
        ALONE,
    ]
    values = [value(), *(value(**change) for change in changed)]
    assert all(abs(a - b) > 1e-3 for a, b in itertools.combinations(values, 2)), values


@pytest.mark.parametrize("negatives", [(2, 0, 1, 3), (2,), (0,)], ids=str)
@pytest.mark.parametrize(("qq", "dd", "masked"), itertools.product((False, True), repeat=3))
def test_it_equals_swifts_where_both_can(negatives: tuple[int, ...], qq: bool, dd: bool, masked: bool) -> None:
    batch, targets = random_batch(9, negatives=negatives, width=5, seed=1, repeats=False)
    ours = Qwen3InfoNCEConfig(
        temperature=0.07,
        query_query=qq,
        document_document=dd,
        mask=MaskConfig(same_text=False, same_id=False, margin=0.1 if masked else None),
    )
    theirs = SwiftInfoNCEConfig(temperature=0.07, include_qq=qq, include_dd=dd, mask_fake_negative=masked)
    for found, wanted in zip(
        value_and_gradients(build(ours), batch, targets),
        value_and_gradients(build(theirs), batch, targets),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("negatives", [(2, 1, 3), (2,)], ids=str)
def test_it_equals_swifts_in_the_own_group(negatives: tuple[int, ...]) -> None:
    batch, targets = random_batch(6, negatives=negatives, seed=2)
    mask = MaskConfig(same_text=False, same_id=False)
    ours, theirs = Qwen3InfoNCEConfig(mask=mask, **ALONE), SwiftInfoNCEConfig(temperature=0.02, use_batch=False)
    for found, wanted in zip(
        value_and_gradients(build(ours), batch, targets),
        value_and_gradients(build(theirs), batch, targets),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_it_is_a_loss(way: dict[str, Any]) -> None:
    check_loss(build(Qwen3InfoNCEConfig(**way)))


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(1, 6), way=st.sampled_from(WAYS), tile=st.sampled_from([10**9, 16]), seed=st.integers(0, 100))
def test_the_parts_of_the_ranks_add_up(cut: int, way: dict[str, Any], tile: int, seed: int) -> None:
    batch, targets = entangled(seed)
    loss = build(Qwen3InfoNCEConfig(temperature=0.3, **way))
    whole = value_and_gradients(loss, batch, targets)
    with mock.patch.object(tiled_cross_entropy, "TILE_BYTES", 8 * tile):
        parts = [value_and_gradients(loss, batch, targets._replace(own_rows=own)) for own in ((0, cut), (cut, 7))]
    for together, *pieces in zip(whole, *parts, strict=True):
        torch.testing.assert_close(sum(pieces), together, rtol=0, atol=1e-10)
    metrics = [loss(batch, targets._replace(own_rows=own)).metrics for own in ((0, cut), (cut, 7), None)]
    for name, value in metrics[2].items():
        assert float(metrics[0][name] + metrics[1][name]) == pytest.approx(float(value), abs=1e-6), name


def test_metrics() -> None:
    """Three orthogonal rows with one hard negative each: one equals its positive, one wins over it."""
    eye = torch.eye(4, dtype=torch.float64)
    passages = torch.stack([eye[0], eye[0], 0.5 * eye[1], eye[1], eye[2], eye[3]])
    batch = Batch(Embeddings(eye[:3].clone().requires_grad_()), Embeddings(passages.requires_grad_()))
    ids = torch.tensor([10, 10, 11, 12, 13, 14])
    targets = Targets(
        groups_B1=torch.tensor([0, 2, 4, 6]),
        row_ids_B=torch.arange(3),
        query_ids_B=torch.arange(1, 4),
        passage_ids_P=ids,
        passage_keys_P=torch.zeros(6, dtype=torch.int64),
        positives_K=ids[[0, 2, 4]],
        positive_offsets_B1=torch.arange(4),
        scores_P=None,
        step=0,
    )
    unmasked = build(Qwen3InfoNCEConfig(mask=MaskConfig()))(batch, targets).metrics
    assert float(unmasked["accuracy"]) == pytest.approx(2 / 3)
    assert float(unmasked["masked"]) == pytest.approx(1 / 15)
    masked = build(Qwen3InfoNCEConfig(mask=MaskConfig(margin=0.1)))(batch, targets).metrics
    assert float(masked["accuracy"]) == 1
    assert float(masked["masked"]) == pytest.approx(2 / 15)


def test_large_logits_stay_finite() -> None:
    """A single row among nothing, and similarities of one at a small temperature in fp32."""
    batch, targets = random_batch(1, negatives=(0,))
    loss = build(Qwen3InfoNCEConfig(temperature=0.001))
    assert [float(one.abs().max()) for one in value_and_gradients(loss, batch, targets)] == [0, 0, 0]
    same = Embeddings(nn.functional.normalize(torch.ones(4, 8), dim=-1).requires_grad_())
    _, targets = random_batch(4, negatives=(0,), repeats=False)
    off = MaskConfig(same_text=False, same_id=False)
    found = value_and_gradients(build(Qwen3InfoNCEConfig(temperature=0.001, mask=off)), Batch(same, same), targets)
    assert float(found[0]) == pytest.approx(math.log(1 + 3 * 3), abs=1e-3)
    assert all(bool(one.isfinite().all()) for one in found)


def test_half_precision_is_computed_in_fp32() -> None:
    batch, targets = random_batch(6, repeats=False)
    half = Batch(
        *(Embeddings(e.dense_ND.detach().bfloat16().requires_grad_()) for e in batch if e.dense_ND is not None)
    )
    wide = Batch(*(Embeddings(e.dense_ND.detach().float().requires_grad_()) for e in half if e.dense_ND is not None))
    for config in (Qwen3InfoNCEConfig(), SwiftInfoNCEConfig(temperature=0.02)):
        found, wanted = (value_and_gradients(build(config), one, targets) for one in (half, wide))
        assert found[0].dtype == torch.float32
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one.float(), other, rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=0)


def test_dense_vectors_are_needed() -> None:
    batch, targets = random_batch(3, parts=("multi",))
    for config in (Qwen3InfoNCEConfig(), SwiftInfoNCEConfig()):
        with pytest.raises(ConfigError, match="dense"):
            build(config)(batch, targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"in_batch": False},
            r"query_query: true compares with other rows: set in_batch: true, or query_query and doc",
        ),
        (
            {"positives": "known", "mask": {"same_text": False, "same_id": False}},
            "positives: known needs mask.same_text or mask.same_id",
        ),
        ({"temperature": 0}, "greater than 0"),
    ],
)
def test_options_that_contradict(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Qwen3InfoNCEConfig(**options)
