"""Every format that `file` reads: the same rows in, the same rows out; and what is announced."""

from __future__ import annotations

import csv
import gzip
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embed_core.datasets.dedup import Seen
from embed_core.datasets.row import parse_row
from embed_core.datasets.split import row_identities
from embed_core.plugin.manager import activate
from embed_core.testing import build
from embed_core.testing.fixtures import embed_context, embed_registry
from embed_data.formats import json as json_records
from embed_data.formats import table as table_records

__all__ = ["embed_context", "embed_registry"]
torch.set_num_threads(1)
DATA = Path(os.environ.get("EMBED_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")).resolve()

ROWS: list[dict[str, Any]] = [
    {"query": "what is a badger?", "pos": ["A badger digs.", "Badgers are mustelids."], "neg": ["A crane flies."]},
    {"query": 'was ist ein "Kranich",\nund wo?', "pos": ["Ein Kranich\tfliegt."], "neg": []},
    {
        "query": "狸とは何か?",
        "masked": ["狸は哺乳類です。", "狸。"],
        "pos": ["狸は動物です。"],
        "neg": ["鶴は鳥です。", "蛙。"],
        "pos_scores": [0.9],
        "neg_scores": [0.1, 0.2],
    },
    {"query": "🦡?", "pos": ["é\u2028ü"], "neg": [], "prompt": "Find: ", "type": "symmetric_sts", "doc_id": ["d7"]},
]
PAIRS = [{"anchor": row["query"], "positive": row["pos"][0]} for row in ROWS]


@pytest.fixture
def opened(embed_context: Callable[..., Any]) -> Callable[..., Any]:
    """``opened(path, key=value)``: the built dataset, with ``lines`` announced."""
    registry = activate(["data"])[1]

    def make(path: Path | str, **options: Any) -> Any:
        context = embed_context(registry)
        lines: list[str] = []
        context.announce = lines.append
        dataset = build(registry, "dataset", {"kind": "file", "path": str(path), **options}, context)
        dataset.lines = lines
        return dataset

    return make


def content(dataset: Any) -> list[dict[str, Any]]:
    """The rows as the FlagEmbedding fields that are set."""
    found = []
    for number in range(len(dataset)):
        row = dataset.row(number)
        fields = {"query": row.query, "pos": list(row.pos), "neg": list(row.neg)}
        for name in ("pos_scores", "neg_scores", "pos_keys"):
            if getattr(row, name) is not None:
                fields["doc_id" if name == "pos_keys" else name] = list(getattr(row, name))
        fields |= {} if row.prompt is None else {"prompt": row.prompt}
        fields |= {"masked": list(row.masked)} if row.masked else {}
        found.append(fields | ({} if row.type == "normal" else {"type": row.type}))
    return found


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def table(rows: list[dict[str, Any]]) -> pa.Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """``rows`` in the format that the name says."""
    name = path.name
    if ".json" in name or name.endswith(".ndjson"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if ".json." in name or name.endswith(".json"):
            text = json.dumps(rows, indent=1, ensure_ascii=False)
        data = text.encode()
        if name.endswith(".gz"):
            data = gzip.compress(data)
        if name.endswith(".zst"):
            data = pa.Codec("zstd").compress(data, asbytes=True)
        path.write_bytes(data)
    elif name.endswith(".parquet"):
        pq.write_table(table(rows), path, row_group_size=2)
    elif name.endswith((".arrow", ".feather")):
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table(rows).schema) as writer:
            writer.write_table(table(rows), max_chunksize=3)
    return path


NAMES = ("rows.jsonl", "rows.ndjson", "rows.json", "rows.jsonl.gz", "rows.jsonl.zst", "rows.json.gz", "rows.parquet")


@pytest.mark.parametrize("name", [*NAMES, "rows.arrow", "rows.feather"])
def test_flagembedding_rows_round_trip(name: str, tmp_path: Path, opened: Callable[..., Any]) -> None:
    dataset = opened(write(tmp_path / name, ROWS))
    assert content(dataset) == ROWS
    assert dataset.source(0) == dataset.name == "rows"
    assert "FlagEmbedding rows: 4 training rows" in dataset.lines[0]


