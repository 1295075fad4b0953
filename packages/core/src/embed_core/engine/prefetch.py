"""Batches read and tokenised ahead of the step that needs them, in a background thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(make: Callable[[int], T], start: int, stop: int, ahead: int) -> Generator[T, None, None]:
    """``make(start)``, …, ``make(stop - 1)``; ``ahead`` of them are on their way while the caller works on one.

    Tokenizers release the interpreter lock, so a thread suffices, and nothing needs to be pickled. An exception of
    ``make`` is raised where its value would have been.
    """
    if ahead == 0:
        yield from map(make, range(start, stop))
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="embed-prefetch") as pool:
        pending: deque[Future[T]] = deque()
        try:
            for number in range(start, stop):
                while number + len(pending) < min(stop, number + 1 + ahead):
                    pending.append(pool.submit(make, number + len(pending)))
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
