"""``embed mine`` reads what dataset kind `file` reads, and writes our rows with everything that was in them."""

from __future__ import annotations

import csv
import datetime
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from embed_cli.main import add_plugin_commands, app
from embed_core.datasets.row import parse_row
from embed_core.distributed.process_group import Ranks
from embed_core.errors import EmbedError
from embed_data.formats.options import FileFields, file_fields
from embed_data.mining import session
from embed_data.mining.corpus.rows import open_rows, rows_in_place
from embed_data.mining.output.progress import Progress
from embed_data.mining.request import MiningRequest

ALONE = Ranks(0, 1, 0, "cpu")
SEEN = [
    "copper mine",
    "old harbour",
    "grey castle",
    "wide meadow",
    "steep vineyard",
    "glass works",
    "quiet abbey",
    "toll",
]
PAIRS = [(f"which river has the {seen}", f"{seen}: a river") for seen in SEEN]
WRONG = [f"harbour {n} in winter" for n in range(8)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMBED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text(lines(rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def typed(*arguments: object) -> Any:
    add_plugin_commands(["mine"])
    return CliRunner().invoke(app, ["mine", *map(str, arguments)])


def mined(data: Path, *options: object) -> list[dict[str, Any]]:
    output = data.parent / "mined.jsonl"
    result = typed(data, "-o", output, "-n", 2, "--overwrite", *options)
    assert result.exit_code == 0, (result.output, result.exception)
    rows = read(output)
    for row in rows if "--audit" not in options else ():
        assert len(parse_row(row, "here").neg) == 2
    return rows


def fails(data: Path, *options: object) -> str:
    result = typed(data, "-o", data.parent / "mined.jsonl", *options)
    assert isinstance(result.exception, EmbedError), (result.output, result.exception)
    assert "\n" not in str(result.exception)
    assert not (data.parent / "mined.jsonl").exists()
    return str(result.exception)


def plain(folder: Path) -> list[dict[str, Any]]:
    """What the same pairs give as FlagEmbedding rows."""
    (folder / "plain").mkdir()
    return mined(write(folder / "plain" / "rows.jsonl", [{"query": q, "pos": [p]} for q, p in PAIRS]))


def without(rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in names} for row in rows]


def test_csv_with_columns_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "frage", "text", "answers", "type", "hint"])
        writer.writerows([f"n{n}", q, p, SEEN[(n + 1) % 8], "howto", "p: "] for n, (q, p) in enumerate(PAIRS))
    rows = mined(path, "--column", "query=frage", "--column", "pos=text", "--column", "prompt=hint")
    for number, row in enumerate(rows):
        assert (row["query"], row["pos"]) == (PAIRS[number][0], [PAIRS[number][1]])
        assert (row["id"], row["prompt"], row["answers"]) == (f"n{number}", "p: ", SEEN[(number + 1) % 8])
        assert row["type_"] == "howto", "training must not take it for the row's type"
        assert {"type", "frage", "hint"}.isdisjoint(row)
        assert not any(row["answers"] in text for text in row["neg"])


@pytest.mark.parametrize("first", ["anchor", "question", "sentence1"])
def test_gzipped_pairs_are_mined_as_our_rows_are(tmp_path: Path, first: str) -> None:
    second = {"anchor": "positive", "question": "answer", "sentence1": "sentence2"}[first]
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(lines([{first: q, second: p, "n": 1.5} for q, p in PAIRS]).encode()))
    rows = mined(path)
    assert all(row["n"] == 1.5 for row in rows)
    assert without(rows, "n") == plain(tmp_path)


