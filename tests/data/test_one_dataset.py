"""One dataset behind every recipe: the same rows in any format give the same first batch under each of them."""

from __future__ import annotations

import csv
import gzip
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embed_core.config.context import BuildContext
from embed_core.config.document import Document
from embed_core.config.resolve import Request, resolve
from embed_core.datasets.retrieval import RetrievalDataset
from embed_core.errors import ConfigError, DataError
from embed_core.plugin.manager import activate
from embed_data.config import FileConfig

PAIRS = [{"anchor": f"where is number {n}?", "positive": f"Number {n} is here."} for n in range(24)]
FIRST, SECOND = PAIRS[:10], PAIRS[10:]
HUB = "owner/pairs"
KEYS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "bge": lambda path: {"train_data": path, "held_out_rows": 0},
    "data": lambda path: {"train_data": path, "held_out_rows": 0},
    "mrl": lambda path: {"train_data": path, "held_out_rows": 0},
    "sbert": lambda path: {"data": {"pairs_path": path, "held_out_rows": 0}},
    "distill": lambda path: {"phase2": {"dataset": path, "held_out_rows": 0, "mse_weight": 0}},
    "qwen": lambda path: {"dataset_paths": path, "held_out_rows": 0},
}
"""What every recipe calls its training data."""


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def written(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    """``rows`` as the file ``name`` in the format that the name says."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if name.endswith((".csv", ".tsv")):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if name.endswith("csv") else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name.endswith(".arrow"):
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows))
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines(rows).encode()))
    else:
        path.write_text(lines(rows))
    return path


def beir(folder: Path) -> Path:
    written(folder, "corpus.jsonl", [{"_id": f"d{n}", "text": row["positive"]} for n, row in enumerate(PAIRS)])
    written(folder, "queries.jsonl", [{"_id": f"q{n}", "text": row["anchor"]} for n, row in enumerate(PAIRS)])
    (folder / "qrels").mkdir()
    (folder / "qrels" / "train.tsv").write_text("".join(f"q{n}\td{n}\t1\n" for n in range(len(PAIRS))))
    return folder


def under(*names: str) -> list[dict[str, Any]]:
    """The pairs with other column names."""
    return [dict(zip(names, row.values(), strict=True)) for row in PAIRS]


def layouts(at: Path) -> dict[str, Any]:
    """A name for every way to lay out the same rows → what a user writes as the path."""
    a, b = written(at / "list", "a.jsonl", FIRST), written(at / "list", "b.csv", SECOND)
    flag = [{"query": row["anchor"], "pos": [row["positive"]]} for row in PAIRS]
    said = [{"messages": [{"role": "user", "content": row["anchor"]}],
             "positive_messages": [[{"role": "user", "content": row["positive"]}]]} for row in PAIRS]  # fmt: skip
    written(at / "folders" / "one", "x.jsonl", FIRST)
    written(at / "folders" / "two", "x.parquet", SECOND)
    return {
        **{name: str(written(at, name, PAIRS)) for name in ("pairs.jsonl", "pairs.csv", "pairs.tsv", "pairs.parquet",
                                                           "pairs.arrow", "pairs.json", "pairs.jsonl.gz")},
        "usual names": str(written(at, "questions.jsonl", under("question", "answer"))),
        "labelled pairs": str(written(at, "scored.jsonl", [row | {"score": 1} for row in under("text1", "text2")])),
        "lists": str(written(at, "lists.jsonl", [list(row.values()) for row in PAIRS])),
        "FlagEmbedding rows": str(written(at, "flag.jsonl", flag)),
        "ms-swift rows": str(written(at, "swift.jsonl", said)),
        "BEIR folder": str(beir(at / "beir")),
        "a folder": str(written(at / "folder", "pairs.jsonl", PAIRS).parent),
        "a folder of folders": str(at / "folders"),
        "a list": [str(a), str(b)],
        "a name of the hub": HUB,
    }  # fmt: skip


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that has one dataset."""
    import datasets

    def load(name: str, subset: str | None = None) -> Any:
        assert name == HUB
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(PAIRS)})

    monkeypatch.setattr(datasets, "load_dataset", load)


def opened(plugin: str, keys: dict[str, Any], cache: Path, batch_size: int = 8) -> tuple[Any, Any, list[str]]:
    """Dataset and sampler of a recipe's run, and what was announced."""
    registry = activate([plugin] if plugin == "data" else ["data", plugin])[1]
    document = Document(data={**keys, "sampler": {"batch_size": batch_size}})
    run = resolve(registry, Request(registry.recipe(plugin), document, world_size=1))
    said: list[str] = []
    context = BuildContext(registry, seed=run.seed, cache_dir=cache, announce=said.append)
    dataset = run.data.build(context)
    return dataset, run.sampler.build(context, dataset), said


def texts_of(dataset: Any, rows: Any) -> list[tuple[str, ...]]:
    examples = [dataset.example(row, np.random.default_rng(row)) for row in rows]
    return [(example.query, *example.passages) for example in examples]


@pytest.mark.parametrize("plugin", KEYS)
@pytest.mark.usefixtures("offline")
def test_every_layout_gives_the_same_first_batch_under_every_plugin(plugin: str, tmp_path: Path) -> None:
    expected = None
    for name, path in layouts(tmp_path).items():
        dataset, sampler, _ = opened(plugin, KEYS[plugin](path), tmp_path / "cache")
        assert len(dataset) == len(PAIRS), name
        found = texts_of(dataset, sampler.batch(0))
        expected = expected or found
        assert found == expected, name
        assert texts_of(dataset, range(24)) == [tuple(row.values()) for row in PAIRS], name
    # The order is the seed's alone, and that is the same for all recipes.
    order = np.random.default_rng([42, 0, 0]).permutation(np.arange(24, dtype=np.int32)).reshape(3, 8)
    first = np.random.default_rng([42, 0, 3]).permutation(3)[0]
    assert expected == [tuple(PAIRS[row].values()) for row in order[first]]


