"""The dataset `remined`: negatives by the model that the phases before left, against a brute-force search."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embed_core.config.component import DatasetConfig
from embed_core.config.context import BuildContext
from embed_core.errors import ConfigError, DataError
from embed_core.plugin.manager import activate
from embed_core.types import Embeddings
from embed_data.mining.corpus import shards

torch.set_num_threads(1)

TOPICS = ("rivers", "engines", "gardens", "letters", "bridges", "winters")
ROWS: list[dict[str, Any]] = [
    {
        "query": f"what of {topic} number {n}",
        "pos": [f"{topic} {n}: " + " ".join(f"{topic[:3]}{n}{k}word" for k in range(12))],
        "answers": [f"{topic[:3]}{n}7word"],
    }
    for topic in TOPICS
    for n in range(5)
]


class FakeEncoder:
    """A vector per text, from its hash; counts its calls."""

    scores = {"all": {"dense": 1.0, "sparse": 1.0}, "dense": {"dense": 1.0}}  # noqa: RUF012
    calls = 0
    width = 8

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size

    def encode(self, items: Sequence[str], role: str) -> Embeddings:
        self.calls += 1
        vectors = [vector(text) for text in items]
        return Embeddings(torch.stack(vectors) if vectors else torch.zeros(0, self.width))


def vector(text: str) -> torch.Tensor:
    seed = int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "little")
    return torch.nn.functional.normalize(torch.randn(8, generator=torch.Generator().manual_seed(seed)), dim=0)


class Remined:
    """``remined(ranks=[1, 5])`` → the dataset; what was announced is in ``said``."""

    def __init__(self, folder: Path, rows: list[dict[str, Any]]) -> None:
        self.rows, self.said = folder / "rows.jsonl", list[str]()
        write(self.rows, rows)
        _, registry = activate(["data"])
        self.context = BuildContext(
            registry,
            cache_dir=folder / "cache",
            announce=self.said.append,
            phase="stage-2",
            phase_dir=folder / "phase",
            encoder=FakeEncoder(),
        )
        (folder / "phase").mkdir()
        self.kind: Any = registry.get("dataset", "remined")

    def config(self, **options: Any) -> DatasetConfig:
        inner = {"kind": "retrieval", "path": str(self.rows)}
        config: DatasetConfig = self.kind.model_validate(
            {"inner": inner, **options}, context={"registry": self.context.registry}
        )
        return config

    def __call__(self, **options: Any) -> Any:
        return self.config(**options).build(self.context)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def remined(tmp_path: Path) -> Remined:
    return Remined(tmp_path, ROWS)


def ranked(query: str, texts: list[str], without: set[str]) -> list[str]:
    """Texts by their score, the best first: one product at a time."""
    others = [text for text in texts if text not in without]
    return sorted(others, key=lambda text: -float(vector(query).double() @ vector(text).double()))


def test_negatives_are_the_ranks_asked_for(remined: Remined) -> None:
    dataset = remined(ranks=[3, 7], negatives=4)
    texts = [row["pos"][0] for row in ROWS]
    for number, row in enumerate(ROWS):
        whole = dataset.row(number)
        assert list(whole.neg) == ranked(row["query"], texts, set(row["pos"]))[2:6]
        scores = [float(vector(row["query"]) @ vector(text)) for text in (*row["pos"], *whole.neg)]
        assert [*whole.pos_scores, *whole.neg_scores] == pytest.approx(scores, abs=1e-6)
        example = dataset.example(number, np.random.default_rng(0))
        assert set(example.passages[1:]) == set(whole.neg)
    assert remined.said[-2:] == [
        "remined: the model mines for 30 rows among 30 documents, ranks 3-7",
        "remined: 4.0 negatives a row",
    ]


def test_a_margin_keeps_what_scores_above_the_positive_out(remined: Remined) -> None:
    dataset = remined(absolute_margin=0.1, negatives=30)
    for number, row in enumerate(ROWS):
        whole = dataset.row(number)
        limit = float(vector(row["query"]) @ vector(row["pos"][0])) - 0.1
        texts = ranked(row["query"], [other["pos"][0] for other in ROWS], set(row["pos"]))
        assert list(whole.neg) == [t for t in texts if float(vector(row["query"]) @ vector(t)) <= limit + 1e-7]
    assert "refused: margin" in remined.said[-1]


def test_known_positives_overlaps_and_answers_are_no_negatives(tmp_path: Path) -> None:
    rows = [dict(row) for row in ROWS]
    rows.append({"query": ROWS[0]["query"], "pos": ["another positive of the same question"]})
    rows.append({"query": "a", "pos": ["tells of riv07word and nothing else of it"]})  # holds the answer of row 0
    rows.append({"query": "b", "pos": [ROWS[0]["pos"][0] + " and a little more"]})
    dataset = Remined(tmp_path, rows)(ranks=[1, 100], negatives=100)
    found = dataset.row(0)
    forbidden = {text for row in rows[-3:] for text in row["pos"]} | set(ROWS[0]["pos"])
    assert not forbidden & set(found.neg)
    assert len(found.neg) == len(rows) - 4
    assert found.masked == ("another positive of the same question",)
    assert forbidden - set(rows[1]["pos"]) <= set(dataset.row(1).neg)


def test_answers_are_read_where_they_are_named(remined: Remined, tmp_path: Path) -> None:
    bare = tmp_path / "bare.jsonl"
    write(bare, [{"query": row["query"], "pos": row["pos"]} for row in ROWS])
    write(tmp_path / "corpus.jsonl", [{"text": f"of riv0{n}word and others"} for n in range(9)])
    options = {"inner": {"kind": "retrieval", "path": str(bare)}, "corpus": str(tmp_path / "corpus.jsonl")}
    assert len(remined(**options).row(0).neg) == 9
    assert "answers are not known: only what overlaps with a positive is kept out" in remined.said[-2]
    told = remined(**options, answers=str(remined.rows)).row(0)
    assert sorted(told.neg) == [f"of riv0{n}word and others" for n in range(9) if n != 7]


@pytest.mark.parametrize("kind", ["file", "mix"])
def test_answers_of_the_run_s_own_rows_are_known(remined: Remined, tmp_path: Path, kind: str) -> None:
    """Without an `inner` the rows are the run's, and so are their answers."""
    write(tmp_path / "corpus.jsonl", [{"text": f"of riv0{n}word and others"} for n in range(9)])
    path = str(remined.rows)
    data: Any = {"kind": "file", "path": path} if kind == "file" else {"kind": "mix", "datasets": [{"data_path": path}]}
    registry = remined.context.registry
    run_data = registry.get("dataset", kind).model_validate(data, context={"registry": registry})
    context = replace(remined.context, cache_dir=tmp_path / "cache", data=run_data)
    context.dataset_factory = lambda: run_data.build(context)
    dataset = remined.kind(corpus=str(tmp_path / "corpus.jsonl")).build(context)
    assert "answers are not known" not in remined.said[-2]
    row = next(row for row in map(dataset.row, range(len(dataset))) if row.query == ROWS[0]["query"])
    assert sorted(row.neg) == [f"of riv0{n}word and others" for n in range(9) if n != 7]


