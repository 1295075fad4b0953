"""InfoNCE and its false-negative masks against a loop in float64; gradients; peers; config errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.util import dot_score
from torch import Tensor, nn

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.embeddings import offsets_of
from embed_core.errors import ConfigError
from embed_core.losses import contrastive, tiled_cross_entropy
from embed_core.losses.config import InfoNCEConfig, MaskConfig
from embed_core.protocols import Loss
from embed_core.testing.losses import check_loss
from embed_core.types import Batch, Embeddings, Targets

torch.set_num_threads(1)
OFF = MaskConfig(same_text=False, same_id=False)


def targets_of(
    sizes: list[int],
    queries: list[int] | None = None,
    passages: list[int] | None = None,
    keys: list[int] | None = None,
    positives: list[list[int]] | None = None,
) -> Targets:
    """Targets of groups of the given sizes; by default all texts differ and nothing is known besides the positives."""
    B, P = len(sizes), sum(sizes)
    listed = positives or [[] for _ in range(B)]
    return Targets(
        groups_B1=offsets_of(torch.tensor(sizes)),
        row_ids_B=torch.arange(B),
        query_ids_B=torch.tensor(queries or [1000 + b for b in range(B)]),
        passage_ids_P=torch.tensor(passages or [2000 + p for p in range(P)]),
        passage_keys_P=torch.tensor(keys or [0] * P),
        positives_K=torch.tensor([h for row in listed for h in row], dtype=torch.int64),
        positive_offsets_B1=offsets_of(torch.tensor([len(row) for row in listed])),
        scores_P=None,
        step=0,
    )


def batch_of(B: int, P: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def side(count: int) -> Embeddings:
        vectors = torch.randn(count, 6, generator=generator, dtype=torch.float64)
        return Embeddings(nn.functional.normalize(vectors, dim=-1).requires_grad_())

    return Batch(side(B), side(P))


def build(**options: Any) -> Loss:
    return InfoNCEConfig(**options).build(BuildContext(registry=Registry()))


@contextmanager
def tiles_of(elements: int) -> Iterator[None]:
    """Tiles of so many float64 similarities; a larger table is never whole."""
    with mock.patch.object(tiled_cross_entropy, "TILE_BYTES", 8 * elements):
        yield


def is_masked(similarity: Tensor, targets: Targets, config: InfoNCEConfig, b: int, p: int) -> bool:
    """The rules, spelled out for one query and one passage."""
    starts = targets.groups_B1.tolist()
    own = starts[b]
    if p == own:
        return False
    if not config.in_batch and not starts[b] <= p < starts[b + 1]:
        return True
    texts, keys = targets.passage_ids_P.tolist(), targets.passage_keys_P.tolist()
    for other in range(len(starts) - 1):
        if targets.query_ids_B[other] != targets.query_ids_B[b]:
            continue
        low, high = targets.positive_offsets_B1[other : other + 2].tolist()
        known = targets.positives_K[low:high].tolist()
        if config.mask.same_text and texts[p] in [*known, texts[starts[other]]]:
            return True
        if config.mask.same_id and keys[p] != 0 and keys[p] in [*known, keys[starts[other]]]:
            return True
    margin = config.mask.margin
    return margin is not None and bool(similarity[b, p] > similarity[b, own] + margin)


def brute(batch: Batch, targets: Targets, config: InfoNCEConfig) -> Tensor:
    assert batch.query.dense_ND is not None
    assert batch.passage.dense_ND is not None
    similarity = batch.query.dense_ND @ batch.passage.dense_ND.T
    B, P = similarity.shape
    own = targets.groups_B1[:-1].tolist()
    rows = []
    for b in range(B):
        kept = [similarity[b, p] for p in range(P) if not is_masked(similarity, targets, config, b, p)]
        scaled = torch.stack(kept) / config.temperature
        rows.append(scaled.logsumexp(0) - similarity[b, own[b]] / config.temperature)
    loss = torch.stack(rows).mean()
    if not config.symmetric:
        return loss
    by_text = config.model_copy(update={"mask": config.mask.model_copy(update={"margin": None})})
    columns = []
    for b in range(B):
        kept = []
        for other in range(B):
            above = config.mask.margin is not None and bool(
                similarity[other, own[b]] > similarity[b, own[b]] + config.mask.margin
            )
            if other == b or not (above or is_masked(similarity, targets, by_text, other, own[b])):
                kept.append(similarity[other, own[b]])
        columns.append(
            (torch.stack(kept) / config.temperature).logsumexp(0) - similarity[b, own[b]] / config.temperature
        )
    return (loss + torch.stack(columns).mean()) / 2


def assert_equals_brute(batch: Batch, targets: Targets, **options: Any) -> None:
    config = InfoNCEConfig(**options)
    ours, theirs = build(**options)(batch, targets).loss, brute(batch, targets, config)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    values = [batch.query.dense_ND, batch.passage.dense_ND]
    for a, b in zip(torch.autograd.grad(ours, values), torch.autograd.grad(theirs, values), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def assert_metrics_equal_brute(batch: Batch, targets: Targets, **options: Any) -> None:
    config, metrics = InfoNCEConfig(**options), build(**options)(batch, targets).metrics
    similarity = (batch.query.dense_ND @ batch.passage.dense_ND.T).detach()
    B, P = similarity.shape
    starts = targets.groups_B1.tolist()
    seen = [range(P) if config.in_batch else range(starts[b], starts[b + 1]) for b in range(B)]
    kept = [[p for p in seen[b] if not is_masked(similarity, targets, config, b, p)] for b in range(B)]
    first = sum(max(kept[b], key=lambda p, b=b: float(similarity[b, p])) == starts[b] for b in range(B))
    assert metrics["accuracy"].item() == pytest.approx(first / B)
    left_out = sum(len(seen[b]) - len(kept[b]) for b in range(B))
    assert metrics["masked"].item() == pytest.approx(left_out / max(sum(map(len, seen)) - B, 1))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"in_batch": False},
    {"symmetric": True},
    {"mask": {"margin": -0.1}},
    {"mask": {"margin": 0.1}, "symmetric": True},
    {"mask": {"same_text": False}},
    {"mask": {"same_id": False}},
    {"mask": {"same_text": False, "same_id": False}},
    {"in_batch": False, "mask": {"margin": 0.0}},
    {"in_batch": False, "mask": {"margin": -0.1}},
]


@st.composite
def cases(draw: st.DrawFn) -> Targets:
    """Few distinct hashes, so that every rule of the masks has something to do; groups of 1 to 4 passages."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    B, P = len(sizes), sum(sizes)
    ids = st.integers(1, 6)
    return targets_of(
        sizes,
        draw(st.lists(st.integers(1, 3), min_size=B, max_size=B)),
        draw(st.lists(ids, min_size=P, max_size=P)),
        draw(st.lists(st.integers(0, 9), min_size=P, max_size=P)),
        draw(st.lists(st.lists(ids, max_size=3), min_size=B, max_size=B)),
    )


