"""Precomputes teacher vectors ahead of a run: the ranks share the blocks of texts, and write each block as a whole."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from embed_distill.store import complete
from embed_distill.store.listing import Listing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embed_core.config.context import BuildContext
    from embed_core.protocols import Dataset
    from embed_distill.store.keys import Keys
    from embed_distill.teacher.cached import Source

BLOCK = 2_048
"""Texts that are computed and written at once: few enough to repeat after a kill, enough to sort by length."""
EVERY_SECONDS = 10.0
"""Seconds between two lines of progress."""


class Filled(NamedTuple):
    """Counts of a finished precompute, over all ranks."""

    texts: int
    """Distinct texts of the dataset, for this teacher."""
    missing: int
    """Number of those texts that had no vector in the store."""


def fill(
    dataset: Dataset, source: Source, context: BuildContext, clock: Callable[[], float] = time.monotonic
) -> Filled:
    """Compute the vectors of ``dataset``'s texts that the store lacks. Every rank has to call this.

    Blocks are ranges of the dataset's texts, so the same texts leave the same files, whatever the number of ranks and
    wherever an earlier build was stopped. A complete dataset is noted, so the next call skips it.
    """
    name = _name(dataset, source)
    known = complete.noted(source.folder, name)
    found = Filled(known, 0) if known is not None else _examined(dataset, source, context, clock)
    if context.rank == 0 and known is None:
        source.store.compact()
        complete.note(source.folder, name, found.texts)
    context.barrier()
    context.announce(
        f"teacher: {found.texts - found.missing:,} vectors from the store, {found.missing:,} computed: "
        f"{source.config.label}"
    )
    return found


def is_complete(dataset: Dataset, source: Source) -> bool:
    """Whether the store has a vector for every text. An empty store is answered without reading the dataset."""
    name = _name(dataset, source)
    if complete.noted(source.folder, name) is not None:
        return True
    if not len(source.store):
        return False
    listing = Listing(dataset, source)
    if not all(bool(source.store.has(keys_N2).all()) for keys_N2 in _blocks(listing)):
        return False
    complete.note(source.folder, name, len(listing))
    return True


def _examined(dataset: Dataset, source: Source, context: BuildContext, clock: Callable[[], float]) -> Filled:
    listing = Listing(dataset, source)
    lacking = {number: lacks for number, keys_N2 in enumerate(_blocks(listing)) if (lacks := _lacks(source, keys_N2))}
    missing = sum(lacking.values())
    context.barrier()  # all ranks have read the store before one of them adds to it
    try:
        if lacking:
            context.announce(
                f"teacher: {missing:,} of {len(listing):,} vectors are to be computed by {source.config.label}, "
                f"kept in {source.folder}"
            )
            source.load(together=True)
            own = {number for number in lacking if number % context.world_size == context.rank}
            _compute(listing, source, own, context, clock)
            source.unload()
    finally:
        context.barrier()  # after a failure too, or the other ranks would wait forever
    return Filled(len(listing), missing)


def _compute(
    listing: Listing, source: Source, own: set[int], context: BuildContext, clock: Callable[[], float]
) -> None:
    began = last_line = clock()
    before = source.computed
    for done, block in enumerate(listing.blocks(BLOCK, own), start=1):
        source.compute(block)
        now = clock()
        if now - last_line >= EVERY_SECONDS:
            last_line = now
            rate = (source.computed - before) / max(now - began, 1e-9)
            context.announce(
                f"teacher: {done} of {len(own)} blocks of {BLOCK:,} texts are done, {rate:,.0f} vectors/s on each rank"
            )


def _name(dataset: Dataset, source: Source) -> str:
    """Identifies dataset and teacher: the same texts with other prompts have other vectors."""
    return f"{dataset.fingerprint()}|{source.fingerprint()}"


def _lacks(source: Source, keys_N2: Keys) -> int:
    return int(np.count_nonzero(~source.store.has(keys_N2)))


def _blocks(listing: Listing) -> Iterator[Keys]:
    return (listing.keys_N2[start : start + BLOCK] for start in range(0, len(listing), BLOCK))
