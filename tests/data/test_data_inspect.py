"""`embed data inspect` and `embed data mix`, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from embed_core.errors import ConfigError, DataError
from embed_data.commands import app

ROWS: list[Any] = [
    {"query": "Who digs?", "pos": ["The badger digs."], "neg": ["The crane flies.", " "]},
    {"query": "Who digs?", "pos": ["The badger digs."], "neg": ["The crane flies.", " "]},
    {"query": "Who flies?", "pos": ["The crane flies."], "neg": ["The crane flies."], "prompt": "Find: "},
    {"query": "same", "pos": ["same"], "pos_scores": [0.5]},
    {"query": "", "pos": ["x"]},
    "nonsense",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "eval.jsonl").write_text(
        '{"query": "  who   DIGS? ", "pos": ["New."]}\n{"query": "new", "pos": ["ＴHE badger digs."]}\n'
    )
    return tmp_path


def run(*arguments: str) -> str:
    answer = CliRunner().invoke(app, list(arguments))
    if answer.exception is not None:
        raise answer.exception
    return answer.stdout


def test_what_inspect_shows(folder: Path) -> None:
    (found,) = json.loads(run("inspect", "rows.jsonl", "--eval", "eval.jsonl", "--json"))
    assert found["format"] == "JSONL, FlagEmbedding rows"
    assert found["columns"] == ["query", "pos", "neg"]
    assert (found["read"], found["usable"]) == (6, 4)
    assert found["bad"] == {
        "`query` is empty": 1,
        "expected an object or a list of texts, found the string 'nonsense'": 1,
    }
    assert found["characters"]["query"] == {"texts": 4, "mean": 8.0, "median": 9, "p95": 9, "longest": 10}
    assert found["counts"] == {
        "with negatives": 3, "negatives": 5, "with scores": 1, "with a prompt": 1, "empty negatives": 2,
        "a negative equals a positive": 1, "query equals positive": 1,
    }  # fmt: skip
    assert found["duplicates"] == {"queries": 1, "positives": 1, "rows": 1}
    assert found["leak_counts"]["eval.jsonl"] == {"queries": 1, "of queries": 2, "positives": 1, "of positives": 2}
    assert found["leaks"]["eval.jsonl"][0] == "rows.jsonl:1: query: 'Who digs?'"


def test_the_same_for_people(folder: Path) -> None:
    shown = run("inspect", "rows.jsonl", "--eval", "eval.jsonl")
    for line in (
        "  format      JSONL, FlagEmbedding rows",
        "  rows        4 usable of 6",
        "    rows.jsonl:5: `query` is empty: remove the row",
        "  duplicates  1 queries, 1 positives, 1 rows occurred before",
        "  leaks       1 of 2 queries and 1 of 2 positives of eval.jsonl are in the training rows",
    ):
        assert line in shown.splitlines(), shown
    assert "  queries               4          8          9          9         10" in shown.splitlines()


@pytest.mark.parametrize("titled", ["evaluation", "rows", "both", "with the title in the text"])
def test_a_title_hides_no_leak(titled: str, folder: Path) -> None:
    def beir_folder(name: str, title: str) -> str:
        (folder / name / "qrels").mkdir(parents=True)
        corpus = [{"_id": f"d{n}", "title": f"{title}{n}" if title else "", "text": f"Text {n}."} for n in range(3)]
        (folder / name / "corpus.jsonl").write_text("".join(json.dumps(one) + "\n" for one in corpus))
        (folder / name / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": f"of {name}?"}) + "\n")
        (folder / name / "qrels" / "test.tsv").write_text("q\td\ts\nq\td0\t1\nq\td1\t1\n")
        return name

    evaluation = beir_folder("evaluation", "" if titled == "rows" else "T")
    rows = "rows.jsonl"
    if titled in ("rows", "both"):
        rows = beir_folder("rows", "U")
    else:
        text = "t0 text 0." if titled == "with the title in the text" else "text 0."
        (folder / rows).write_text(json.dumps({"query": "q", "pos": [text, "T5 Text 1.", "Text 2."]}) + "\n")
    (found,) = json.loads(run("inspect", rows, "--eval", evaluation, "--json"))
    positives = 2 if rows == "rows" else 1
    assert found["leak_counts"] == {
        evaluation: {"queries": 0, "of queries": 1, "positives": positives, "of positives": 2}
    }


def test_tokens_and_over_long_texts(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[UNK]", "[PAD]", "who", "digs"]
    backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]").save_pretrained("model")
    config = BertConfig(vocab_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained("model")
    (found,) = json.loads(run("inspect", "rows.jsonl", "--tokenizer", "./model", "--max-length", "3", "--json"))
    assert found["tokens"]["query"] == {"texts": 4, "mean": 2.5, "median": 3, "p95": 3, "longest": 3}
    assert found["too_long"] == {"query": 0, "pos": 3, "neg": 3}
    shown = run("inspect", "rows.jsonl", "--tokenizer", "./model", "--max-length", "3")
    assert "  over-long   3 of 4 positives would be truncated" in shown.splitlines()
    (folder / "d.yaml").write_text("datasets: {data_path: [rows.jsonl], on_bad_row: skip}")
    (fact,) = json.loads(run("mix", "d.yaml", "--tokenizer", "./model", "--max-length", "3", "--json"))
    assert fact["lengths"]["exact"]
    # Seven hard negatives a row where there are any: 4 queries, 4 positives, 21 negatives.
    assert fact["lengths"]["truncated"] == pytest.approx((3 + fact_negatives(folder)) / 29)


def fact_negatives(folder: Path) -> int:
    """How many of the negatives that the table's generator draws are longer than three words."""
    import numpy as np

    from embed_core.config.context import BuildContext
    from embed_core.plugin.manager import activate
    from embed_data.mix.build import mixed
    from embed_data.mix.config import MixConfig

    registry = activate(["data"])[1]
    config = MixConfig.model_validate({"kind": "mix", "config": "d.yaml"}, context={"registry": registry})
    dataset, _ = mixed(config, BuildContext(registry, announce=lambda _: None))
    rng = np.random.default_rng(0)
    drawn = [text for row in range(4) for text in dataset.example(row, rng).passages[1:]]
    assert len(drawn) == 21
    return sum(text != " " for text in drawn)


