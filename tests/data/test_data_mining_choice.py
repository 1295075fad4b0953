"""What may be a negative, and which of those that may are taken."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embed_data.mining.corpus.collection import Collection, Document
from embed_data.mining.corpus.rows import rows_in_place
from embed_data.mining.rank.judges import Ranked
from embed_data.mining.select.choose import ceiling, choose, window
from embed_data.mining.select.screen import Screen, holds_answer, overlaps, plain

LONG = "the treaty was signed on a cold morning in march by both delegations"


def holds(text: str, answer: str, title: str = "") -> bool:
    whole = f"{title} {text}" if title else text
    return holds_answer(Document(None, whole, len(whole) - len(text)), plain(text), answer)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The capital was Nara then.", "Nara"),
        ("THE CAPITAL WAS NARA THEN.", "nara"),
        ("8世紀の奈良 県は", "奈良県"),  # blanks mean nothing there
        ("高さ15メートル", "１５メートル"),
        ("from 1914–1918 on", "1914-1918"),
        ("he said “no” again", '"no"'),
        ("born in   New\nYork", "New York"),
        ("e\u0301a", "e"),  # to the letter, though not normalised
        (f"so it was. {LONG[:40]}", LONG),  # the chunk ends inside the answer
        (f"{LONG[30:]} and so on", LONG),
        (f"By both delegations: {LONG[:50]}, they say.", LONG),  # most of a long answer
    ],
)
def test_texts_that_hold_the_answer(text: str, answer: str) -> None:
    assert holds(text, answer)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The capital was Kyoto then.", "Nara"),
        ("born in Yorkshire, a new county", "New York"),
        ("大阪府", "奈良県"),
        (f"something else entirely. {LONG[:8]}", LONG),
    ],
)
def test_texts_that_do_not(text: str, answer: str) -> None:
    assert not holds(text, answer)


def test_an_answer_in_the_title_counts() -> None:
    assert holds("It has no coast.", "Nara", title="Nara")


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30), st.text(min_size=1, max_size=8), st.text(max_size=30))
def test_an_answer_to_the_letter_is_always_found(before: str, answer: str, after: str) -> None:
    if answer.strip():
        assert holds(before + answer + after, answer)


def test_what_overlaps() -> None:
    chunk = "one two three four five six seven eight nine ten eleven twelve"
    follows = "eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    for first, second in ((chunk, chunk), (chunk, chunk[10:40]), (chunk, f"before {chunk} after"), (chunk, follows)):
        assert overlaps(first, second, 0.5)
        assert overlaps(second, first, 0.5)
    edited = chunk.replace("six", "6").replace("ten", "10")
    assert overlaps(chunk, edited, 0.3)
    assert not overlaps(chunk, edited, 0.9)
    assert not overlaps(chunk, "an altogether different sentence about one of the seven seas", 0.5)


@pytest.fixture
def screened(tmp_path: Path) -> Any:
    """A screen over eight documents; two rows ask the same, each with its own positive."""
    body = "the wall was built of grey stone by masons from the north in nine summers"
    documents = [
        {"_id": "p0", "title": "Walls", "text": body},
        {
            "_id": "p1",
            "title": "Walls",
            "text": "an earlier wall of timber stood on the same hill until it burned down",
        },
        {"_id": "near", "title": "Copy", "text": body.replace("masons", "people")},
        {"_id": "q", "title": "", "text": "Who built the wall?"},
        {"_id": "answer", "title": "Rivers", "text": "boats were towed by masons now and then"},
        {"_id": "good", "title": "Walls", "text": "fences are lower, and keep in what is yours"},
        {"_id": "same", "title": "Walls", "text": "Fences are lower, and keep in what is yours"},
        {"_id": "other", "title": "Walls", "text": "hedges grow slowly and have to be cut twice a year"},
    ]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    rows = [
        {"query": "Who built the wall?", "pos": [body], "answers": ["masons"], "doc_id": "p0"},
        {"query": "Who built the wall?", "pos": ["by id"], "answers": ["masons"], "doc_id": ["p1"]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    read = rows_in_place(tmp_path / "rows.jsonl")
    found = Collection(read, tmp_path / "corpus.jsonl")
    return SimpleNamespace(rows=read, collection=found, screen=Screen(found, 0.5))


def test_reasons(screened: Any) -> None:
    forbidden = screened.screen.forbidden(0, screened.rows[0])
    reasons = [screened.screen.reason(n, forbidden, [5]) for n in range(8)]
    # p1 is a positive of the other row that asks the same; a shared title is no overlap.
    assert reasons == ["positive", "positive", "overlap", "query", "answer", "repeat", "repeat", None]
    assert screened.screen.reason(5, forbidden, []) is None


def test_positives_are_found_by_id_and_by_text(screened: Any) -> None:
    assert [list(screened.collection.positives(n)) for n in (0, 1)] == [[0], [1]]
    assert len(screened.collection) == 8, "no positive had to be added"


@pytest.mark.parametrize(
    ("positives", "absolute", "relative", "expected"),
    [
        ([0.8], None, None, float("inf")),
        ([0.8, 0.6], 0.0, None, 0.6),
        ([0.8, 0.6], 0.1, None, 0.5),
        ([0.8], None, 0.05, 0.76),
        ([-2.0], None, 0.05, -2.1),  # below, not above
        ([0.8], 0.1, 0.5, 0.4),  # both hold
        ([0.8], 0.5, 0.1, 0.3),
    ],
)
def test_ceiling(positives: list[float], absolute: float | None, relative: float | None, expected: float) -> None:
    assert ceiling(positives, absolute, relative) == pytest.approx(expected)


def test_window_counts_without_the_known_positives() -> None:
    ranked = Ranked([4, 9, 2, 7, 5], [5.0, 4.0, 3.0, 2.0, 1.0])
    assert window(ranked, frozenset({9, 1}), 1, 2) == [(4, 5.0), (2, 3.0)]
    assert window(ranked, frozenset({9, 1}), 3, 99) == [(7, 2.0), (5, 1.0)]


def request(**changes: Any) -> Any:
    return SimpleNamespace(**{"draw": "top", "negatives": 3, "seed": 1, **changes})


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.floats(-5, 5)), max_size=30, unique_by=lambda pair: pair[0]),
    st.floats(-5, 5),
    st.integers(1, 6),
    st.sampled_from(["top", "sample"]),
)
def test_whatever_is_chosen_qualifies(
    candidates: list[tuple[int, float]], limit: float, negatives: int, draw: str
) -> None:
    odd = lambda n, chosen: "odd" if n % 2 else None  # noqa: E731
    asked = request(draw=draw, negatives=negatives)
    chosen = choose(candidates, limit, odd, asked, 5)
    may = [(n, score) for n, score in candidates if score <= limit and n % 2 == 0]
    found = list(zip(chosen.documents, chosen.scores, strict=True))
    assert len(found) == min(negatives, len(may))
    assert [pair for pair in may if pair in found] == found, "in the order of the ranking"
    if draw == "top":
        assert found == may[:negatives]
    assert choose(candidates, limit, odd, asked, 5) == chosen, "a function of seed and row"


def test_samples_differ_by_row_and_seed_and_spread() -> None:
    candidates = [(n, 1.0) for n in range(20)]
    free = lambda n, chosen: None  # noqa: E731
    drawn = [tuple(choose(candidates, 9.0, free, request(draw="sample", seed=s), row).documents)
             for s in (1, 2) for row in range(100)]  # fmt: skip
    assert len(set(drawn)) > 150
    assert {n for row in drawn for n in row} == set(range(20))


def test_refusals_are_counted_as_far_as_one_looked() -> None:
    reason = lambda n, chosen: "answer" if n == 2 else None  # noqa: E731
    chosen = choose([(1, 9.0), (2, 3.0), (3, 2.0), (4, 1.0), (5, 0.5), (6, 0.1)], 5.0, reason, request(), 0)
    assert chosen.documents == [3, 4, 5]
    assert chosen.refused == {"margin": 1, "answer": 1}