def test_flagembedding_rows_are_the_same_in_any_wrapping(tmp_path: Path) -> None:
    rows = [{"n": n, "query": q, "doc_id": f"d{n}", "pos": [p], "answer": "xyz"} for n, (q, p) in enumerate(PAIRS)]
    found = mined(write(tmp_path / "rows.jsonl", rows))
    expected = (tmp_path / "mined.jsonl").read_bytes()
    assert [row["n"] for row in found] == list(range(8))
    (tmp_path / "other.jsonl.gz").write_bytes(gzip.compress(lines(rows).encode()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "other.parquet")
    write(tmp_path / "other.txt", rows)
    for name, options in (
        ("other.jsonl.gz", ()), ("other.parquet", ()), ("other.txt", ("--format", "jsonl")),
    ):  # fmt: skip
        mined(tmp_path / name, *options)
        assert (tmp_path / "mined.jsonl").read_bytes() == expected, name


def test_parquet_triplets_are_mined_and_audited(tmp_path: Path) -> None:
    table = pa.table(
        {
            "anchor": [q for q, _ in PAIRS],
            "positive": [p for _, p in PAIRS],
            "negative_1": WRONG,
            "negative_2": ["they call it grand" if n == 3 else WRONG[n - 1] for n in range(8)],
            "when": [datetime.date(2024, 1, n + 1) for n in range(8)],
            "raw": [b"\x00"] * 8,
            "weight": [float("nan")] * 8,
            "answers": [{"text": ["grand"], "answer_start": [3]}] * 8,
        }
    )
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path)
    rows = mined(path)
    assert rows[2]["when"] == "2024-01-03"
    assert (rows[2]["raw"], rows[2]["weight"]) == (None, None)
    assert rows[2]["answers"] == {"text": ["grand"], "answer_start": [3]}
    assert "negative_1" not in rows[2]
    assert without(rows, "when", "raw", "weight", "answers") == plain(tmp_path)
    masked = tmp_path / "masked.jsonl"
    rows = mined(path, "--audit", "--mask", "mark", "--masked-data", masked)
    assert [(row["place"], row["neg"]) for row in rows if "answer" in row["why"]] == [
        (f"{path}:row 4", "they call it grand")
    ]
    assert read(masked)[3]["neg"] == [WRONG[3]]
    assert read(masked)[3]["masked"] == ["they call it grand"]
    assert read(masked)[1]["neg"] == [WRONG[1], WRONG[0]]


def test_ms_swift_rows(tmp_path: Path) -> None:
    def says(role: str, text: str) -> dict[str, str]:
        return {"role": role, "content": text}

    path = write(
        tmp_path / "rows.jsonl",
        [
            {
                "messages": [says("system", "Find: "), says("user", q)],
                "positive_messages": [[says("assistant", p)]],
                "negative_messages": [[says("assistant", WRONG[n])]],
                "id": n,
            }
            for n, (q, p) in enumerate(PAIRS)
        ],
    )
    rows = mined(path)
    assert [(row["id"], row["prompt"]) for row in rows] == [(n, "Find: ") for n in range(8)]
    assert without(rows, "id", "prompt") == plain(tmp_path)
    (tmp_path / "mined.jsonl").unlink()
    assert typed(path, "-o", tmp_path / "mined.jsonl", "--audit").exit_code == 0


def test_lists_saved_datasets_and_folders_of_several_formats(tmp_path: Path) -> None:
    import datasets

    expected = plain(tmp_path)
    assert mined(write(tmp_path / "rows.jsonl", [list(pair) for pair in PAIRS])) == expected
    names = {"query": [q for q, _ in PAIRS], "positive": [p for _, p in PAIRS]}
    datasets.Dataset.from_dict(names).save_to_disk(str(tmp_path / "saved"))
    assert mined(tmp_path / "saved") == expected
    folder = tmp_path / "several"
    folder.mkdir()
    write(folder / "a.jsonl", [{"query": q, "pos": [p]} for q, p in PAIRS[:3]])
    (folder / "b.tsv").write_text("question\tanswer\n" + "".join(f"{q}\t{p}\n" for q, p in PAIRS[3:]))
    assert mined(folder) == expected


