"""Score matrices against loops over pairs in float64; gradients; bounds on memory; errors."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from embed_core import embeddings as ops
from embed_core.errors import ConfigError
from embed_core.scoring import (
    combine,
    combined_scores,
    dense_scores,
    kind_scores,
    multi_vector,
    multi_vector_scores,
    sparse,
    sparse_scores,
)
from embed_core.types import Embeddings, MultiVectors, ScoreWeights, SparseVectors

torch.set_num_threads(1)
WEIGHTS: ScoreWeights = {"dense": 1.0, "sparse": 0.3, "multi": 1.0}


def build(lengths: list[int], seed: int = 0, vocabulary: int = 20, width: int = 4) -> Embeddings:
    """Random float64 embeddings; text n has ``lengths[n]`` tokens and as many distinct ids."""
    generator = torch.Generator().manual_seed(seed)
    offsets = ops.offsets_of(torch.tensor(lengths, dtype=torch.int64))
    ids = torch.cat([torch.randperm(vocabulary, generator=generator)[:n] for n in lengths])
    total = int(offsets[-1])
    e = Embeddings(
        torch.randn(len(lengths), width, generator=generator, dtype=torch.float64),
        SparseVectors(torch.rand(total, generator=generator, dtype=torch.float64), ids, offsets),
        MultiVectors(torch.randn(total, width, generator=generator, dtype=torch.float64), offsets),
    )
    return ops.map_values(e, lambda value: value.requires_grad_())


def brute_sparse(q: Embeddings, p: Embeddings, b: int, c: int) -> Tensor:
    assert q.sparse is not None
    assert p.sparse is not None
    (qw, qi, qo), (pw, pi, po) = q.sparse, p.sparse
    total = qw.sum() * 0
    for i, j in itertools.product(range(int(qo[b]), int(qo[b + 1])), range(int(po[c]), int(po[c + 1]))):
        if qi[i] == pi[j]:
            total = total + qw[i] * pw[j]
    return total


def brute_multi(q: Embeddings, p: Embeddings, b: int, c: int) -> Tensor:
    assert q.multi is not None
    assert p.multi is not None
    (qv, qo), (pv, po) = q.multi, p.multi
    query, passage = qv[qo[b] : qo[b + 1]], pv[po[c] : po[c + 1]]
    if len(query) == 0 or len(passage) == 0:
        return qv.sum() * 0
    return torch.stack([torch.stack([token @ other for other in passage]).max() for token in query]).mean()


def brute_dense(q: Embeddings, p: Embeddings, b: int, c: int) -> Tensor:
    assert q.dense_ND is not None
    assert p.dense_ND is not None
    return (q.dense_ND[b] * p.dense_ND[c]).sum()


PAIRS = {
    "dense": (dense_scores, brute_dense),
    "sparse": (sparse_scores, brute_sparse),
    "multi": (multi_vector_scores, brute_multi),
}


def gradients(scores: Tensor, upstream: Tensor, *sides: Embeddings) -> list[Tensor]:
    wanted = [value for side in sides for value in ops.values(side)]
    found = torch.autograd.grad((scores * upstream).sum(), wanted, allow_unused=True)
    return [torch.zeros_like(w) if f is None else f for w, f in zip(wanted, found, strict=True)]


@pytest.fixture(params=["whole", "tiny"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual tiles, and tiles so small that every boundary falls inside the test's data."""
    if request.param == "tiny":
        monkeypatch.setattr(multi_vector, "TILE_TOKENS", {"cpu": 7})
        monkeypatch.setattr(multi_vector, "TILE_ELEMENTS", {"cpu": 16})
        monkeypatch.setattr(sparse, "TILE_IDS", 6)
        monkeypatch.setattr(sparse, "TILE_ELEMENTS", {"cpu": 12})


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize(
    ("queries", "passages"),
    [([3, 1, 4, 2], [5, 2, 7, 1, 3, 3, 6]), ([2, 0, 3], [0, 4, 0, 1]), ([0], [0]), ([1], [9]), ([12, 1], [1, 1, 1])],
)
def test_scores_and_gradients_equal_a_loop_over_pairs(kind: str, queries: list[int], passages: list[int]) -> None:
    fast, slow = PAIRS[kind]
    q, p = build(queries, 1), build(passages, 2)
    scores = fast(q, p)
    rows = range(len(queries))
    expected = torch.stack([torch.stack([slow(q, p, b, c) for c in range(len(passages))]) for b in rows])
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-12)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for ours, theirs in zip(gradients(scores, upstream, q, p), gradients(expected, upstream, q, p), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=5),
    st.lists(st.integers(0, 12), min_size=1, max_size=9),
    st.integers(1, 20),
    st.integers(1, 30),
)
def test_any_cut_into_tiles_gives_the_same(queries: list[int], passages: list[int], tokens: int, elements: int) -> None:
    q, p = build(queries, 1), build(passages, 2)
    whole, upstream = combined_scores(q, p, WEIGHTS), torch.ones(len(queries), len(passages), dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multi_vector, "TILE_TOKENS", {"cpu": tokens})
        patch.setattr(multi_vector, "TILE_ELEMENTS", {"cpu": elements})
        patch.setattr(sparse, "TILE_IDS", tokens)
        patch.setattr(sparse, "TILE_ELEMENTS", {"cpu": elements})
        cut = combined_scores(q, p, WEIGHTS)
        cut_gradients = gradients(cut, upstream, q, p)
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-12)
    for ours, theirs in zip(cut_gradients, gradients(whole, upstream, q, p), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("kind", ["sparse", "multi"])
def test_gradcheck(kind: str) -> None:
    q, p = build([2, 3], 1), build([4, 0, 2], 2)
    values = [*ops.values(q), *ops.values(p)]

    def score(*values: Tensor) -> Tensor:
        def rebuilt(e: Embeddings, dense: Tensor, weights: Tensor, vectors: Tensor) -> Embeddings:
            assert e.sparse is not None
            assert e.multi is not None
            return Embeddings(dense, e.sparse._replace(weights_K=weights), e.multi._replace(vectors_TC=vectors))

        return PAIRS[kind][0](rebuilt(q, *values[:3]), rebuilt(p, *values[3:]))

    assert torch.autograd.gradcheck(score, values)


@pytest.mark.parametrize("kind", ["sparse", "multi"])
@pytest.mark.parametrize("frozen", [0, 1])
def test_only_the_side_that_asks_for_a_gradient_gets_one(kind: str, frozen: int) -> None:
    sides = [build([2, 3], 1), build([4, 2], 2)]
    both = gradients(PAIRS[kind][0](*sides), torch.ones(2, 2), *sides)
    sides[frozen] = ops.detach(sides[frozen])
    alone = gradients(PAIRS[kind][0](*sides), torch.ones(2, 2), sides[1 - frozen])
    expected = both[3:] if frozen == 0 else both[:3]
    for ours, theirs in zip(alone, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_without_gradient_the_scores_are_the_same_to_the_bit() -> None:
    q, p = (ops.map_values(build([3, 2] * 5, seed, width=16), lambda v: v.float()) for seed in (1, 2))
    with_gradient = multi_vector_scores(q, p)
    with torch.no_grad():
        assert torch.equal(multi_vector_scores(q, p), with_gradient)
        assert not multi_vector_scores(q, p).requires_grad


def test_slices_of_the_passages_give_slices_of_the_scores() -> None:
    q, p = build([3, 0, 2], 1), build([5, 2, 0, 1, 3], 2)
    whole = combined_scores(q, p, WEIGHTS)
    cut = [combined_scores(q, ops.slice_rows(p, start, start + 2), WEIGHTS) for start in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(cut, 1), whole)


def test_passages_longer_than_a_byte_keep_the_position_of_their_maximum() -> None:
    """The position of a maximum is kept in the smallest integer type: cross the borders of one and two bytes."""
    for length in (256, 257, 32768, 32769):
        vectors = torch.zeros(length, 1)
        vectors[-1] = 1
        vectors.requires_grad_()
        q = Embeddings(multi=MultiVectors(torch.ones(1, 1), torch.tensor([0, 1])))
        multi_vector_scores(q, Embeddings(multi=MultiVectors(vectors, torch.tensor([0, length])))).sum().backward()
        assert vectors.grad is not None
        assert vectors.grad[-1].item() == 1
        assert vectors.grad.sum().item() == 1


def test_a_padded_copy_of_the_last_token_that_wins_stands_for_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel may round equal columns differently, so that the copy's score is a bit higher: force that outcome."""
    q, p = build([3, 2], 1), build([1, 5, 3, 2], 2)
    expected = gradients(multi_vector_scores(q, p), torch.ones(2, 4), q, p)
    forward, moved = multi_vector._forward, 0

    def copies_win(q: MultiVectors, p: MultiVectors, plan: Any, position_TP: Tensor | None) -> Tensor:
        nonlocal moved
        sums_BP = forward(q, p, plan, position_TP)
        assert position_TP is not None
        for tile in plan.tiles:
            columns_TP = position_TP[:, tile.start : tile.stop]
            last_TP = (columns_TP == plan.length_P[tile.start : tile.stop] - 1) & (columns_TP < tile.length - 1)
            moved += int(last_TP.sum())
            columns_TP[last_TP] = tile.length - 1
        return sums_BP

    monkeypatch.setattr(multi_vector, "_forward", copies_win)
    for ours, theirs in zip(gradients(multi_vector_scores(q, p), torch.ones(2, 4), q, p), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert moved > 0


class Largest(TorchDispatchMode):
    """Elements of the largest tensor any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.numel = max(self.numel, leaf.numel())
        return result


def largest(kind: str, queries: int, passages: int, tokens: int) -> int:
    lengths = [tokens // 2, tokens]
    q = build((lengths * queries)[:queries], 1, vocabulary=5000, width=8)
    p = build((lengths * passages)[:passages], 2, vocabulary=5000, width=8)
    with Largest() as mode:
        PAIRS[kind][0](q, p).sum().backward()
    numel: int = mode.numel
    return numel


@pytest.mark.parametrize("kind", ["sparse", "multi"])
def test_no_tensor_outgrows_a_tile_the_inputs_or_a_row_of_results_per_query_token(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides doubled in number and in length: B·P·Lq·Lp grows 16 times; nothing that is made may."""
    tile = {"multi": 4096, "sparse": 1024}[kind]
    monkeypatch.setattr(multi_vector, "TILE_TOKENS", {"cpu": 128})
    monkeypatch.setattr(multi_vector, "TILE_ELEMENTS", {"cpu": tile})
    monkeypatch.setattr(sparse, "TILE_IDS", 128)
    monkeypatch.setattr(sparse, "TILE_ELEMENTS", {"cpu": tile})
    for size in (2, 4):
        queries, passages, tokens = 8 * size, 16 * size, 16 * size
        inputs = {"multi": passages * tokens * 8, "sparse": passages * tokens}[kind]
        positions = {"multi": queries * tokens * passages, "sparse": queries * passages}[kind]
        bound = max(2 * tile, inputs, positions)
        assert largest(kind, queries, passages, tokens) <= bound < queries * passages * tokens * tokens / 16


def test_no_tensor_is_as_wide_as_the_vocabulary() -> None:
    ids = torch.tensor([0, 250_000_000])
    e = Embeddings(sparse=SparseVectors(torch.ones(2, requires_grad=True), ids, torch.tensor([0, 2])))
    with Largest() as mode:
        scores = sparse_scores(e, e)
    assert scores.item() == 2
    assert mode.numel < 100


def test_combine_is_the_weighted_sum_and_skips_weights_of_zero() -> None:
    q, p = build([3, 2], 1), build([2, 4], 2)
    parts = kind_scores(q, p, ["dense", "sparse", "multi", "dense"])
    assert list(parts) == ["dense", "sparse", "multi"]
    expected = parts["dense"] + 0.3 * parts["sparse"] + parts["multi"]
    torch.testing.assert_close(combined_scores(q, p, WEIGHTS), expected)
    dense_only = Embeddings(q.dense_ND), Embeddings(p.dense_ND)
    torch.testing.assert_close(combined_scores(*dense_only, {"dense": 2.0, "multi": 0.0}), 2 * parts["dense"])
    torch.testing.assert_close(combine(parts, {"multi": -1.0}), -parts["multi"])


@pytest.mark.parametrize(("kind", "given"), [("dense", "multi"), ("sparse", "dense, multi"), ("multi", "dense")])
@pytest.mark.parametrize("side", [0, 1])
def test_a_kind_the_model_lacks_is_named_with_what_there_is(kind: str, given: str, side: int) -> None:
    full = build([2, 1])
    kept = [name.strip() for name in given.split(",")]
    lacking = Embeddings(full.dense_ND if "dense" in kept else None, None, full.multi if "multi" in kept else None)
    sides = (lacking, full) if side == 0 else (full, lacking)
    with pytest.raises(ConfigError) as caught:
        PAIRS[kind][0](*sides)
    message = str(caught.value)
    assert message == (
        f"'{kind}' scores are asked for, but the model gives only: {given}; "
        f"use a model with '{kind}' embeddings, or a loss and evaluation without '{kind}'"
    )


def test_an_unknown_kind_and_empty_weights_are_errors() -> None:
    e = build([2, 1])
    with pytest.raises(ConfigError, match=r"^unknown kind of score 'mutli': did you mean 'multi'\?$"):
        combined_scores(e, e, {"mutli": 1.0})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=r"^score weights \{'dense': 0\.0\} add up to nothing: give at least one"):
        combined_scores(e, e, {"dense": 0.0})
