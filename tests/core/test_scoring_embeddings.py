"""Arithmetic on embeddings, against Python loops over texts."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embed_core import embeddings as ops
from embed_core.types import Embeddings, MultiVectors, SparseVectors

torch.set_num_threads(1)


def build(lengths: list[int], seed: int = 0, dtype: torch.dtype = torch.float32) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()])
    total = int(offsets[-1])
    ids = torch.cat([torch.randperm(50, generator=generator)[:n] for n in lengths] or [torch.empty(0).long()])
    return Embeddings(
        torch.randn(len(lengths), 3, generator=generator).to(dtype),
        SparseVectors(torch.rand(total, generator=generator).to(dtype), ids, offsets),
        MultiVectors(torch.randn(total, 2, generator=generator).to(dtype), offsets.clone()),
    )


def texts(e: Embeddings) -> list[tuple[list[float], list[tuple[int, float]], list[list[float]]]]:
    """One plain Python value per text."""
    assert e.dense_ND is not None
    assert e.sparse is not None
    assert e.multi is not None
    out = []
    for n in range(e.count):
        low, high = int(e.sparse.offsets_N1[n]), int(e.sparse.offsets_N1[n + 1])
        first, last = int(e.multi.offsets_N1[n]), int(e.multi.offsets_N1[n + 1])
        pairs = list(zip(e.sparse.ids_K[low:high].tolist(), e.sparse.weights_K[low:high].tolist(), strict=True))
        out.append((e.dense_ND[n].tolist(), pairs, e.multi.vectors_TC[first:last].tolist()))
    return out


ragged = st.lists(st.integers(0, 5), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(ragged, st.data())
def test_select_gives_the_rows_in_the_given_order(lengths: list[int], data: st.DataObject) -> None:
    e = build(lengths)
    index = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=10))
    picked = ops.select(e, torch.tensor(index, dtype=torch.int64))
    assert texts(picked) == [texts(e)[row] for row in index]


@settings(max_examples=40, deadline=None)
@given(st.lists(ragged, min_size=1, max_size=4))
def test_concat_puts_the_parts_one_after_another(parts: list[list[int]]) -> None:
    built = [build(lengths, seed) for seed, lengths in enumerate(parts)]
    assert texts(ops.concat(built)) == [text for part in built for text in texts(part)]


@settings(max_examples=40, deadline=None)
@given(ragged, st.integers(0, 9), st.integers(0, 9))
def test_slice_rows_is_a_python_slice(lengths: list[int], start: int, stop: int) -> None:
    e = build(lengths)
    assert texts(ops.slice_rows(e, start, stop)) == texts(e)[start:stop]


def test_slice_rows_copies_no_values() -> None:
    e = build([3, 2, 4])
    for part, whole in zip(ops.values(ops.slice_rows(e, 1, 3)), ops.values(e), strict=True):
        assert part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


def test_select_and_concat_pass_the_gradient_on_as_often_as_a_row_is_picked() -> None:
    e = ops.map_values(build([2, 0, 3]), lambda value: value.requires_grad_())
    picked = ops.concat([ops.select(e, torch.tensor([2, 0, 2])), ops.slice_rows(e, 0, 1)])
    torch.stack([value.sum() for value in ops.values(picked)]).sum().backward()
    dense, sparse, multi = (value.grad for value in ops.values(e))
    assert dense is not None
    assert sparse is not None
    assert multi is not None
    assert dense[:, 0].tolist() == [2, 0, 2]
    assert sparse.tolist() == [2, 2, 2, 2, 2]
    assert multi[:, 1].tolist() == [2, 2, 2, 2, 2]


def test_absent_kinds_stay_absent() -> None:
    only = Embeddings(multi=build([1, 2]).multi)
    for result in (
        ops.select(only, torch.tensor([1])),
        ops.concat([only, only]),
        ops.slice_rows(only, 0, 1),
        ops.detach(only),
        ops.to_device(only, "cpu"),
    ):
        assert result.dense_ND is None
        assert result.sparse is None
        assert result.multi is not None


def test_to_float32_widens_half_precision_only() -> None:
    assert {value.dtype for value in ops.values(ops.to_float32(build([1], dtype=torch.bfloat16)))} == {torch.float32}
    assert {value.dtype for value in ops.values(ops.to_float32(build([1], dtype=torch.float64)))} == {torch.float64}


def test_detach_cuts_the_history_and_keeps_the_values() -> None:
    e = ops.map_values(build([1, 2]), lambda value: value.requires_grad_())
    cut = ops.detach(e)
    assert not any(value.requires_grad for value in ops.values(cut))
    assert texts(cut) == texts(e)


def test_to_device_moves_every_tensor() -> None:
    moved = ops.to_device(build([1, 2]), "meta")
    assert moved.dense_ND is not None
    assert moved.sparse is not None
    assert moved.multi is not None
    assert {t.device.type for t in (moved.dense_ND, *moved.sparse, *moved.multi)} == {"meta"}
