"""The `retrieval` dataset kind: paths, sources, held-out rows, limits, fingerprints."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embed_core.config.component import DatasetConfig
from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.datasets.config import RetrievalConfig
from embed_core.datasets.split import choose_held_out
from embed_core.errors import ConfigError, DataError
from embed_core.protocols import Dataset

REAL = Path(os.environ.get("EMBED_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def row(n: int, **extra) -> dict:
    return {"query": f"query {n}", "pos": [f"passage {n}"], "neg": [f"other {n}"]} | extra


def build(path: Path, **options) -> tuple[Dataset, list[str]]:
    said: list[str] = []
    config = RetrievalConfig(path=str(path), **options)
    assert isinstance(config, DatasetConfig)
    return config.build(BuildContext(Registry(), announce=said.append)), said


def queries(dataset: Dataset) -> list[str]:
    return [dataset.example(n, np.random.default_rng(0)).query for n in range(len(dataset))]


def test_one_file(tmp_path):
    dataset, said = build(write(tmp_path / "nq.jsonl", [row(n) for n in range(5)]), negatives=1)
    assert isinstance(dataset, Dataset)
    assert (len(dataset), dataset.name, dataset.source(3), dataset.held_out()) == (5, "nq.jsonl", "nq", None)
    example = dataset.example(2, np.random.default_rng(0))
    assert (example.row, example.query, example.passages) == (2, "query 2", ("passage 2", "other 2"))
    assert (example.source, example.place) == ("nq", f"{tmp_path}/nq.jsonl:3")
    assert said == ["data: nq.jsonl, FlagEmbedding JSONL: 5 training rows"]


def test_a_folder_is_a_source_per_file(tmp_path):
    write(tmp_path / "b.jsonl", [row(n) for n in range(3)])
    write(tmp_path / "a.json", [row(n) for n in range(10, 12)])
    (tmp_path / "README.md").write_text("no data")
    dataset, said = build(tmp_path)
    assert [dataset.source(n) for n in range(5)] == ["a", "a", "b", "b", "b"]
    assert queries(dataset) == ["query 10", "query 11", "query 0", "query 1", "query 2"]
    assert said[0].endswith("5 training rows from 2 sources")


def test_a_beir_folder(tmp_path):
    write(tmp_path / "corpus.jsonl", [{"_id": f"d{n}", "text": f"t{n}"} for n in range(3)])
    write(tmp_path / "queries.jsonl", [{"_id": f"q{n}", "text": f"u{n}"} for n in range(3)])
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "dev.tsv").write_text("q0\td0\t1\nq0\td1\t0\nq2\td2\t1\n")
    dataset, said = build(tmp_path, split="dev")
    assert queries(dataset) == ["u0", "u2"]
    assert dataset.example(0, np.random.default_rng(0)).passage_keys == ("d0", *["d1"] * 7)
    assert dataset.source(1) == tmp_path.name
    assert said == [f"data: {tmp_path.name}, BEIR folder, split dev: 2 training rows"]
    with pytest.raises(DataError, match=r"qrels: no split 'test': one of: dev$"):
        build(tmp_path, split="test")


def test_bad_paths(tmp_path):
    file = write(tmp_path / "train.jsonl", [row(0)])
    with pytest.raises(DataError, match=r"tarin.jsonl: no such file or folder: did you mean 'train.jsonl'\?$"):
        build(tmp_path / "tarin.jsonl")
    with pytest.raises(ConfigError, match=r"^split 'test': .*train.jsonl is no BEIR folder and has no splits: remove"):
        build(file, split="test")
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"x.csv: a data file is .jsonl or .json, not '.csv': convert it"):
        build(tmp_path / "x.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no .jsonl file and no BEIR folder \(.*\): it has nothing$"):
        build(tmp_path / "empty")
    (tmp_path / "empty" / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"it has notes.txt$"):
        build(tmp_path / "empty")
    write(tmp_path / "empty" / "corpus.jsonl", [{}])
    write(tmp_path / "empty" / "queries.jsonl", [{}])
    with pytest.raises(DataError, match=r"empty: no qrels: a BEIR folder has corpus.jsonl, queries.jsonl and qrels"):
        build(tmp_path / "empty")


def test_every_row_is_checked_at_the_start(tmp_path):
    path = write(tmp_path / "train.jsonl", [row(0), row(1), row(2, pos="text")])
    with pytest.raises(DataError, match=r"train.jsonl:3: `pos` must be a list of strings, found the string 'text'"):
        build(path)


def test_a_symmetric_row_without_prompt_is_announced(tmp_path):
    path = write(tmp_path / "sts.jsonl", [row(0), row(1, type="symmetric_sts"), row(2, type="symmetric_sts")])
    _, said = build(path)
    assert len(said) == 2
    assert said[1].startswith(f"{path}:2: type symmetric_sts puts the query's prompt on the passages, but neither")
    dataset, said = build(path, query_prompt="Same: ", passage_prompt="Doc: ")
    assert len(said) == 1
    assert dataset.example(0, np.random.default_rng(0)).passage_prompt == "Doc: "
    assert dataset.example(1, np.random.default_rng(0)).passage_prompt == "Same: "


def test_identities_are_shared_exactly_where_texts_or_keys_are(tmp_path):
    rows = [
        {"query": "a", "pos": ["b", "c"]},
        {"query": "d", "pos": ["c"], "neg": ["b"]},
        {"query": "e", "pos": ["f"], "neg": ["c", "a"]},
        {"query": "b", "pos": ["g"], "doc_id": "k"},
        {"query": "k", "pos": ["h"], "doc_id": "k"},
        {"query": "x", "pos": ["k"]},
    ]
    dataset, _ = build(write(tmp_path / "t.jsonl", rows))
    sets = [set(dataset.identities(n)) for n in range(len(rows))]
    shared = {(i, j) for i in range(len(rows)) for j in range(i) if sets[i] & sets[j]}
    assert shared == {(1, 0), (3, 0), (4, 3), (5, 4)}


def test_texts_are_those_of_the_training_rows_once_each(tmp_path):
    rows = [row(n, neg=["same"]) for n in range(40)]
    dataset, _ = build(write(tmp_path / "t.jsonl", rows), held_out_rows=10)
    texts = list(dataset.texts())
    assert len(texts) == len(set(texts)) == 2 * 30 + 1
    held = dataset.held_out()
    assert held is not None
    assert set(texts).isdisjoint(held.queries.values())


def test_limit_is_spread_evenly_and_leaves_the_evaluation_alone(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", [row(n, query=f"{name}{n}", pos=[f"p{name}{n}"]) for n in range(50)])
    whole, _ = build(tmp_path, held_out_rows=20)
    some, _ = build(tmp_path, held_out_rows=20, limit=8)
    assert len(some) == 8
    assert set(queries(some)) < set(queries(whole))
    assert sum(some.source(n) == "a" for n in range(8)) in (3, 4, 5)
    assert some.held_out() == whole.held_out()
    assert some.fingerprint() != whole.fingerprint()


def test_the_fingerprint_is_of_content_and_rows(tmp_path):
    path = write(tmp_path / "t.jsonl", [row(n) for n in range(9)])
    first = build(path)[0].fingerprint()
    assert build(path, negatives=3)[0].fingerprint() == first
    assert build(path, held_out_rows=2)[0].fingerprint() != first
    write(path, [row(n) for n in range(8)] + [row(8, neg=["changed"])])
    assert build(path)[0].fingerprint() != first


TEXTS = st.integers(0, 30).map(str)
ROWS = st.lists(
    st.fixed_dictionaries(
        {"query": TEXTS, "pos": st.lists(TEXTS, min_size=1, max_size=2)},
        optional={"neg": st.lists(TEXTS, max_size=2)},
    ),
    min_size=2,
    max_size=30,
)


@settings(deadline=None)
@given(ROWS, st.integers(1, 10))
def test_held_out_shares_nothing_with_training(tmp_path_factory, rows, wanted):
    path = write(tmp_path_factory.mktemp("held") / "t.jsonl", rows)
    try:
        dataset, _ = build(path, held_out_rows=wanted)
    except ConfigError:
        # Right where the smallest family is larger than what is wanted, or all rows are; families by brute force:
        families: list[list[dict]] = []
        for r in rows:
            tied = [f for f in families if any({r["query"], *r["pos"]} & {o["query"], *o["pos"]} for o in f)]
            families = [f for f in families if f not in tied] + [[r, *(o for f in tied for o in f)]]
        assert wanted >= len(rows) or min(map(len, families)) > wanted
        return
    held = dataset.held_out()
    assert held is not None
    train = [r for r in rows if not any(r["query"] == q for q in held.queries.values())]
    assert len(train) == len(dataset) >= len(rows) - wanted
    seen = {r["query"] for r in train} | {text for r in train for text in r["pos"]}
    judged = {held.corpus[d] for relevant in held.qrels.values() for d in relevant}
    assert seen.isdisjoint(held.queries.values())
    assert seen.isdisjoint(judged)
    for r in (r for r in rows if r not in train):
        (query,) = (key for key, text in held.queries.items() if text == r["query"])
        assert set(r["pos"]) <= {held.corpus[d] for d, score in held.qrels[query].items() if score > 0}
        assert set(r.get("neg", [])) <= set(held.corpus.values())


def test_the_choice_is_by_content_not_by_order(tmp_path):
    rows = [row(n) for n in range(200)]
    one = build(write(tmp_path / "a.jsonl", rows), held_out_rows=30)[0].held_out()
    two = build(write(tmp_path / "b.jsonl", rows[::-1]), held_out_rows=30)[0].held_out()
    assert one is not None
    assert two is not None
    assert len(one.queries) == 30
    assert (one.queries, one.corpus, one.qrels) == (two.queries, two.corpus, two.qrels)


def test_families_are_not_chosen_by_size():
    """A family's mark is the smallest of its hashes: without scrambling, large ones would always come first."""
    generator = np.random.default_rng(0)
    hashes = generator.integers(1 << 63, size=(400, 10), dtype=np.int64)
    small = [[int(hashes[f, 0])] for f in range(300)]
    large = [[int(hashes[f, 0]), int(hashes[f, n])] for f in range(300, 400) for n in range(10)]
    mask = choose_held_out(small + large, 200)
    assert mask.sum() == 200
    assert 0.5 * 3 / 13 < mask[:300].sum() / 200 < 2 * 3 / 13


def test_held_out_rows_that_cannot_be(tmp_path):
    path = write(tmp_path / "t.jsonl", [row(n, pos=["the same"]) for n in range(5)])
    with pytest.raises(ConfigError, match=r"^held_out_rows=5: t.jsonl has 5 rows: set at most 4$"):
        build(path, held_out_rows=5)
    with pytest.raises(ConfigError, match=r"^held_out_rows=4: every group of rows of t.jsonl that share a query or a"):
        build(path, held_out_rows=4)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data at {REAL}: set EMBED_TEST_DATA")
def test_real_rows():
    dataset, said = build(REAL / "xquad" / "train.jsonl", held_out_rows=400)
    held = dataset.held_out()
    assert held is not None
    assert len(dataset) + 400 == 10728
    assert 380 <= len(held.queries) <= 400  # a question may be there twice
    assert held.corpus.keys() == {d for judged in held.qrels.values() for d in judged}
    assert dataset.example(0, np.random.default_rng(0)).passage_keys == ("ar-00-0",)
    assert said[0].startswith("data: train.jsonl, FlagEmbedding JSONL: 10328 training rows; held out ")
