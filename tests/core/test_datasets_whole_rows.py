"""Datasets that show whole rows, and rows changed on the way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embed_core.datasets.retrieval import RetrievalDataset
from embed_core.datasets.row import Row
from embed_core.datasets.sampling import DrawOptions
from embed_core.datasets.sources.jsonl import JsonlRows
from embed_core.datasets.wrappers import ChangedRows, with_rows
from embed_core.errors import ConfigError
from embed_core.samplers.no_duplicates import NoDuplicatesSampler
from embed_core.testing import tiny_dataset
from embed_core.types import Example

ROWS = [
    {"query": f"q{n}", "pos": [f"p{n}"], "neg": [f"n{n}.{k}" for k in range(4)], "prompt": f"P{n}"} for n in range(6)
]


class LastNegatives(ChangedRows):
    """Keeps the last two."""

    def row(self, row: int) -> Row:
        whole = self.inner.row(row)
        return replace(whole, neg=whole.neg[-2:])

    def fingerprint(self) -> str:
        return self.inner.fingerprint() + "-last"


@pytest.fixture
def dataset(tmp_path: Path) -> RetrievalDataset:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    source = JsonlRows(path, cache=tmp_path / "cache")
    options = DrawOptions(4, passage_prompt="D: ")
    return RetrievalDataset("rows", [source], options, lambda line: None, 2, cache=tmp_path / "cache")


def test_a_whole_row_is_that_of_the_training_rows(dataset: RetrievalDataset) -> None:
    rng = np.random.default_rng(0)
    for number in range(len(dataset)):
        whole, drawn = dataset.row(number), dataset.example(number, rng)
        assert (whole.query, set(whole.neg)) == (drawn.query, set(drawn.passages[1:]))
    held_out = dataset.held_out()
    assert held_out is not None
    assert not {dataset.row(number).query for number in range(len(dataset))} & set(held_out.queries.values())


def test_only_the_negatives_change(dataset: RetrievalDataset) -> None:
    changed = LastNegatives(dataset, 2)
    for number in range(len(dataset)):
        given = dataset.example(number, np.random.default_rng(1))
        drawn = changed.example(number, np.random.default_rng(1))
        assert set(drawn.passages[1:]) == set(dataset.row(number).neg[-2:])
        assert replace(drawn, passages=given.passages) == given
        assert drawn.query_prompt == f"P{drawn.query[1:]}"
        assert drawn.passage_prompt == "D: "
    assert [text for text in changed.texts() if text[0] == "n"] == [
        f"n{dataset.row(row).query[1:]}.{k}" for row in range(len(dataset)) for k in (2, 3)
    ]
    assert changed.held_out() is dataset.held_out()
    sampler = NoDuplicatesSampler(changed, 0, 2, lambda line: None)
    assert sorted(row for draw in range(2) for row in sampler.batch(draw)) == [0, 1, 2, 3]


def test_what_the_inner_dataset_adds_is_added() -> None:
    class Completing:
        inner = None
        name = "completing"

        def complete(self, examples: Sequence[Example]) -> list[Example]:
            return [replace(example, source="completed") for example in examples]

    examples = [Example(0, "q", ("p",))]
    inner: Any = Completing()
    assert LastNegatives(inner, 1).complete(examples)[0].source == "completed"
    bare: Any = tiny_dataset()
    assert LastNegatives(bare, 1).complete(examples) == examples


def test_rows_are_those_inside_what_only_adds(dataset: RetrievalDataset) -> None:
    class Adds:
        name = "adds"

        def __init__(self, inner: Any) -> None:
            self.inner = inner

    adds: Any = Adds(Adds(dataset))
    assert with_rows(adds, "banded") is dataset
    with pytest.raises(ConfigError) as caught:
        with_rows(tiny_dataset(), "banded")
    assert str(caught.value) == (
        "banded: dataset 'animals' draws examples but does not show its rows (RowsDataset has no `row`): use rows of a "
        "file (kind file or retrieval)"
    )
