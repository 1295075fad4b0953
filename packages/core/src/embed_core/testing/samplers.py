"""Checks what :class:`embed_core.protocols.Sampler` promises."""

from __future__ import annotations

from collections.abc import Callable

from embed_core.protocols import Dataset, Sampler

Factory = Callable[[Dataset, int], Sampler]
"""Dataset and seed → sampler."""


def check_sampler(factory: Factory, dataset: Dataset, *, batch_size: int, shuffles: bool = True) -> None:
    """Assert a sampler's promises over ``dataset``, which should hold a few batches.

    Checked: at least one draw per epoch; rows of the dataset, ``batch_size`` at most and none twice in a batch; no
    row twice in an epoch; any draw can be asked for in any order, by any instance, with the same answer; and unless
    ``shuffles`` is false, epochs and seeds differ.

    Raises AssertionError.
    """
    sampler = factory(dataset, 1)
    draws = sampler.draws_per_epoch
    assert draws >= 1, f"draws_per_epoch is {draws}: an epoch has at least one batch"
    epochs = [[list(sampler.batch(epoch * draws + index)) for index in range(draws)] for epoch in range(2)]
    for epoch, batches in enumerate(epochs):
        for index, batch in enumerate(batches):
            _check_batch(batch, dataset, batch_size, f"draw {epoch * draws + index}")
        rows = [row for batch in batches for row in batch]
        twice = sorted({row for row in rows if rows.count(row) > 1})
        assert not twice, f"epoch {epoch} draws rows {twice[:5]} more than once"
    _check_pure(factory, dataset, [batch for batches in epochs for batch in batches])
    if shuffles:
        assert epochs[0] != epochs[1], "the second epoch is the first again: shuffle by epoch"
        other = factory(dataset, 2)
        drawn = [list(other.batch(draw)) for draw in range(draws)]
        assert drawn != epochs[0], "another seed draws the same batches: shuffle by the seed"


def _check_batch(batch: list[int], dataset: Dataset, batch_size: int, context: str) -> None:
    assert batch, f"{context} is empty"
    assert len(batch) <= batch_size, f"{context} has {len(batch)} rows, more than the batch size {batch_size}"
    for row in batch:
        assert isinstance(row, int), f"{context}: row ids must be int, not {type(row).__name__}"
        assert 0 <= row < len(dataset), f"{context}: row {row} is none of the {len(dataset)} rows"
    assert len(set(batch)) == len(batch), f"{context} holds a row twice"


def _check_pure(factory: Factory, dataset: Dataset, expected: list[list[int]]) -> None:
    """A resume asks a new instance for draw k first; another rank may ask in any order."""
    fresh = factory(dataset, 1)
    for draw in reversed(range(len(expected))):
        got = list(fresh.batch(draw))
        assert got == expected[draw], (
            f"draw {draw} is {expected[draw][:5]}… when drawn in order and {got[:5]}… from a new instance drawn "
            "backwards: a batch must depend on the seed and the draw alone"
        )
    assert list(fresh.batch(0)) == expected[0], "asking for draw 0 again gives other rows"
