"""BEIR folders, for evaluation and for training."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from embed_core.datasets.sources.beir import BeirRows, read_beir
from embed_core.errors import DataError

REAL = Path(os.environ.get("EMBED_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
CORPUS = [
    {"_id": "d1", "title": "Cats", "text": "purr"},
    {"_id": "d2", "title": "", "text": "dogs bark"},
    {"_id": "d3", "text": ""},
]
QUERIES = [{"_id": "q1", "text": "who purrs?"}, {"_id": "q2", "text": "who barks?"}, {"_id": "q3", "text": "unjudged"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td2\t1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "beir"
    (made / "qrels").mkdir(parents=True)
    for name, rows in (("corpus", CORPUS), ("queries", QUERIES)):
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (made / "qrels" / "test.tsv").write_text(QRELS, "utf-8")
    return made


def test_a_beir_folder(folder):
    read = read_beir(folder)
    assert read.name == "beir"
    assert read.corpus == {"d1": "Cats purr", "d2": "dogs bark", "d3": ""}
    assert read.queries == {"q1": "who purrs?", "q2": "who barks?"}
    assert read.qrels == {"q1": {"d1": 2, "d2": 0}, "q2": {"d2": 1}}


def test_a_qrels_file_without_header_and_with_windows_line_ends(folder):
    (folder / "qrels" / "test.tsv").write_bytes(b"q1\td1\t1\r\nq2\td2\t1.0\r\n\r\n")
    assert read_beir(folder).qrels == {"q1": {"d1": 1}, "q2": {"d2": 1}}


def test_the_split(folder):
    (folder / "qrels" / "dev.tsv").write_text("q3\td3\t1\n", "utf-8")
    assert set(read_beir(folder).queries) == {"q1", "q2"}  # `test` where there are several
    assert set(read_beir(folder, "dev").queries) == {"q3"}
    with pytest.raises(DataError, match=r"qrels: no split 'tests': did you mean 'test'\?$"):
        read_beir(folder, "tests")
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "b.tsv")
    with pytest.raises(DataError, match=r"qrels: several splits \(b, dev\): set `split` to one of them$"):
        read_beir(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("qrels/test.tsv", "h\th\th\nq9\td1\t1\n", "test.tsv:2: query id 'q9' is not in {}/queries.jsonl"),
        ("qrels/test.tsv", "q1\td1\t1\nq1\td9\t1\n", "test.tsv:2: document id 'd9' is not in {}/corpus.jsonl"),
        (
            "qrels/test.tsv",
            "q1 d1 1\n",
            "test.tsv:1: expected a query id, a document id and a whole number, by tabs; f",
        ),
        ("qrels/test.tsv", "q1\td1\t1\nq1\td1\tx\n", "test.tsv:2: expected a query id, a document id and a whole numb"),
        ("qrels/test.tsv", "q1\td1\t0.5\nq1\td1\t0.5\n", "test.tsv:2: expected a query id, a document id and a whole"),
        ("qrels/test.tsv", "a\tb\tc\n", "test.tsv: no judgement: each line is a query id, a document id and a score"),
        ("corpus.jsonl", '{"_id": "d1", "text": 3}', "corpus.jsonl:1: `text` must be a string, found the number 3"),
        ("corpus.jsonl", '{"_id": "d1"}', "corpus.jsonl:1: `text` must be a string, found nothing"),
        ("corpus.jsonl", '{"text": "x"}', "corpus.jsonl:1: `_id` must be a string, found nothing"),
        ("corpus.jsonl", '{"_id": [], "text": "x"}', "corpus.jsonl:1: `_id` must be a string, found a list"),
        (
            "corpus.jsonl",
            '{"_id": "d1", "text": "x", "title": 1}',
            "corpus.jsonl:1: `title` must be a string, found the",
        ),
        (
            "corpus.jsonl",
            '{"_id": "d1", "text": "x"}\n{"_id": "d1", "text": "y"}',
            "corpus.jsonl:2: `_id` 'd1' occurs twice, the first time at {}/corpus.jsonl:1",
        ),
        ("queries.jsonl", '{"_id": "q1", "text": " "}', "queries.jsonl:1: `text` of a query is empty"),
        ("queries.jsonl", '{"_id": "q1", "text"}', "queries.jsonl:1: malformed JSON: "),
    ],
)
def test_bad_folders(folder, file, content, message):
    (folder / file).write_text(content, "utf-8")
    with pytest.raises(DataError) as caught:
        read_beir(folder)
    assert str(caught.value).startswith(f"{(folder / file).parent}/{message.format(folder)}")
    assert "\n" not in str(caught.value)


def test_bad_bytes_in_qrels(folder):
    (folder / "qrels" / "test.tsv").write_bytes(b"q1\td1\t1\nq\xe9\td1\t1\n")
    with pytest.raises(DataError, match=r"test.tsv:2: byte 0xe9 is not UTF-8$"):
        read_beir(folder)


@pytest.mark.parametrize("missing", ["corpus.jsonl", "queries.jsonl"])
def test_a_missing_part(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(
        DataError, match=rf"beir: no {missing}: a BEIR folder has corpus.jsonl, queries.jsonl and qrels"
    ):
        read_beir(folder)


def test_no_split_at_all_and_no_folder_at_all(folder):
    (folder / "qrels" / "test.tsv").unlink()
    with pytest.raises(DataError, match=r"qrels: no .tsv file"):
        read_beir(folder)
    with pytest.raises(DataError, match=r"bier: no such file or folder: did you mean 'beir'\?$"):
        read_beir(folder.parent / "bier")


def test_rows_of_a_beir_folder(folder):
    rows = BeirRows(folder, None)
    assert [rows.row(n).query for n in range(len(rows))] == ["who purrs?", "who barks?"]
    first = rows.row(0)
    assert (first.pos, first.neg, first.pos_keys, first.neg_keys) == (("Cats purr",), ("dogs bark",), ("d1",), ("d2",))
    assert first.place == f"{folder}/queries.jsonl:1"


def test_training_needs_a_relevant_document(folder):
    (folder / "qrels" / "test.tsv").write_text("q1\td1\t0\n", "utf-8")
    with pytest.raises(DataError, match=r"test.tsv: no query has a relevant document \(a score above 0\)$"):
        BeirRows(folder, None)


def test_training_prefers_the_split_train(folder):
    (folder / "qrels" / "train.tsv").write_text("q3\td1\t1\n", "utf-8")
    assert [BeirRows(folder, None).row(0).query] == ["unjudged"]


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data at {REAL}: set EMBED_TEST_DATA")
def test_real_folders():
    read = read_beir(REAL / "xquad" / "test-zh")
    assert (len(read.queries), len(read.corpus), len(read.qrels)) == (296, 60, 296)
