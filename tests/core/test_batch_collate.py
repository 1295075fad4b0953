"""A rank's share: contiguous, even, drawn independently of the ranks; each distinct text once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embed_core.batch.collate import draw_examples, make_host_batch, share_of_rank
from embed_core.errors import DataError
from embed_core.testing.datasets import tiny_dataset
from embed_core.testing.tiny import TinyModel
from embed_core.types import Example
from embed_core.utils.hashing import identity, key_identity


@given(st.integers(1, 300), st.data())
def test_shares_are_a_partition_as_even_as_can_be(rows: int, data: st.DataObject) -> None:
    ranks = data.draw(st.integers(1, rows))
    parts = [share_of_rank(range(100, 100 + rows), rank, ranks) for rank in range(ranks)]
    assert [row for part in parts for row in part] == list(range(100, 100 + rows))
    sizes = {len(part) for part in parts}
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


def test_what_a_row_draws_depends_on_neither_order_nor_neighbours() -> None:
    class Random:
        def example(self, row: int, rng: np.random.Generator) -> int:
            return int(rng.integers(1 << 40))

    together = draw_examples(Random(), [5, 9, 7], 1, 3)  # type: ignore[arg-type]
    assert draw_examples(Random(), [7, 5], 1, 3) == [together[2], together[0]]  # type: ignore[arg-type]
    assert len(set(together)) == 3
    assert draw_examples(Random(), [5], 1, 4) != together[:1]  # type: ignore[arg-type]
    assert draw_examples(Random(), [5], 2, 3) != together[:1]  # type: ignore[arg-type]


def example(row: int, query: str, *passages: str, **more: object) -> Example:
    return Example(row, query, passages, place=f"f:{row}", **more)  # type: ignore[arg-type]


def test_columns_by_hand() -> None:
    host = make_host_batch(
        TinyModel(),
        [
            example(4, "a", "p", "a", scores=(2.0, 1.0), passage_keys=("k", None), positives=("p", "r")),
            example(9, "b", "p", positive_keys=("k",)),
        ],
    )
    texts = [item.data["input_ids"] for item in host.encoded]
    wanted = [item.data["input_ids"] for item in TinyModel().tokenize(["a", "b", "p"], "query", [None] * 3)]
    assert texts == wanted, "'a' is query and passage, 'p' a passage twice: three distinct texts"
    assert host.query_index.tolist() == [0, 1]
    assert host.passage_index.tolist() == [2, 0, 2]
    assert host.group_sizes.tolist() == [2, 1]
    assert host.row_ids.tolist() == [4, 9]
    assert host.passage_ids.tolist() == [identity("p"), identity("a"), identity("p")]
    assert host.query_ids.tolist() == [identity("a"), identity("b")]
    assert host.passage_keys.tolist() == [key_identity("k"), 0, 0]
    assert host.positive_counts.tolist() == [2, 2]
    assert set(host.positives[:2].tolist()) == {identity("p"), identity("r")}
    assert set(host.positives[2:].tolist()) == {identity("p"), key_identity("k")}
    assert host.scores[:2].tolist() == [2.0, 1.0]
    assert np.isnan(host.scores[2])
    assert (host.rows, host.tokens) == (2, 3)


def test_prompts_make_texts_distinct() -> None:
    host = make_host_batch(TinyModel(), [example(0, "a", "a", query_prompt="ask ")])
    assert len(host.encoded) == 2


def test_without_deduplication_each_occurrence_is_encoded() -> None:
    examples = [example(0, "a", "p"), example(1, "a", "p")]
    assert len(make_host_batch(TinyModel(), examples, deduplicate=False).encoded) == 4
    assert len(make_host_batch(TinyModel(), examples).encoded) == 2


def test_identities_of_keys_and_texts_do_not_meet() -> None:
    assert key_identity("x") != identity("x")
    assert key_identity(None) == 0
    assert identity("") != 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"passages": ()}, "f:3: row 3 has no passage"),
        ({"scores": (1.0,)}, "f:3: row 3 has 1 scores for 2 passages"),
        ({"passage_keys": ("k",)}, "f:3: row 3 has 1 passage_keys for 2 passages"),
    ],
)
def test_rows_that_do_not_fit_are_refused(more: dict[str, object], message: str) -> None:
    row = Example(**{"row": 3, "query": "q", "passages": ("p", "n"), "place": "f:3", **more})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        make_host_batch(TinyModel(), [row])


def test_a_draw_of_the_dataset_is_prepared_alike_on_any_rank() -> None:
    dataset = tiny_dataset()
    whole = make_host_batch(TinyModel(), draw_examples(dataset, range(8), 0, 0))
    half = make_host_batch(TinyModel(), draw_examples(dataset, range(4, 8), 0, 0))
    assert half.passage_ids.tolist() == whole.passage_ids.tolist()[-len(half.passage_ids) :]


def vectors(*rows: float) -> np.ndarray:
    return np.array([[row, row + 0.5] for row in rows], dtype=np.float32)


def test_teacher_vectors_stand_in_the_order_of_the_texts() -> None:
    host = make_host_batch(
        TinyModel(),
        [
            example(4, "a", "p", "q", query_vector=vectors(1)[0], passage_vectors=vectors(2, 3)),
            example(9, "a", "p", query_vector=vectors(4)[0], passage_vectors=vectors(5)),
        ],
    )
    assert host.teacher is not None
    assert host.teacher.dtype == np.float32
    assert host.teacher.tolist() == vectors(1, 4, 2, 3, 5).tolist(), "equal texts are not merged: roles differ"
    assert make_host_batch(TinyModel(), [example(4, "a", "p")]).teacher is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "f:7: row 7 has no teacher vectors, its batch has one of width 2 per query and passage: every row needs"),
        ({"query_vector": vectors(1)[0]}, "row 7 has no teacher vectors"),
        (
            {"query_vector": vectors(1)[0], "passage_vectors": vectors(1, 2)},
            r"f:7: row 7 has teacher vectors of the shapes \(2,\) and \(2, 2\)",
        ),
        (
            {"query_vector": np.ones(3, np.float32), "passage_vectors": np.ones((1, 3), np.float32)},
            r"teacher vectors of the shapes \(3,\) and \(1, 3\)",
        ),
    ],
)
def test_rows_have_teacher_vectors_alike(given: dict[str, object], message: str) -> None:
    first = example(4, "a", "p", query_vector=vectors(1)[0], passage_vectors=vectors(2))
    with pytest.raises(DataError, match=message):
        make_host_batch(TinyModel(), [first, example(7, "b", "q", **given)])