def test_files_of_folders_are_sources_that_are_told_apart(tmp_path: Path) -> None:
    paths = layouts(tmp_path)
    written(tmp_path / "other", "a.jsonl", FIRST[:2])
    keys = {"train_data": [paths["a folder of folders"], *paths["a list"], str(tmp_path / "other")]}
    dataset, _, said = opened("bge", {**keys, "held_out_rows": 0}, tmp_path / "cache", batch_size=2)
    assert isinstance(dataset, RetrievalDataset)
    assert list(dict.fromkeys(map(dataset.source, range(len(dataset))))) == [
        "one/x", "two/x", "list/a", "b", "other/a",
    ]  # fmt: skip
    assert said[0] == (
        "data: folders + a.jsonl + b.csv + … (4 in all), JSONL, (anchor, positive) pairs; "
        "Parquet, (anchor, positive) pairs; CSV, (anchor, positive) pairs: 50 training rows from 5 sources"
    )


def test_a_clone_of_the_hub_stays_one_dataset_without_its_test_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    for split in ("train", "test"):
        written(tmp_path / "clone" / "en", f"{split}.jsonl", FIRST)
    asked = []

    def load(name: str, subset: str | None) -> Any:
        asked.append(name)
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(FIRST), "test": None})

    monkeypatch.setattr(datasets, "load_dataset", load)
    dataset, _, _ = opened("sbert", KEYS["sbert"](str(tmp_path / "clone")), tmp_path / "cache")
    assert (asked, len(dataset)) == ([str(tmp_path / "clone")], 10)


def test_json_lines_are_read_where_they_are(tmp_path: Path) -> None:
    """Rows of any shape: nothing of them is copied into the cache, and a bad one is named by its line."""
    path = written(tmp_path, "pairs.jsonl", PAIRS)
    for plugin in KEYS:
        opened(plugin, KEYS[plugin](str(path)), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    path.write_text(lines([*PAIRS, {"anchor": "q"}]))
    for plugin in KEYS:
        with pytest.raises(DataError) as caught:
            opened(plugin, KEYS[plugin](str(path)), tmp_path / "cache")
        assert str(caught.value) == (
            f"{path}:25: which column is the positive? The row has `anchor`: set `columns: {{pos: NAME}}`"
        )


def test_bge_refuses_a_text_where_flagembedding_has_a_list(tmp_path: Path) -> None:
    path = written(tmp_path, "flag.jsonl", [{"query": "q", "pos": "text"}])
    with pytest.raises(DataError, match=r'flag.jsonl:1: `pos` must be a list of strings, .*: write \["…"\]$'):
        opened("bge", KEYS["bge"](str(path)), tmp_path / "cache", batch_size=1)
    dataset, _, _ = opened("sbert", KEYS["sbert"](str(path)), tmp_path / "cache", batch_size=1)
    assert texts_of(dataset, [0]) == [("q", "text")]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (["rows.jsonl", "rows.jsonl"], "path: rows.jsonl is given twice: name it once"),
        (["rows.jsonl", "pydocs"], "path: 'pydocs' beside files: use kind mix, with the source {data: {kind: pydocs}}"),
    ],
)
def test_paths_that_cannot_be(path: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "rows.jsonl", PAIRS)
    with pytest.raises(ConfigError) as caught:
        opened("bge", KEYS["bge"](path), tmp_path / "cache")
    assert str(caught.value) == message


def test_no_path_at_all_is_an_error() -> None:
    with pytest.raises(ConfigError, match="path is empty: name a file, a folder or a dataset"):
        opened("mrl", KEYS["mrl"]([]), Path("cache"))


def test_the_embedded_corpus_has_no_columns(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="columns: the embedded corpus is no file: remove `columns` or set `path`"):
        opened("bge", {"data": {"columns": {"pos": "answer"}}}, tmp_path / "cache")


@pytest.mark.parametrize("broken", [False, True])
def test_two_ranks_meet_at_every_barrier(broken: bool, tmp_path: Path) -> None:
    """A file that is converted between two that are read in place: rank 1 finds what rank 0 made, or why it could not;
    neither waits for the other for ever."""
    paths = [written(tmp_path, name, FIRST) for name in ("a.jsonl", "b.csv", "c.jsonl")]
    if broken:
        paths[1].write_text("anchor,positive\nq,\n")
    barrier = threading.Barrier(2, timeout=60)
    config = FileConfig(path=tuple(map(str, paths)), held_out_rows=3)
    lines: list[str] = []

    def build(rank: int) -> str:
        context = BuildContext(
            activate([])[1],
            rank=rank,
            world_size=2,
            cache_dir=tmp_path / "cache",
            announce=lines.append if rank == 0 else lambda line: None,
            barrier=lambda: (barrier.wait(), None)[1],
        )
        try:
            return config.build(context).fingerprint()
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(build, (0, 1))
    if broken:
        assert one == f"{paths[1]}:2: no positive: `positive` is empty"
        assert other == f"{paths[1]}: another rank could not read it, whose message says why"
    else:
        assert one == other
        assert len(lines) == 1
