"""The dataset `banded`: which negatives lie in a band, who is told, and whose positives are no negatives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embed_core.config.context import BuildContext
from embed_core.datasets.row import Row
from embed_core.errors import ConfigError, DataError
from embed_core.plugin.manager import activate
from embed_core.testing import RowsDataset, tiny_dataset
from embed_qwen.bands import BandedRows, in_band
from embed_qwen.curriculum_config import BandedConfig, DifficultyConfig

torch.set_num_threads(1)

NEG = tuple("abcdefgh")
SCORES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
ROW = Row("q", ("p", "p2"), NEG, (1.0, 0.95), SCORES, place="rows.jsonl:3")
Build = Callable[..., Any]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """``build(rows, by=..., band=..., negatives=...)`` → the dataset; its lines are in ``build.said``."""
    _, registry = activate(["qwen"])

    def make(rows: list[dict[str, Any]], phase: str = "", run_data: Any = None, **options: Any) -> Any:
        path = tmp_path / f"rows{len(list(tmp_path.glob('rows*')))}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        make.said = []  # type: ignore[attr-defined]
        context = BuildContext(
            registry,
            cache_dir=tmp_path / "cache",
            announce=make.said.append,  # type: ignore[attr-defined]
            dataset_factory=lambda: run_data if run_data is not None else tiny_dataset(),
            phase=phase,
        )
        inner = {"kind": "file", "path": str(path), "negatives": 1, "query_prompt": "find: "}
        config = BandedConfig.model_validate({"inner": inner, **options}, context={"registry": registry})
        return config.build(context)

    return make


@pytest.mark.parametrize(
    ("by", "band", "expected"),
    [
        ("given", None, "abcdefgh"),
        ("rank", (1, 3), "abc"),
        ("rank", (7, None), "gh"),
        ("rank", (30, 100), ""),
        ("share", (0, 0.5), "abcd"),
        ("share", (0.5, 1), "efgh"),
        ("share", (None, 0.25), "ab"),
        ("score", (0.35, 0.65), "def"),
        ("score", (None, 0.2), "h"),
        ("margin", (0, 0.2), "ab"),
        ("margin", (0.6, None), "gh"),
    ],
)
def test_the_band(by: Any, band: Any, expected: str) -> None:
    """The margin is to the lowest positive, 0.95; the bounds are included."""
    kept = in_band(ROW, DifficultyConfig(by=by, band=band))
    assert "".join(NEG[n] for n in kept) == expected


@pytest.mark.parametrize("count", range(7))
def test_neighbouring_shares_part_the_negatives(count: int) -> None:
    row = Row("q", ("p",), NEG[:count])
    halves = [in_band(row, DifficultyConfig(by="share", band=band)) for band in ((0, 0.5), (0.5, 1))]
    assert sorted(halves[0] + halves[1]) == list(range(count))
    assert not set(halves[0]) & set(halves[1])


def rows_of(*sizes: int) -> list[dict[str, Any]]:
    """Rows with so many negatives each, scored 0.9, 0.8, … below positives of 1."""
    return [
        {
            "query": f"query {n}",
            "pos": [f"pos {n}"],
            "neg": [f"neg {n}.{k}" for k in range(size)],
            "pos_scores": [1.0],
            "neg_scores": [0.9 - k / 10 for k in range(size)],
        }
        for n, size in enumerate(sizes)
    ]


def drawn(dataset: Any, row: int, times: int = 30) -> list[Any]:
    return [dataset.example(row, np.random.default_rng(seed)) for seed in range(times)]


def test_only_negatives_of_the_band_are_drawn(build: Build) -> None:
    dataset = build(rows_of(8, 2, 0), by="rank", band=(3, 5), negatives=2, phase="stage-2")
    examples = drawn(dataset, 0)
    assert {text for one in examples for text in one.passages[1:]} == {"neg 0.2", "neg 0.3", "neg 0.4"}
    assert all(len(one.passages) == 3 and len(set(one.passages)) == 3 for one in examples)
    for one in examples:
        assert one.passages[0] == "pos 0"
        assert one.scores == pytest.approx((1.0, *(0.9 - int(text[-1]) / 10 for text in one.passages[1:])))
        assert (one.query_prompt, one.source, one.row) == ("find: ", "rows0", 0)
    for row in (1, 2):
        assert all(one.passages == (f"pos {row}",) for one in drawn(dataset, row))
    assert build.said[-1] == (  # type: ignore[attr-defined]
        "stage-2, banded: rank 3-5: 1 of 3 rows have 3.0 negatives on average; 2 have none in the band and learn from "
        "the batch alone"
    )


def test_few_are_repeated_and_the_same_rng_draws_the_same(build: Build) -> None:
    dataset = build(rows_of(8), by="rank", band=(1, 2), negatives=4)
    one, other = dataset.example(0, np.random.default_rng(5)), dataset.example(0, np.random.default_rng(5))
    assert one == other
    assert sorted(one.passages[1:]) == ["neg 0.0", "neg 0.0", "neg 0.1", "neg 0.1"]


def test_in_batch_means_no_hard_negative(build: Build) -> None:
    dataset = build(rows_of(8, 3), negatives=0)
    assert all(one.passages == ("pos 1",) for one in drawn(dataset, 1, 3))
    assert not any("banded" in line for line in build.said)  # type: ignore[attr-defined]


def test_positives_of_the_same_question_elsewhere_are_no_negatives(build: Build) -> None:
    """One row per (question, positive): what the other row calls a positive is masked, and never drawn."""
    rows = [
        {"query": "same", "pos": ["first"], "neg": ["second", "wrong"]},
        {"query": "same", "pos": ["second"], "neg": ["first"]},
        {"query": "other", "pos": ["third"], "neg": ["first", "second"]},
    ]
    dataset = build(rows, negatives=5)
    assert set(drawn(dataset, 0)[0].passages) == {"first", "wrong"}
    assert drawn(dataset, 1)[0].passages == ("second",)
    assert set(drawn(dataset, 2)[0].passages) == {"third", "first", "second"}
    assert [drawn(dataset, row, 1)[0].positives for row in range(3)] == [
        ("first", "second"), ("second", "first"), ("third",),
    ]  # fmt: skip
    assert "2 left out that are positives of the same question" in build.said[-1]  # type: ignore[attr-defined]


def test_all_else_is_the_inner_dataset_s(build: Build) -> None:
    rows = rows_of(4, 4)
    banded = build(rows, by="rank", band=(1, 2), negatives=1)
    assert (len(banded), banded.name, banded.source(1)) == (2, "rows0", "rows0")
    assert list(banded.identities(0)) == list(banded.inner.identities(0))
    assert [text for text in banded.texts() if text.startswith("neg")] == ["neg 0.0", "neg 0.1", "neg 1.0", "neg 1.1"]
    assert banded.held_out() is None


def test_the_fingerprint_is_of_the_rows_and_the_band(build: Build) -> None:
    inner = build(rows_of(4, 4)).inner
    same, wider, more = (
        BandedRows(inner, BandedConfig(by="rank", band=band, negatives=negatives)).fingerprint()
        for band, negatives in (((1, 2), 1), ((1, 3), 1), ((1, 2), 2))
    )
    assert len({same, wider, more}) == 3
    assert same == BandedRows(inner, BandedConfig(by="rank", band=(1, 2), negatives=1)).fingerprint()


def test_a_band_without_negatives(build: Build) -> None:
    with pytest.raises(ConfigError) as caught:
        build(rows_of(3, 2), by="score", band=(2, 3), phase="stage-3")
    assert str(caught.value) == (
        "stage-3, banded: no row of rows0 has a negative in the band (score 2-3): rows have at most 3 negatives, "
        "scored 0.7 to 0.9: change the band"
    )
    with pytest.raises(ConfigError, match=r"none has any negative \(`neg`\): mine some with `embed mine`, or set"):
        build(rows_of(0, 0), by="rank", band=(1, 3))


def test_scores_are_needed_for_a_band_of_scores(build: Build, tmp_path: Path) -> None:
    rows = [{"query": "q", "pos": ["p"]}, {"query": "r", "pos": ["s"], "neg": ["n"]}]
    for by in ("score", "margin"):
        with pytest.raises(DataError) as caught:
            build(rows, by=by, band=(0, 1))
        assert str(caught.value).split("/")[-1].partition(".jsonl")[2] == (
            f":2: no `neg_scores`: a band by {by} needs them; write them with `embed mine`, or use by rank"
        )


def test_inner_is_needed_outside_of_a_phase_and_must_show_its_rows(tmp_path: Path) -> None:
    _, registry = activate(["qwen"])
    context = BuildContext(registry, cache_dir=tmp_path, dataset_factory=tiny_dataset, announce=lambda line: None)
    with pytest.raises(ConfigError, match="outside of a phase `banded` needs the dataset whose rows it takes"):
        BandedConfig().build(context)
    context.phase = "stage-1"
    with pytest.raises(ConfigError, match="dataset 'animals' draws examples but does not show its rows") as caught:
        BandedConfig().build(context)
    assert "use rows of a file" in str(caught.value)


def test_rows_that_the_evaluation_asks_are_told(build: Build) -> None:
    build(rows_of(2, 2), phase="stage-2", run_data=tiny_dataset())
    assert not any("evaluation" in line for line in build.said)  # type: ignore[attr-defined]
    evaluated = RowsDataset([("query 1", ["x"], []), ("y", ["z"], [])], held_out_rows=1)
    build(rows_of(2, 2), phase="stage-2", run_data=evaluated)
    assert build.said[-1] == (  # type: ignore[attr-defined]
        "stage-2, banded: 1 of 2 rows ask what the evaluation asks: its figures will be too good; take these rows out "
        "of the stage's data, or evaluate on a BEIR folder"
    )


def test_a_mix_shows_its_rows(tmp_path: Path) -> None:
    _, registry = activate(["qwen"])
    for name, rows in (("one", rows_of(3)), ("two", rows_of(4, 4))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [{"name": name, "data_path": str(tmp_path / f"{name}.jsonl")} for name in ("one", "two")]
    context = BuildContext(registry, cache_dir=tmp_path / "cache", announce=lambda line: None)
    config = BandedConfig.model_validate(
        {"inner": {"kind": "mix", "datasets": sources}, "by": "rank", "band": [2, 2], "negatives": 1},
        context={"registry": registry},
    )
    dataset = config.build(context)
    examples = [dataset.example(row, np.random.default_rng(0)) for row in range(len(dataset))]
    assert {one.source for one in examples} == {"one", "two"}
    assert all(one.passages[1].endswith(".1") for one in examples)