def test_an_arrow_stream_is_read_too(tmp_path: Path, opened: Callable[..., Any]) -> None:
    path = tmp_path / "rows.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table(ROWS).schema) as writer:
        writer.write_table(table(ROWS))
    assert content(opened(path)) == ROWS


def test_the_format_may_be_said_and_compression_is_seen_in_the_bytes(
    tmp_path: Path, opened: Callable[..., Any]
) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes(gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)))
    assert content(opened(path, format="jsonl")) == ROWS


def test_compressed_files_of_several_members(tmp_path: Path, opened: Callable[..., Any]) -> None:
    """`cat a.gz b.gz` and `cat a.zst b.zst` are one file."""
    lines = [json.dumps(row).encode() + b"\n" for row in ROWS]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(gzip.compress(line) for line in lines))
    (tmp_path / "b.jsonl.zst").write_bytes(b"".join(pa.Codec("zstd").compress(line, asbytes=True) for line in lines))
    assert content(opened(tmp_path / "a.jsonl.gz")) == ROWS
    assert content(opened(tmp_path / "b.jsonl.zst")) == ROWS


@pytest.mark.parametrize(("name", "delimiter"), [("rows.csv", ","), ("rows.tsv", "\t"), ("rows.csv.gz", ",")])
def test_csv_and_tsv_round_trip(name: str, delimiter: str, tmp_path: Path, opened: Callable[..., Any]) -> None:
    path = tmp_path / name
    opener: Any = gzip.open if name.endswith("gz") else open
    with opener(path, "wt", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["anchor", "positive", "negative_1", "negative_2"])
        for row in ROWS:
            writer.writerow([row["query"], row["pos"][0], *(row["neg"] + ["", ""])[:2]])
    dataset = opened(path)
    assert [dataset.row(n).query for n in range(4)] == [row["query"] for row in ROWS]
    assert [list(dataset.row(n).neg) for n in range(4)] == [row["neg"] for row in ROWS]
    assert "(anchor, positive, negatives)" in dataset.lines[0]
    # The second row holds a line break: the third starts at line 5.
    assert [dataset.row(n).place for n in range(3)] == [f"{path}:2", f"{path}:3", f"{path}:5"]


def test_csv_without_a_header(tmp_path: Path, opened: Callable[..., Any]) -> None:
    (tmp_path / "rows.csv").write_text("a1,p1\na2,p2\n", encoding="utf-8")
    dataset = opened(tmp_path / "rows.csv", header=False, columns={"query": "1", "pos": "2"})
    assert [dataset.row(n).query for n in range(2)] == ["a1", "a2"]


SWIFT = [
    {
        "messages": [{"role": "system", "content": "Find: "}, {"role": "user", "content": "q1"}],
        "positive_messages": [[{"role": "user", "content": "p1"}], [{"role": "user", "content": "p2"}]],
        "negative_messages": [[{"role": "user", "content": "n1"}], [{"role": "user", "content": "n2"}]],
    },
    {"messages": [{"role": "user", "content": "q2"}], "positive_messages": [[{"role": "user", "content": "p3"}]]},
    {
        "messages": [{"role": "user", "content": "q3"}, {"role": "assistant", "content": "and?"}],
        "positive_messages": [{"role": "user", "content": "p4"}],
        "negative_messages": None,
        "label": 0.5,
    },
]


@pytest.mark.parametrize("name", ["swift.jsonl", "swift.json", "swift.parquet"])
def test_ms_swift_rows_with_and_without_negatives(name: str, tmp_path: Path, opened: Callable[..., Any]) -> None:
    rows = SWIFT if not name.endswith("parquet") else SWIFT[:2]
    dataset = opened(write(tmp_path / name, rows))
    assert (
        content(dataset)
        == [
            {"query": "q1", "pos": ["p1", "p2"], "neg": ["n1", "n2"], "prompt": "Find: "},
            {"query": "q2", "pos": ["p3"], "neg": []},
            {"query": "q3\nand?", "pos": ["p4"], "neg": [], "pos_scores": [0.5]},
        ][: len(rows)]
    )
    assert "ms-swift rows" in dataset.lines[0]