def test_columns_from_the_command_line(folder: Path) -> None:
    (folder / "rows.csv").write_text("a1,p1,n1,n2\n")
    columns = ("--column", "query=1", "--column", "pos=2", "--column", "neg=3", "--column", "neg=4")
    (found,) = json.loads(run("inspect", "rows.csv", "--no-header", *columns, "--json"))
    assert found["counts"]["negatives"] == 2
    with pytest.raises(ConfigError, match="--column 'query': write it as ROLE=NAME"):
        run("inspect", "rows.csv", "--column", "query")
    with pytest.raises(ConfigError, match="columns: unknown role 'qery'"):
        run("inspect", "rows.csv", "--column", "qery=1")
    with pytest.raises(ConfigError, match=r"format: input should be 'auto', 'jsonl'.*, got 'xml'"):
        run("inspect", "rows.csv", "--format", "xml")
    with pytest.raises(DataError, match=r"did you mean 'rows\.csv'"):
        run("inspect", "row.csv")


@pytest.mark.parametrize(
    "text",
    [
        "datasets: {data_path: [rows.jsonl]}\non_bad_row: skip",
        "data: {kind: mix, on_bad_row: skip, datasets: [{data_path: rows.jsonl}]}\nmax_length: 9",
        "model_name_or_path: x\ndataset_config: d.yaml",
        "data: {config: d.yaml}",
    ],
)
def test_mix_shows_the_table_of_a_dataset_yaml_a_run_and_a_recipe(text: str, folder: Path) -> None:
    (folder / "d.yaml").write_text("datasets: {data_path: [rows.jsonl]}\non_bad_row: skip")
    (folder / "any.yaml").write_text(text)
    shown = run("mix", "any.yaml").splitlines()
    assert "mix: 4 rows from 1 sources" in shown
    row = next(line.split() for line in shown if line.startswith("  rows "))
    assert row[:7] == ["rows", "6", "4", "0", "2", "4", "100.0%"]
    assert row[-2:] == ["2", "bad"]
    (fact,) = json.loads(run("mix", "any.yaml", "--json"))
    assert (fact["source"], fact["used"], fact["dropped"]) == ("rows", 4, {"bad": 2})
    assert not (folder / "runs").exists()


def test_mix_without_a_mix(folder: Path) -> None:
    (folder / "any.yaml").write_text("data: {kind: pydocs}")
    with pytest.raises(ConfigError, match=r"no mix in it: `datasets`, `dataset_config` or `data: \{kind: mix, …\}` is"):
        run("mix", "any.yaml")
    with pytest.raises(ConfigError, match=r"config file 'none\.yaml' does not exist: did you mean 'any\.yaml'"):
        run("mix", "none.yaml")
