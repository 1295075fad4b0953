"""Chunks: every text once, the longest first, within the budget, as many as asked for."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embed_core.batch.chunks import PRICE, cut, padded_tokens

LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 200))
def test_every_text_once_within_the_budget(lengths: list[int], budget: int) -> None:
    chunks = cut(lengths, budget)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(len(lengths)))
    for chunk in chunks:
        assert len(chunk) == 1 or len(chunk) * max(1, *(lengths[i] for i in chunk)) <= budget
    flat = [lengths[i] for chunk in chunks for i in chunk]
    assert flat == sorted(flat, reverse=True)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(1, 200))
def test_no_other_cut_is_cheaper(lengths: list[int], budget: int) -> None:
    """Against all ways to cut the sorted texts that keep to the budget."""
    ordered, price = sorted(lengths, reverse=True), budget // PRICE
    costs = []
    for mask in range(2 ** (len(ordered) - 1)):
        cuts = [0, *(i + 1 for i in range(len(ordered) - 1) if mask >> i & 1), len(ordered)]
        parts = [ordered[start:stop] for start, stop in pairwise(cuts)]
        if all(len(part) == 1 or len(part) * part[0] <= budget for part in parts):
            costs.append(sum(len(part) * part[0] + price for part in parts))
    chunks = cut(lengths, budget)
    assert padded_tokens(lengths, chunks) + price * len(chunks) == min(costs)


@given(LENGTHS, st.integers(1, 200), st.integers(0, 50))
def test_exactly_as_many_chunks_as_asked_for(lengths: list[int], budget: int, more: int) -> None:
    least = cut(lengths, budget)
    chunks = cut(lengths, budget, len(least) + more)
    assert len(chunks) == len(least) + more
    assert all(chunks)
    assert {i for chunk in chunks for i in chunk} == set(range(len(lengths)))
    repeated = [i for chunk in chunks for i in chunk]
    assert len(repeated) - len(lengths) == max(0, len(chunks) - len(lengths)), "only where texts run out"


def test_a_worked_example() -> None:
    lengths = [3, 9, 1, 4]
    assert cut(lengths, 32) == [[1], [3, 0], [2]], "a chunk is worth 2 tokens: more than 4 beside 3, less than beside 1"
    assert cut(lengths, 9) == [[1], [3], [0], [2]]
    assert cut(lengths, 32, 4) == [[1], [3], [0], [2]]
    assert cut(lengths, 32, 6) == [[1], [3], [0], [2], [2], [2]], "the shortest text pays for what is too much"
    assert padded_tokens(lengths, [[1], [3, 0], [2]]) == 9 + 8 + 1


@pytest.mark.parametrize("budget", [1, 5])
def test_a_text_beyond_the_budget_is_its_own_chunk(budget: int) -> None:
    assert cut([7, 6], budget) == [[0], [1]]