def test_pairs_triplets_and_lists(tmp_path: Path, opened: Callable[..., Any]) -> None:
    rows = [
        *PAIRS,
        {"anchor": "a", "positive": "p", "negative": "n"},
        {"anchor": "a", "positive": "p", "negative_1": "n", "negative_2": None, "negative_3": "m"},
        {"question": "a", "answer": "p", "hard_negatives": ["n", "m"]},
        ["a", "p"],
        ["a", "p", "n", "m"],
    ]
    dataset = opened(jsonl(tmp_path / "rows.jsonl", rows))
    assert [dataset.row(n).query for n in range(4)] == [row["query"] for row in ROWS]
    assert [dataset.row(n).neg for n in range(4, 9)] == [("n",), ("n", "m"), ("n", "m"), (), ("n", "m")]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_scored_pairs(name: str, tmp_path: Path, opened: Callable[..., Any]) -> None:
    rows = [("a", "b", 5), ("c", "d", 0.5), ("e", "f", 3.25)]
    path = tmp_path / name
    if name.endswith("csv"):
        path.write_text("sentence1,sentence2,score\n" + "".join(f"{a},{b},{s}\n" for a, b, s in rows))
    else:
        jsonl(path, [{"sentence1": a, "sentence2": b, "score": s} for a, b, s in rows[:2]] + [list(rows[2])])
    dataset = opened(path)
    assert [dataset.row(n).pos_scores for n in range(3)] == [(5.0,), (0.5,), (3.25,)]
    assert "(text, text, score)" in dataset.lines[0]
    assert dataset.example(1, np.random.default_rng(0)).scores == (0.5,)
    kept = opened(path, min_score=3)
    assert [kept.row(n).query for n in range(len(kept))] == ["a", "e"]
    assert kept.lines[1] == "data: rows: 1 of 3 rows are below min_score"


def test_columns_are_mapped_nested_ones_too(tmp_path: Path, opened: Callable[..., Any]) -> None:
    rows = [
        {
            "frage": "q",
            "antworten": {"text": ["p1", "p2"]},
            "falsch_1": "n1",
            "falsch_2": "",
            "anweisung": "I: ",
            "id": 7,
        }
    ]
    columns = {"query": "frage", "pos": "antworten.text", "neg": ["falsch_1", "falsch_2"], "prompt": "anweisung"}
    dataset = opened(jsonl(tmp_path / "rows.jsonl", rows), columns=columns)
    assert content(dataset) == [{"query": "q", "pos": ["p1", "p2"], "neg": ["n1"], "prompt": "I: "}]


def test_a_role_that_is_not_mapped_is_still_recognised(tmp_path: Path, opened: Callable[..., Any]) -> None:
    rows = [{"query": "q", "passages": ["p"], "negative": "n", "type": "bridge"}]
    dataset = opened(jsonl(tmp_path / "rows.jsonl", rows), columns={"pos": "passages"})
    assert content(dataset) == [{"query": "q", "pos": ["p"], "neg": ["n"]}]


def test_auto_reads_other_formats_as_file_does(tmp_path: Path, embed_context: Callable[..., Any]) -> None:
    registry = activate(["data"])[1]
    options = {"kind": "auto", "path": str(write(tmp_path / "rows.parquet", ROWS)), "held_out_rows": 1, "negatives": 1}
    dataset = build(registry, "dataset", options, embed_context(registry))
    assert (len(dataset), len(dataset.held_out().queries)) == (3, 1)
    drawn = [len(dataset.example(row, np.random.default_rng(0)).passages) for row in range(3)]
    assert drawn == [2 if dataset.row(row).neg else 1 for row in range(3)]


