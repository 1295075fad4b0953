"""The running top-k against sorting all (score, position) pairs at once."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embed_core.evaluation.topk import TopK, pack, unpack

torch.set_num_threads(1)

SCORES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, math.inf, -math.inf, math.nan, 1e-45, -1e-45]),
    st.floats(width=32, allow_nan=False, allow_subnormal=False),  # a process may flush those to 0
)


def _oracle(scores: list[float], depth: int) -> list[int]:
    kept = [(-score, place) for place, score in enumerate(scores) if not math.isnan(score) and score != -math.inf]
    return [place for _, place in sorted(kept)][:depth]


@settings(max_examples=150, deadline=None)
@given(st.lists(SCORES, min_size=1, max_size=24), st.integers(1, 30), st.integers(1, 7), st.randoms())
def test_order_is_by_score_then_position_whatever_the_tiles(scores, depth, tile, random) -> None:  # type: ignore[no-untyped-def]
    places = list(range(len(scores)))
    random.shuffle(places)
    top = TopK(1, depth)
    for start in range(0, len(places), tile):
        position_N = torch.tensor(places[start : start + tile])
        top.add(0, torch.tensor([[scores[p] for p in position_N.tolist()]], dtype=torch.float32), position_N)
    assert unpack(top.keys_QK[0]) == _oracle(scores, depth)


def test_large_positions_survive() -> None:
    position_N = torch.tensor([0, 2**31, 2**32 - 1])
    keys = pack(torch.tensor([[1.0, 1.0, 2.0]]), position_N)[0]
    assert unpack(keys.sort(descending=True).values) == [2**32 - 1, 0, 2**31]


def test_merging_halves_is_the_whole_and_rows_are_kept_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    scores_QN = torch.randint(0, 5, (6, 50), generator=generator).float()  # many ties
    whole, left, right = TopK(6, 8), TopK(6, 8), TopK(6, 8)
    whole.add(0, scores_QN, torch.arange(50))
    for top, half in ((left, torch.arange(0, 50, 2)), (right, torch.arange(1, 50, 2))):
        for start in (0, 3):  # queries in blocks
            top.add(start, scores_QN[start : start + 3, half], half)
    merged = TopK(6, 8)
    merged.merge([right.keys_QK, left.keys_QK])
    assert torch.equal(merged.keys_QK, whole.keys_QK)
    assert [unpack(k) for k in whole.keys_QK] == [_oracle(row, 8) for row in scores_QN.tolist()]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_on_cuda() -> None:
    scores_QN = torch.randint(0, 5, (6, 500)).float()
    cpu, cuda = TopK(6, 8), TopK(6, 8, "cuda")
    cpu.add(0, scores_QN, torch.arange(500))
    cuda.add(0, scores_QN.cuda(), torch.arange(500, device="cuda"))
    assert torch.equal(cpu.keys_QK, cuda.keys_QK.cpu())