@pytest.mark.parametrize("tile", [2**20, 6, 1], ids="tile{}".format)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@settings(max_examples=10, deadline=None)
@given(targets=cases())
def test_value_gradient_and_metrics_equal_a_loop(options: dict[str, Any], tile: int, targets: Targets) -> None:
    batch = batch_of(targets.row_ids_B.shape[0], targets.passage_ids_P.shape[0])
    with tiles_of(tile):
        assert_equals_brute(batch, targets, **options)
        assert_metrics_equal_brute(batch, targets, **options)


@pytest.mark.parametrize("tile", [2**20, 5], ids="tile{}".format)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@settings(max_examples=8, deadline=None)
@given(targets=cases(), data=st.data())
def test_the_ranks_parts_add_up_to_the_whole(
    options: dict[str, Any], tile: int, targets: Targets, data: st.DataObject
) -> None:
    """In value, in every metric and in gradient, wherever the rows are cut; each rank has a row."""
    B, P = targets.row_ids_B.shape[0], targets.passage_ids_P.shape[0]
    cuts = sorted(data.draw(st.sets(st.integers(1, B - 1)))) if B > 1 else []
    batch, loss = batch_of(B, P), build(**options)
    assert loss.shares_rows  # type: ignore[attr-defined]
    whole = loss(batch, targets)
    with tiles_of(tile):
        parts = [loss(batch, targets._replace(own_rows=own)) for own in pairwise([0, *cuts, B])]
    total = torch.stack([part.loss for part in parts]).sum()
    torch.testing.assert_close(total, whole.loss, rtol=0, atol=1e-10)
    for name, value in whole.metrics.items():
        assert sum(float(part.metrics[name]) for part in parts) == pytest.approx(float(value), abs=1e-10), name
    values = [batch.query.dense_ND, batch.passage.dense_ND]
    for a, b in zip(torch.autograd.grad(total, values), torch.autograd.grad(whole.loss, values), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


# On random vectors a negative margin masks nearly all, so its loss grows with the batch faster than a mean's may.
@pytest.mark.parametrize("options", [o for o in OPTIONS if o.get("mask", {}).get("margin") != -0.1], ids=str)
def test_keeps_the_promises_of_a_loss(options: dict[str, Any]) -> None:
    check_loss(build(**options))


def assert_equals_peer(ours: Tensor, theirs: Tensor, *values: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    for a, b in zip(torch.autograd.grad(ours, values), torch.autograd.grad(theirs, values), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_equals_sentence_transformers_with_one_hard_negative() -> None:
    """MultipleNegativesRankingLoss of (anchor, positive, negative): the same softmax, columns in another order."""
    batch = batch_of(5, 10)
    q, p = batch.query.dense_ND, batch.passage.dense_ND
    assert q is not None
    assert p is not None
    peer = MultipleNegativesRankingLoss(nn.Identity(), scale=20.0, similarity_fct=dot_score)
    theirs = peer.compute_loss_from_embeddings([q, p[0::2], p[1::2]], labels=None)
    ours = build(temperature=0.05, mask=OFF)(batch, targets_of([2] * 5)).loss
    assert_equals_peer(ours, theirs, q, p)


def test_equals_sentence_transformers_in_both_directions() -> None:
    batch = batch_of(6, 6)
    q, p = batch.query.dense_ND, batch.passage.dense_ND
    assert q is not None
    assert p is not None
    directions = ("query_to_doc", "doc_to_query")
    peer = MultipleNegativesRankingLoss(
        nn.Identity(), similarity_fct=dot_score, directions=directions, partition_mode="per_direction"
    )
    ours = build(temperature=0.05, mask=OFF, symmetric=True)(batch, targets_of([1] * 6)).loss
    assert_equals_peer(ours, peer.compute_loss_from_embeddings([q, p], labels=None), q, p)


def test_a_masked_passage_leaves_the_softmax_and_gets_no_gradient_from_that_row() -> None:
    """Passage 1 is a known positive of row 0 by text, so only row 1, its own, pulls on it."""
    batch = batch_of(2, 2)
    targets = targets_of([1, 1], positives=[[2001], []])
    output = build()(batch, targets)
    assert output.metrics["masked"].item() == pytest.approx(0.5)
    mask = contrastive.known_positives(targets, MaskConfig())
    assert mask.tolist() == [[False, True], [False, False]]
    logits = torch.tensor([[0.0, 5.0], [1.0, 2.0]], requires_grad=True)
    contrastive.cross_entropy(logits, mask, torch.tensor([0, 1])).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == [0, 0]
    assert logits.grad[1].abs().min() > 0


def test_an_absent_id_is_no_identity() -> None:
    """0 says "no id": two passages without ids are not the same document, even if a positive hashes to 0."""
    mask = contrastive.known_positives(targets_of([1, 1], positives=[[0], []]), MaskConfig(same_text=False))
    assert not mask.any()


def test_rows_with_the_same_query_share_their_positives() -> None:
    """Row 1 asks the same as row 0, so row 0's positive and its listed text (passage 3) are no negatives of row 1."""
    targets = targets_of([1, 1, 2], queries=[7, 7, 8], positives=[[2003], [], []])
    expected = [[False, True, False, True], [True, False, False, True], [False] * 4]
    assert contrastive.known_positives(targets, MaskConfig()).tolist() == expected


def test_soft_targets_with_masked_columns_stay_finite_in_value_and_gradient() -> None:
    logits = torch.tensor([[3.0, 900.0, -2.0]], requires_grad=True)
    mask, target = torch.tensor([[False, True, False]]), torch.tensor([[0.25, 0.0, 0.75]])
    loss = contrastive.soft_cross_entropy(logits, mask, target)
    loss.sum().backward()
    kept = torch.tensor([3.0, -2.0]).log_softmax(0)
    assert loss.item() == pytest.approx(-(0.25 * kept[0] + 0.75 * kept[1]).item(), rel=1e-6)
    assert logits.grad is not None
    assert logits.grad[0, 1].item() == 0
    assert logits.grad.isfinite().all()


def test_metrics() -> None:
    """Row 0 ranks its positive first, row 1 prefers row 0's; in_batch: false looks at the own group alone."""
    q = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    batch, targets = Batch(Embeddings(q), Embeddings(p)), targets_of([1, 1])
    metrics = build(temperature=1.0)(batch, targets).metrics
    assert set(metrics) == {"loss", "accuracy", "masked"}
    assert metrics["accuracy"].item() == 0.5
    assert metrics["masked"].item() == 0
    assert metrics["loss"].item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(0.2))) / 2)
    alone = build(in_batch=False)(batch, targets)
    assert alone.loss.item() == 0
    assert alone.metrics["accuracy"].item() == 1
    assert not any(value.requires_grad for value in alone.metrics.values())


