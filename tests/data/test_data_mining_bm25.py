"""Terms in every script, and BM25 against the formula written out."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embed_core.errors import ConfigError
from embed_data.mining.corpus.collection import Collection
from embed_data.mining.corpus.rows import rows_in_place
from embed_data.mining.output.progress import Progress
from embed_data.mining.rank import bm25
from embed_data.mining.rank.bm25 import Bm25, build_index
from embed_data.mining.rank.tokens import normalised, terms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Cat's hat, 3.5!", ["the", "cat", "s", "hat", "3", "5"]),
        ("東大寺の仏像", ["東大", "大寺", "寺の", "の仏", "仏像"]),
        ("高さ15メートル", ["高さ", "15", "メー", "ート", "トル"]),
        ("ﾒｰﾄﾙ １５", ["メー", "ート", "トル", "15"]),  # half and full width read the same
        ("人", ["人"]),
        ("中国的首都。北京", ["中国", "国的", "的首", "首都", "北京"]),
        ("한국 사람", ["한국", "사람"]),
        ("ที่นี่", ["ที่", "ี่น", "่นี", "นี่"]),  # marks are letters too
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("…!? 😀", []),
    ],
)
def test_terms(text: str, expected: list[str]) -> None:
    assert terms(text) == expected


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_terms_lose_no_letter_and_no_number(text: str) -> None:
    kept = {c for c in normalised(text) if c.isalpha() or c.isdecimal()}
    assert kept <= set("".join(terms(text)))


def collection(folder: Path, documents: list[str], queries: list[str]) -> tuple[Any, Collection]:
    """``documents`` as a corpus; the positive of every query is outside it."""
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    rows = [{"query": query, "pos": [f"positive zebra {query}"]} for query in queries]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = rows_in_place(folder / "rows.jsonl")
    return read, Collection(read, folder / "corpus.jsonl")


def scores_by_hand(query: str, texts: list[str], k1: float = 1.2, b: float = 0.75) -> list[float]:
    """Lucene's BM25: ln(1 + (N − n + ½)/(n + ½)) · f / (f + k1 · (1 − b + b · length / mean length)), summed."""
    counts = [Counter(terms(text)) for text in texts]
    lengths = [sum(count.values()) for count in counts]
    mean = sum(lengths) / len(texts)
    scores = []
    for count, length in zip(counts, lengths, strict=True):
        total = 0.0
        for term in terms(query):
            n = sum(term in other for other in counts)
            idf = math.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
            total += idf * count[term] / (count[term] + k1 * (1 - b + b * length / mean)) if n else 0.0
        scores.append(total)
    return scores


def test_scores_are_the_formula_s_and_the_order_is_total(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = [f"w{n}" for n in range(30)] + ["東京都", "大阪府"]
    documents = [" ".join(rng.choice(words, size=int(rng.integers(1, 12)))) for _ in range(60)]
    documents[7] = documents[41] = documents[3]  # ties
    queries = [" ".join(rng.choice(words, size=4)) for _ in range(8)] + ["nothing known", "京都"]
    rows, found = collection(tmp_path, documents, queries)
    build_index(found, tmp_path, Progress(shown=False))
    model = Bm25(rows, found, tmp_path)
    for number, query in enumerate(queries):
        everything = scores_by_hand(query, [document.text for document in map(found.document, range(len(found)))])
        expected = everything[: len(documents)]
        order = sorted((n for n in range(60) if expected[n] > 0), key=lambda n: (-np.float32(expected[n]), n))
        for depth in (1, 5, 1000):
            (ranked,) = model.search([number], depth)
            assert len(ranked.documents) == min(depth, len(order))
            assert ranked.scores == pytest.approx([expected[n] for n in ranked.documents], rel=1e-5)
            assert ranked.scores == sorted(ranked.scores, reverse=True)
            for (a, x), (b, y) in zip(*(list(zip(*ranked, strict=True))[i:] for i in (0, 1)), strict=False):
                assert x > y or a < b, "equal scores come in the order of the corpus"
        assert model.search([number], 5)[0].documents == model.search([number], 50)[0].documents[:5]
        (pairs,) = model.pairs([number], [[59, 60, 0]])
        assert pairs == pytest.approx([everything[59], everything[60], everything[0]], rel=1e-5)


def test_positives_outside_the_corpus_are_scored_and_never_found(tmp_path: Path) -> None:
    rows, found = collection(tmp_path, ["a zebra", "a lion"], ["zebra"])
    build_index(found, tmp_path, Progress(shown=False))
    model = Bm25(rows, found, tmp_path)
    assert (len(found), found.minable) == (3, 2)
    assert model.search([0], 10)[0].documents == [0]
    assert model.pairs([0], [found.positives(0)])[0][0] > 0


def test_an_index_that_is_there_is_kept(tmp_path: Path) -> None:
    _, found = collection(tmp_path, ["a zebra", "a lion"], ["zebra"])
    build_index(found, tmp_path, Progress(shown=False))
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / bm25.FOLDER).iterdir()}
    build_index(found, tmp_path, Progress(shown=False))
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / bm25.FOLDER).iterdir()}


def test_nothing_to_index(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"query": "?", "pos": ["!!!"]}))
    found = Collection(rows_in_place(tmp_path / "rows.jsonl"), None)
    with pytest.raises(ConfigError, match="no document holds a letter or a number"):
        build_index(found, tmp_path, Progress(shown=False))


def test_without_bm25s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bm25s", None)
    _, found = collection(tmp_path, ["a zebra"], ["zebra"])
    with pytest.raises(ConfigError, match=r"--by bm25 needs bm25s.*pip install 'embed-data\[mine\]'"):
        build_index(found, tmp_path, Progress(shown=False))