def test_a_resume_mines_nothing(remined: Remined) -> None:
    first = remined(ranks=[2, 9], negatives=3)
    rows = [first.row(number) for number in range(len(first))]
    encoder: Any = remined.context.encoder
    calls = encoder.calls
    resumed = Remined.__new__(Remined)
    resumed.__dict__ = {**remined.__dict__, "context": replace(remined.context, encoder=None)}
    again = resumed(ranks=[2, 9], negatives=3)
    assert [again.row(number) for number in range(len(again))] == rows
    assert again.fingerprint() == first.fingerprint()
    assert encoder.calls == calls
    with pytest.raises(ConfigError, match="phase 'stage-2' has no model of an earlier one to mine with"):
        resumed(ranks=[2, 8], negatives=3)  # other settings: other rows


def test_a_kill_amid_the_mining_is_gone_on_with(remined: Remined, monkeypatch: pytest.MonkeyPatch) -> None:
    from embed_data.self_mining import dataset as module

    monkeypatch.setattr(module, "BLOCK", 7)
    blocks = module._Blocks.block
    done = []

    def killed(self: Any, numbers: Sequence[int]) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(numbers)
        return blocks(self, numbers)

    monkeypatch.setattr(module._Blocks, "block", killed)
    with pytest.raises(KeyboardInterrupt):
        remined(ranks=[1, 4], negatives=2)
    monkeypatch.setattr(module._Blocks, "block", lambda self, numbers: (done.append(numbers), blocks(self, numbers))[1])
    dataset = remined(ranks=[1, 4], negatives=2)
    assert [next(iter(numbers)) for numbers in done] == [0, 7, 14, 21, 28]
    assert len(dataset.row(29).neg) == 2
    assert [path.suffix for path in remined.context.phase_dir.iterdir()] == [".jsonl"]  # type: ignore[union-attr]


def test_ranks_mine_the_same_and_call_the_encoder_alike(
    remined: Remined, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads with a barrier are the ranks; 30 documents in shards of 4 are 8, so with three ranks one idles."""
    monkeypatch.setattr(shards, "SHARD", 4)
    monkeypatch.setattr("embed_data.mining.rank.dense.SHARD", 4)
    alone = remined(ranks=[1, 6], negatives=3)
    barrier = threading.Barrier(3)
    encoders = [FakeEncoder(rank, 3) for rank in range(3)]
    (tmp_path / "three").mkdir()
    found: list[Any] = [None] * 3

    def work(rank: int) -> None:
        context = replace(
            remined.context,
            rank=rank,
            world_size=3,
            encoder=encoders[rank],
            phase_dir=tmp_path / "three",
            barrier=barrier.wait,
        )
        found[rank] = remined.config(ranks=[1, 6], negatives=3).build(context)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len({encoder.calls for encoder in encoders}) == 1
    rows = [alone.row(number) for number in range(30)]
    assert all([one.row(number) for number in range(30)] == rows for one in found)
    assert {one.fingerprint() for one in found} == {alone.fingerprint()}


def test_what_is_refused(remined: Remined, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ranks \\[40, 60\\]: there are only 30 documents to rank: start at a lower"):
        remined(ranks=[40, 60])
    with pytest.raises(ValueError, match="ranks \\[9, 2\\]: the first and the last, counted from 1"):
        remined(ranks=[9, 2])
    with pytest.raises(DataError, match="nowhere"):
        remined(corpus=str(tmp_path / "nowhere.jsonl"))
    remined.context.phase, remined.context.phase_dir = "", None
    with pytest.raises(ConfigError, match="use it in `phases`, or as `remine` of a curriculum's stage"):
        remined()
