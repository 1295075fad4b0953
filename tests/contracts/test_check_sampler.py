"""`check_sampler` passes an honest sampler and catches each broken promise; RowsDataset keeps the dataset's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from embed_core.protocols import Dataset, Sampler
from embed_core.testing import check_sampler, tiny_dataset

BATCH = 5


class Shuffled:
    """A permutation per epoch, full batches only."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.rows = len(dataset)
        self.seed = seed

    @property
    def draws_per_epoch(self) -> int:
        return self.rows // BATCH

    def order(self, epoch: int) -> list[int]:
        return [int(row) for row in np.random.default_rng([self.seed, epoch]).permutation(self.rows)]

    def batch(self, draw: int) -> Sequence[int]:
        epoch, index = divmod(draw, self.draws_per_epoch)
        return self.order(epoch)[index * BATCH :][:BATCH]


class Stateful(Shuffled):
    def __init__(self, dataset: Dataset, seed: int) -> None:
        super().__init__(dataset, seed)
        self.rng = np.random.default_rng(seed)

    def batch(self, draw: int) -> Sequence[int]:
        return [int(row) for row in self.rng.permutation(self.rows)[:BATCH]]


class Remembers(Shuffled):
    """Goes by the order of the calls: right on a straight run, wrong after a resume."""

    calls = 0

    def batch(self, draw: int) -> Sequence[int]:
        self.calls += 1
        return super().batch(self.calls - 1)


class SameEpochs(Shuffled):
    def order(self, epoch: int) -> list[int]:
        return super().order(0)


class SameSeeds(Shuffled):
    def order(self, epoch: int) -> list[int]:
        return [int(row) for row in np.random.default_rng(epoch).permutation(self.rows)]


class RowTwice(Shuffled):
    def batch(self, draw: int) -> Sequence[int]:
        rows = list(super().batch(draw))
        return [rows[0], *rows[:-1]]


class TwiceAnEpoch(Shuffled):
    def batch(self, draw: int) -> Sequence[int]:
        epoch, index = divmod(draw, self.draws_per_epoch)
        return self.order(epoch)[index : index + 2]


class TooMany(Shuffled):
    def batch(self, draw: int) -> Sequence[int]:
        return self.order(draw)


class Outside(Shuffled):
    def batch(self, draw: int) -> Sequence[int]:
        return [row + 1 for row in self.order(draw) if row > self.rows - 3]


class NumpyRows(Shuffled):
    def batch(self, draw: int) -> Sequence[int]:
        return list(np.asarray(super().batch(draw)))


class Empty(Shuffled):
    def batch(self, draw: int) -> Sequence[int]:
        return []


class NoDraws(Shuffled):
    @property
    def draws_per_epoch(self) -> int:
        return 0


def test_honest_sampler_passes() -> None:
    check_sampler(Shuffled, tiny_dataset(), batch_size=BATCH)


def test_order_that_never_changes_passes_when_it_is_meant() -> None:
    class InOrder(Shuffled):
        def order(self, epoch: int) -> list[int]:
            return list(range(self.rows))

    check_sampler(InOrder, tiny_dataset(), batch_size=BATCH, shuffles=False)
    with pytest.raises(AssertionError, match="the second epoch is the first again"):
        check_sampler(InOrder, tiny_dataset(), batch_size=BATCH)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Remembers, "must depend on the seed and the draw alone"),
        (SameEpochs, "the second epoch is the first again"),
        (SameSeeds, "another seed draws the same batches"),
        (RowTwice, "draw 0 holds a row twice"),
        (TwiceAnEpoch, "more than once"),
        (TooMany, "draw 0 has 36 rows, more than the batch size 5"),
        (Outside, "row 36 is none of the 36 rows"),
        (NumpyRows, "row ids must be int, not int64"),
        (Empty, "draw 0 is empty"),
        (NoDraws, "draws_per_epoch is 0"),
        (Stateful, r"more than once|must depend on the seed"),
    ],
)
def test_broken_promise_is_named(broken: type[Sampler], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_sampler(broken, tiny_dataset(), batch_size=BATCH)  # type: ignore[arg-type]


def test_rows_dataset_keeps_the_contract() -> None:
    dataset = tiny_dataset(held_out_rows=6, sources=3)
    assert isinstance(dataset, Dataset)
    assert len(dataset) == 30
    first, again = (dataset.example(1, np.random.default_rng(7)) for _ in range(2))
    assert first == again
    assert first.passages[0] in first.positives
    held_out = dataset.held_out()
    assert held_out is not None
    assert len(held_out.queries) == 6
    texts = list(dataset.texts())
    assert len(texts) == len(set(texts))
    assert not set(held_out.queries.values()) & set(texts), "held-out queries are not trained on"
    for query, judged in held_out.qrels.items():
        assert query in held_out.queries
        assert all(held_out.corpus[document] for document in judged)
    assert {dataset.source(row) for row in range(30)} == {"animals-0", "animals-1", "animals-2"}
    assert dataset.fingerprint() == tiny_dataset(held_out_rows=6, sources=3).fingerprint()
    assert dataset.fingerprint() != tiny_dataset().fingerprint()
    assert tiny_dataset().held_out() is None
