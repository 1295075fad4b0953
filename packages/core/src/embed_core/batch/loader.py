"""Loads a run's global batches by number, and prefetches them in a background thread.

A batch is a function of the seed and its number alone, so a resume starts at any batch without replaying others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from embed_core.batch.collate import HostBatch, draw_examples, make_host_batch, share_of_rank
from embed_core.config.run import RunConfig
from embed_core.errors import ConfigError
from embed_core.protocols import CompletesExamples, Dataset, Sampler, provides
from embed_core.text.token_cache import Tokenizes
from embed_core.types import Example

T = TypeVar("T")


class Batches:
    """The global batches that ``sampler`` draws from ``dataset``, in shares for any number of ranks."""

    def __init__(self, config: RunConfig, dataset: Dataset, sampler: Sampler) -> None:
        self.config, self.dataset, self.sampler = config, dataset, sampler

    def rows(self, number: int, rank: int, world_size: int) -> Sequence[int]:
        """The row ids of ``rank``'s share of the ``number``-th global batch.

        Raises ConfigError where ranks would go without: on every rank, since every rank sees the whole batch.
        """
        drawn = self.sampler.batch(number)
        if len(drawn) < world_size:
            raise ConfigError(
                f"sampler.kind {self.config.sampler.kind!r}: batch {number} has {len(drawn)} rows for {world_size} "
                "ranks: every rank needs one, use fewer ranks or a larger sampler.batch_size"
            )
        return share_of_rank(drawn, rank, world_size)

    def examples(self, number: int, rank: int = 0, world_size: int = 1) -> list[Example]:
        """The examples of that share, each a function of (seed, number, row)."""
        drawn = draw_examples(self.dataset, self.rows(number, rank, world_size), self.config.seed, number)
        return self.dataset.complete(drawn) if provides(self.dataset, CompletesExamples) else drawn

    def host(
        self, model: Tokenizes, number: int, rank: int = 0, world_size: int = 1, *, deduplicate: bool | None = None
    ) -> HostBatch:
        """That share, tokenised. ``deduplicate`` overrides ``engine.deduplicate``."""
        once = self.config.engine.deduplicate if deduplicate is None else deduplicate
        return make_host_batch(model, self.examples(number, rank, world_size), deduplicate=once)


def prefetch(make: Callable[[int], T], start: int, stop: int, ahead: int) -> Generator[T, None, None]:
    """Yield ``make(start)``, …, ``make(stop - 1)``, of which ``ahead`` are made in advance by a thread.

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
