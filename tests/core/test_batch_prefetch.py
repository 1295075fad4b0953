"""Prefetching: the same values in the same order, ahead of the caller, errors where their value would have been."""

from __future__ import annotations

import threading
import time

import pytest

from embed_core.batch.loader import prefetch


@pytest.mark.parametrize("ahead", [0, 1, 3, 100])
def test_values_come_in_order(ahead: int) -> None:
    assert list(prefetch(lambda n: n * n, 2, 7, ahead)) == [4, 9, 16, 25, 36]
    assert list(prefetch(lambda n: n, 5, 5, ahead)) == []


@pytest.mark.parametrize("ahead", [1, 2])
def test_the_next_ones_are_made_while_the_caller_works(ahead: int) -> None:
    made, threads = [], set()

    def make(number: int) -> int:
        threads.add(threading.current_thread())
        made.append(number)
        return number

    batches = prefetch(make, 0, 10, ahead)
    assert next(batches) == 0
    deadline = time.monotonic() + 5
    while len(made) < 1 + ahead and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == list(range(1 + ahead)), "as many as were asked for, and no more"
    assert threading.current_thread() not in threads
    batches.close()


def test_without_prefetching_nothing_is_made_before_it_is_asked_for() -> None:
    made: list[int] = []
    batches = prefetch(lambda n: made.append(n) or n, 0, 10, 0)
    next(batches)
    assert made == [0]


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_is_raised_where_its_value_would_have_been(ahead: int) -> None:
    def make(number: int) -> int:
        if number == 2:
            raise ValueError("planted")
        return number

    batches = prefetch(make, 0, 5, ahead)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(ValueError, match="planted"):
        next(batches)


def test_closing_early_leaves_no_thread() -> None:
    batches = prefetch(lambda n: n, 0, 1000, 3)
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("embed-prefetch")]