def test_saved_and_named_datasets(tmp_path: Path, opened: Callable[..., Any]) -> None:
    import datasets

    plain = datasets.Dataset.from_list([{"anchor": "a", "positive": "p"}, {"anchor": "b", "positive": "q"}])
    plain.save_to_disk(tmp_path / "saved")
    dataset = opened(tmp_path / "saved")
    assert (len(dataset), dataset.row(1).place) == (2, f"{tmp_path / 'saved'}:row 2")
    assert "Hugging Face dataset, (anchor, positive) pairs" in dataset.lines[0]
    datasets.DatasetDict({"train": plain, "extra": plain.select([0])}).save_to_disk(tmp_path / "several")
    assert len(opened(tmp_path / "several")) == 2
    assert len(opened(tmp_path / "several", split="extra")) == 1
    # A clone of a repository of the hub: data files in a folder, named by their split.
    (tmp_path / "clone" / "data").mkdir(parents=True)
    plain.to_parquet(tmp_path / "clone" / "data" / "train-00000-of-00001.parquet")
    assert len(opened(tmp_path / "clone")) == 2


def test_a_name_of_the_hub_goes_to_datasets(monkeypatch: pytest.MonkeyPatch, opened: Callable[..., Any]) -> None:
    import datasets

    asked: list[Any] = []

    def load(name: str, subset: str | None) -> Any:
        asked.append((name, subset))
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(PAIRS)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    dataset = opened("owner/pairs", subset="en", split="train")
    assert asked == [("owner/pairs", "en")]
    assert (len(dataset), dataset.name) == (4, "pairs")


def test_beir_folders_as_the_core_reads_them(tmp_path: Path, opened: Callable[..., Any]) -> None:
    (tmp_path / "beir" / "qrels").mkdir(parents=True)
    jsonl(tmp_path / "beir" / "corpus.jsonl", [{"_id": f"d{n}", "title": "T", "text": f"text {n}"} for n in range(3)])
    jsonl(tmp_path / "beir" / "queries.jsonl", [{"_id": "q0", "text": "one"}, {"_id": "q1", "text": "two"}])
    (tmp_path / "beir" / "qrels" / "train.tsv").write_text("q\td\ts\nq0\td0\t1\nq0\td1\t0\nq1\td2\t1\n")
    dataset = opened(tmp_path / "beir")
    core = build(
        activate(["data"])[1],
        "dataset",
        {"kind": "retrieval", "path": str(tmp_path / "beir")},
        dataset_context(tmp_path),
    )
    for number in range(2):
        rng = np.random.default_rng(number)
        expected = core.example(number, np.random.default_rng(number))
        assert dataset.example(number, rng) == expected
    assert dataset.example(0, np.random.default_rng(0)).passage_keys == ("d0", *("d1",) * 7)


def dataset_context(tmp_path: Path) -> Any:
    from embed_core.config.context import BuildContext

    return BuildContext(activate(["data"])[1], cache_dir=tmp_path / "core", announce=lambda _: None)


def test_a_folder_is_a_source_per_file(tmp_path: Path, opened: Callable[..., Any]) -> None:
    jsonl(tmp_path / "a.jsonl", ROWS[:2])
    write(tmp_path / "b.parquet", ROWS[2:])
    jsonl(tmp_path / "b.jsonl", ROWS[:1])
    dataset = opened(tmp_path)
    assert [dataset.source(n) for n in range(len(dataset))] == ["a", "a", "b.jsonl", "b.parquet", "b.parquet"]
    assert sum(len(counts) for counts, _ in dataset.identity_blocks()) == 5