@pytest.mark.parametrize("tile", [2**20, 1])
def test_the_first_of_equals_is_the_most_similar(tile: int) -> None:
    """The positive comes before its negatives: an equal one does not take its place."""
    q, p = torch.ones(1, 1, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
    with tiles_of(tile):
        metrics = build(mask=OFF)(Batch(Embeddings(q), Embeddings(p)), targets_of([3])).metrics
    assert metrics["accuracy"].item() == 1


@pytest.mark.parametrize("tile", [2**20, 1])
def test_large_logits_do_not_overflow(tile: int) -> None:
    q = torch.tensor([[100.0], [-100.0]], requires_grad=True)
    batch = Batch(Embeddings(q), Embeddings(torch.tensor([[100.0], [-100.0], [50.0]])))
    with tiles_of(tile):
        loss = build(temperature=0.001, symmetric=True)(batch, targets_of([1, 2])).loss
        loss.backward()
    assert loss.isfinite()
    assert q.grad is not None
    assert q.grad.isfinite().all()


def test_symmetric_without_other_rows_is_a_config_error() -> None:
    with pytest.raises(ValidationError, match="symmetric: true compares with the queries of other rows: set in_batch"):
        InfoNCEConfig(symmetric=True, in_batch=False)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temprature": 0.1}, {"mask": {"same_txt": True}}])
def test_impossible_and_unknown_settings_are_rejected(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        InfoNCEConfig(**options)


def test_a_model_without_dense_vectors_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"^'dense' scores are asked for, but the model gives only: nothing; use"):
        build()(Batch(Embeddings(), Embeddings()), targets_of([1]))