def test_a_corpus_of_another_format(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"anchor": q, "positive": p} for q, p in PAIRS])
    texts = [f"which river is {n} in autumn" for n in range(20, 26)]
    with (tmp_path / "corpus.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["_id", "title", "text"], *([f"c{n}", "", text] for n, text in enumerate(texts))])
    found = mined(rows, "--corpus", tmp_path / "corpus.csv")
    assert all(set(row["neg"]) <= set(texts) for row in found)
    assert found[0]["neg_id"] == [f"c{texts.index(text)}" for text in found[0]["neg"]]
    write(tmp_path / "corpus.txt", [{"text": text} for text in texts])
    assert without(mined(rows, "--corpus", tmp_path / "corpus.txt"), "neg_id") == without(found, "neg_id")
    (tmp_path / "bad.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n["b"]\n'))
    (tmp_path / "mined.jsonl").unlink()
    error = fails(rows, "--corpus", tmp_path / "bad.jsonl.gz")
    assert error == f"{tmp_path / 'bad.jsonl.gz'}:2: a document is an object with `text`, found a list"


def test_no_header(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("".join(f"{q}\t{p}\n" for q, p in PAIRS))
    options = ("--no-header", "--column", "query=1", "--column", "pos=2")
    assert mined(tmp_path / "rows.tsv", *options) == plain(tmp_path)


def test_ranks_are_started_with_the_same_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embed_cli import launch

    started: list[list[str]] = []
    monkeypatch.setattr(launch, "launch", lambda command, nproc: started.append(command) or 0)
    (tmp_path / "rows.tsv").write_text("a\tb\n")
    result = typed(tmp_path / "rows.tsv", "-o", tmp_path / "o.jsonl", "--no-header", "--column", "pos=2", "--nproc", 2)
    assert result.exit_code == 0, result.exception
    assert "--no-header" in started[0]
    assert started[0][started[0].index("--column") + 1] == "pos=2"


def test_the_copy_is_made_once_and_again_when_the_file_changes(tmp_path: Path, cache: Path) -> None:
    path, told = tmp_path / "rows.csv", []
    path.write_text("anchor,positive\na,b\n")
    for _ in range(2):
        assert open_rows(path, None, None, told.append)[0].row.query == "a"
    assert told == [f"{path} (csv): copying its rows into the cache, once"]
    path.write_text("anchor,positive\nother,b\nc,d\n")
    assert open_rows(path, None, None, told.append)[0].row.query == "other"
    assert len(told) == len(list((cache / "records").iterdir())) == 2


def test_other_columns_are_another_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("q,a,b\n" + "".join(f"{q},{p},{p} too\n" for q, p in PAIRS))
    columns = ["--column", "query=q", "--column"]

    def run(pos: str) -> None:
        reading = file_fields(["query=q", f"pos={pos}"])
        request = MiningRequest(data=path, output=tmp_path / "mined.jsonl", reading=reading)
        session.run(request, ALONE, lambda line: None, Progress(shown=False))

    with monkeypatch.context() as patch:
        patch.setattr(session.MiningBlocks, "block", lambda self, rows: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("a")
    assert "another command (different: columns)" in fails(path, *columns, "pos=b")
    run("a")


def test_answers_of_a_run_are_looked_for_without_a_copy(tmp_path: Path, cache: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"anchor": "a", "positive": "b", "answers": ["c"]}])
    assert rows_in_place(rows)[0].answers == ("c",)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "rows.csv").write_text("anchor,positive\na,b\n")
    with pytest.raises(EmbedError, match=r"no \.jsonl or \.json file and no BEIR folder"):
        rows_in_place(tmp_path / "none")
    assert not cache.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.csv", "anchor,positive,score\na,b,0.5\n", ":2: a (text, text, score) row says how alike two texts are"),
        ("r.jsonl", '["a", "b", 0.5]\n', ":1: a (text, text, score) row says how alike"),
        ("r.jsonl", '{"sentence1": "a", "sentence2": "b", "label": 1}\n', ":1: a (text, text, score) row says"),
        (
            "r.jsonl",
            '{"messages": [{"role": "user", "content": "a"}], '
            '"positive_messages": [[{"role": "user", "content": "b"}]], "label": 0.5}\n',
            ":1: a (text, text, score) row says",
        ),
        (
            "r.csv",
            "frage,text\na,b\n",
            ":2: which column is the query? The row has `frage`, `text`: add --column ",
        ),
        ("r.csv", "anchor,text\na,b\n", ":2: which column is the positive?"),
        ("r.csv", "anchor,positive\na,b,c\n", ":2: 3 fields, the header has 2"),
        ("r.csv", "anchor,positive\na,\n", ":2: no positive: `positive` is empty"),
        ("r.jsonl", '{"anchor": "a", "positive": 3}\n', ":1: column `positive` must be a text or a list of texts"),
        ("r.jsonl", '{"query": "a", "pos": ["b", 3]}\n', ":1: `pos[1]` must be a string, found the number 3"),
        ("r.jsonl", '{"messages": []}\n', ":1: `messages` must be a list of messages"),
        ("r.jsonl", '{"anchor": "a", "positive": "b", "answers": 3}\n', ":1: `answers` must be a string or a list"),
        ("r.jsonl", "3\n", ":1: expected a JSON object"),
        ("r.ndjson", "[1]\n", ":1: a list must be [anchor, positive, negative, …]"),
        ("r.json", '["a", "b"]', ":1: expected a JSON object"),
        ("r.txt", "a", ": the format is not known by its suffix '.txt': set `format` to one of"),
        ("r.parquet", "a", ": cannot be read as Parquet"),
        ("r.csv.gz", "a", ": it has no rows"),
    ],
)
def test_rows_that_cannot_be_mined(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    error = fails(tmp_path / name)
    assert error.startswith(f"{tmp_path / name}{message}")


def test_half_a_character_in_any_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"anchor": "a", "positive": "b", "note": "\\ud800"}\n'))
    assert fails(path) == f"{path}:1: \\ud800 is half of a surrogate pair and no character: remove it"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--column", "query"], "--column 'query': write it as ROLE=NAME"),
        (["--column", "qery=a"], "columns: unknown role 'qery'"),
        (["--column", "query=b"], "no column 'b', which `columns.query` names"),
        (["--format", "xml"], "format: input should be 'auto', 'jsonl'"),
        (["--format", "csv"], "which column is the query?"),
        (["--format", "beir"], "format 'beir'"),
        (["--no-header"], "--no-header is for CSV and TSV, and "),
        (["--subset", "x"], "subset 'x'"),
        (["--split", "dev"], "--split 'dev'"),
    ],
)
def test_options_of_reading_that_cannot_be(tmp_path: Path, options: list[str], message: str) -> None:
    path = write(tmp_path / "rows.jsonl", [{"query": "a", "pos": ["b"]}] * 2)
    assert message in fails(path, *options)


def test_options_that_a_beir_folder_does_not_take(tmp_path: Path) -> None:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    write(folder / "corpus.jsonl", [{"_id": "d", "text": "a"}])
    write(folder / "queries.jsonl", [{"_id": "q", "text": "b"}])
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    assert "is a BEIR folder, whose files have fixed names: leave it out" in fails(folder, "--column", "query=text")
    assert "--no-header is for CSV and TSV" in fails(folder, "--no-header")


def test_a_name_of_the_hub_is_asked_for_by_its_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[str, str | None]] = []
    names = {"query": ["a"], "positive": ["b"]}

    def load(name: str, subset: str | None) -> Any:
        asked.append((name, subset))
        return datasets.DatasetDict(
            {"train": datasets.Dataset.from_dict(names), "dev": datasets.Dataset.from_dict(names)}
        )

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    rows = open_rows(Path("owner/name"), "dev", FileFields(format="datasets", subset="pairs"))
    assert (rows[0].row.query, asked) == ("a", [("owner/name", "pairs")])
    result = typed("owner/name", "-o", "o.jsonl")
    assert "no such file or folder" in str(result.exception)
    assert len(asked) == 1