@pytest.mark.skipif(not DATA.exists(), reason=f"no data in {DATA}")
def test_real_rows_are_those_of_the_core_s_own_reader(tmp_path: Path, opened: Callable[..., Any]) -> None:
    """Both read XQuAD: the same examples, identities, held-out split and texts."""
    options = {"path": str(DATA / "xquad" / "train.jsonl"), "held_out_rows": 150, "limit": 1000}
    ours = opened(options.pop("path"), **options)
    core = build(
        activate(["data"])[1],
        "dataset",
        {"kind": "retrieval", "path": str(DATA / "xquad" / "train.jsonl"), **options},
        dataset_context(tmp_path),
    )
    assert len(ours) == len(core) == 1000
    for number in range(0, 1000, 37):
        assert ours.example(number, np.random.default_rng(1)) == core.example(number, np.random.default_rng(1))
        assert set(ours.identities(number)) == set(core.identities(number))
    held = core.held_out()
    assert ours.held_out() == replace(held, name="train-held-out")
    assert set(ours.texts()) == set(core.texts())
    assert len(list(ours.texts())) == len(set(ours.texts()))


def test_identities_are_those_of_the_rows(tmp_path: Path, opened: Callable[..., Any]) -> None:
    dataset = opened(jsonl(tmp_path / "rows.jsonl", ROWS), limit=3)
    expected = [row_identities(parse_row(ROWS[number], "")) for number in (0, 1, 2)]
    assert [list(dataset.identities(number)) for number in range(3)] == expected
    (counts, ids), *_ = dataset.identity_blocks()
    assert counts.tolist() == [len(one) for one in expected]
    assert ids.tobytes() == b"".join(b"".join(one) for one in expected)


def test_a_table_is_made_once_and_anew_when_the_file_changes(
    tmp_path: Path, opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "rows.parquet", ROWS)
    first = opened(path).fingerprint()
    with monkeypatch.context() as patch:
        patch.setattr(table_records, "parquet_rows", lambda path: pytest.fail("read again"))
        assert opened(path).fingerprint() == first
    write(path, ROWS[:3])
    os.utime(path, ns=(1, 1))
    assert opened(path).fingerprint() != first
    for damaged in (tmp_path / "cache" / "tables").glob("*/rows.arrow"):
        damaged.write_bytes(damaged.read_bytes()[:100])
    assert len(opened(path)) == 3


def test_tables_that_nobody_used_for_a_month_are_removed(tmp_path: Path, opened: Callable[..., Any]) -> None:
    tables = tmp_path / "cache" / "tables"
    opened(write(tmp_path / "old.parquet", ROWS))
    opened(write(tmp_path / "used.parquet", ROWS))
    (tables / ".killed").mkdir()
    long_ago = time.time() - 31 * 24 * 3600
    for path in (*tables.glob("*/manifest.json"), tables / ".killed"):
        os.utime(path, (long_ago, long_ago))
    opened(tmp_path / "used.parquet")
    opened(write(tmp_path / "new.parquet", ROWS))
    assert len(list(tables.iterdir())) == 2


def test_a_large_array_is_never_whole_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elements larger and smaller than what is read at a time, at every offset: the same as json.load."""
    monkeypatch.setattr(json_records, "CHUNK", 16)
    values = [{"a": "ü" * size, "b": [size, {"c": "]},["}]} for size in range(60)]
    path = tmp_path / "rows.json"
    path.write_text("\n " + json.dumps(values, ensure_ascii=False, indent=2) + "\n ", encoding="utf-8")
    assert [record.value for record in json_records.json_array(path)] == values
    held = []
    array = json_records._Array

    class Watched(array):  # type: ignore[misc, valid-type]
        def _more(self, size: int) -> None:
            super()._more(size)
            held.append(len(self.text))

    monkeypatch.setattr(json_records, "_Array", Watched)
    lines = [record.line for record in json_records.json_array(path)]
    assert max(held) < 400 < len(path.read_text())
    text = path.read_text().split("\n")
    assert all(text[line - 1].strip().startswith("{") for line in lines)


def test_seen_is_a_set() -> None:
    rng = np.random.default_rng(0)
    seen, known = Seen(), set()
    for size in (5, 1, 300, 2, 40, 40, 1000, 3):
        ids = rng.integers(0, 700, size).astype(np.uint64)
        expected = []
        for value in ids.tolist():
            expected.append(value not in known)
            known.add(value)
        assert seen.new(ids).tolist() == expected
    assert len(seen) == len(known)
