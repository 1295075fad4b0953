"""FlagEmbedding rows: what is accepted, what is refused and how, and what is drawn from them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embed_core.datasets.row import Row, parse_row
from embed_core.datasets.sampling import DrawOptions, draw_example
from embed_core.errors import DataError

PLACE = "data/train.jsonl:7"
GOOD = {"query": "what?", "pos": ["that"]}


def test_a_full_row():
    row = parse_row(
        {
            "query": "q", "pos": ["a", "b"], "neg": ["c"], "pos_scores": [1, 0.5], "neg_scores": [-2.5],
            "prompt": "Find: ", "type": "only_1neg", "doc_id": ["x", "y"], "answers": ["extra"], "lang": "de",
        },
        PLACE,
    )  # fmt: skip
    assert row == Row(
        "q", ("a", "b"), ("c",), (1.0, 0.5), (-2.5,), "Find: ", "only_1neg", ("x", "y"), None, PLACE,
    )  # fmt: skip


def test_nulls_are_absent_fields():
    nulls = dict.fromkeys(["neg", "pos_scores", "neg_scores", "prompt", "type", "doc_id"])
    assert parse_row(GOOD | nulls, PLACE) == parse_row(GOOD, PLACE) == Row("what?", ("that",), place=PLACE)


@pytest.mark.parametrize(
    ("extra", "keys"),
    [
        ({"doc_id": "d1"}, ("d1",)),
        ({"doc_id": 5}, ("5",)),
        ({"doc_id": ["d1"]}, ("d1",)),
        ({"doc_id": ["d1", "d2"]}, None),
        ({"doc_id": {"some": "thing"}}, None),
    ],
)
def test_doc_id_is_the_positives_key_where_it_fits(extra, keys):
    assert parse_row(GOOD | extra, PLACE).pos_keys == keys


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": None}, "no `query`: a row has `query` and `pos`, this one has `query`, `pos`"),
        ({"query": 3}, "`query` must be a string, found the number 3"),
        ({"query": " "}, "`query` is empty: remove the row"),
        ({"pos": None}, "no `pos`: a row has `query` and `pos`, this one has `query`, `pos`"),
        ({"pos": None, "positive": ["x"]}, "no `pos`: rename `positive` to `pos`"),
        ({"pos": "that"}, "`pos` must be a list of strings, found the string 'that': write [\"…\"]"),
        ({"pos": {"a": 1}}, "`pos` must be a list of strings, found an object"),
        ({"pos": []}, "`pos` is an empty list: a row needs at least one positive text"),
        ({"pos": [""]}, "`pos` holds an empty text: remove it, or the row"),
        ({"pos": ["a", 1]}, "`pos[1]` must be a string, found the number 1"),
        ({"neg": "other"}, "`neg` must be a list of strings, found the string 'other': write [\"…\"]"),
        ({"neg": [None]}, "`neg[0]` must be a string, found null"),
        ({"neg": [["x"]]}, "`neg[0]` must be a string, found a list"),
        ({"pos_scores": 1.0}, "`pos_scores` must be a list of numbers, found the number 1.0"),
        ({"pos_scores": ["1"]}, "`pos_scores[0]` must be a finite number, found the string '1'"),
        ({"pos_scores": [True]}, "`pos_scores[0]` must be a finite number, found true"),
        ({"pos_scores": [float("nan")]}, "`pos_scores[0]` must be a finite number, found the number nan"),
        ({"pos_scores": [1, 2]}, "`pos_scores` has length 2, `pos` has 1: one score per text is due"),
        ({"neg": ["x"], "neg_scores": [1]}, "`neg_scores` without `pos_scores`: a teacher scores both, or neither"),
        ({"neg": ["x"], "pos_scores": [1]}, "`pos_scores` without `neg_scores`: a teacher scores both, or neither"),
        (
            {"neg": ["x"], "pos_scores": [1], "neg_scores": []},
            "`neg_scores` has length 0, `neg` has 1: one score per text is due",
        ),
        ({"prompt": ["x"]}, "`prompt` must be a string, found a list"),
        ({"type": 3}, "`type` must be a string, found the number 3"),
        ({"type": "symetric_sts"}, "unknown `type` 'symetric_sts': did you mean 'symmetric_sts'?"),
        (
            {"type": "zzz"},
            "unknown `type` 'zzz': one of: normal, only_1neg, symmetric_class, symmetric_clustering, symmetric_sts",
        ),
    ],
)
def test_a_bad_row_is_one_clear_line(change, message):
    with pytest.raises(DataError) as caught:
        parse_row(GOOD | change, PLACE)
    assert str(caught.value) == f"{PLACE}: {message}"


def test_a_row_of_other_columns_is_told_what_is_due():
    with pytest.raises(DataError) as caught:
        parse_row({"anchor": "a", "positive": "b"}, PLACE)
    assert str(caught.value) == f"{PLACE}: no `query`: rename `anchor` to `query`"
    with pytest.raises(DataError, match=r"this one has no keys$"):
        parse_row({}, PLACE)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(
    pos=st.integers(1, 4),
    neg=st.integers(0, 9),
    wanted=st.integers(0, 12),
    scored=st.booleans(),
    seed=st.integers(0, 99),
)
def test_what_is_drawn(pos, neg, wanted, scored, seed):
    row = Row(
        "q",
        tuple(f"p{n}" for n in range(pos)),
        tuple(f"n{n}" for n in range(neg)),
        tuple(map(float, range(pos))) if scored else None,
        tuple(100.0 + n for n in range(neg)) if scored else None,
        pos_keys=tuple(f"kp{n}" for n in range(pos)),
        neg_keys=tuple(f"kn{n}" for n in range(neg)),
        place=PLACE,
    )
    example = draw_example(row, 5, "src", DrawOptions(wanted), rng(seed))
    assert (example.row, example.query, example.source, example.place) == (5, "q", "src", PLACE)
    assert example == draw_example(row, 5, "src", DrawOptions(wanted), rng(seed))
    first, *others = example.passages
    assert first in row.pos
    assert len(others) == (wanted if neg else 0)
    counts = [Counter(others)[text] for text in row.neg]
    assert sum(counts) == len(others)
    assert not neg or max(counts) - min(counts) <= 1
    assert example.positives == row.pos
    assert example.positive_keys == row.pos_keys
    assert example.passage_keys == tuple("k" + text for text in example.passages)
    expected = tuple(float(t[1:]) + (100 if t[0] == "n" else 0) for t in example.passages)
    assert example.scores == (expected if scored else None)


def test_positives_and_negatives_are_drawn_evenly():
    row = Row("q", ("a", "b"), ("c", "d", "e"))
    generator = rng()
    drawn = [draw_example(row, 0, "", DrawOptions(1), generator).passages for _ in range(3000)]
    assert 1350 < Counter(p for p, _ in drawn)["a"] < 1650
    assert all(900 < count < 1100 for count in Counter(n for _, n in drawn).values())
    assert len(Counter(drawn)) == 6


@pytest.mark.parametrize(
    ("kind", "wanted", "expected"),
    [
        ("normal", 5, 5),
        ("only_1neg", 5, 1),
        ("symmetric_sts", 5, 5),
        ("symmetric_class", 5, 2),
        ("symmetric_class", 1, 1),
    ],
)
def test_type_sets_the_group(kind, wanted, expected):
    row = Row("q", ("p",), ("m", "n"), type=kind)
    assert len(draw_example(row, 0, "", DrawOptions(wanted), rng()).passages) == 1 + expected


@pytest.mark.parametrize(
    ("kind", "prompt", "expected"),
    [
        ("normal", None, ("Q: ", "P: ")),
        ("only_1neg", None, ("Q: ", "P: ")),
        ("normal", "R: ", ("R: ", "P: ")),
        ("normal", "", ("", "P: ")),
        ("symmetric_class", None, ("Q: ", "Q: ")),
        ("symmetric_sts", "R: ", ("R: ", "R: ")),
        ("symmetric_clustering", None, ("Q: ", "Q: ")),
    ],
)
def test_type_and_prompt_set_the_prompts(kind, prompt, expected):
    row = Row("q", ("p",), prompt=prompt, type=kind)
    example = draw_example(row, 0, "", DrawOptions(1, "Q: ", "P: "), rng())
    assert (example.query_prompt, example.passage_prompt) == expected


def test_without_prompts_the_models_own_apply():
    example = draw_example(Row("q", ("p",)), 0, "", DrawOptions(), rng())
    assert (example.query_prompt, example.passage_prompt, example.passage_keys, example.scores) == (None,) * 4
