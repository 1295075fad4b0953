"""Mixing: exact counts, whatever the ratios, seeds and ranks; nothing held out is trained on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embed_core.batch.collate import share_of_rank
from embed_core.config import document
from embed_core.config import resolve as load
from embed_core.config.context import BuildContext
from embed_core.errors import ConfigError, DataError
from embed_core.plugin.manager import activate
from embed_core.samplers.by_source import BySourceSampler
from embed_core.samplers.no_duplicates import NoDuplicatesSampler
from embed_core.samplers.shuffled import ShuffledSampler
from embed_core.testing import build, check_sampler
from embed_data.mix.allocate import allocate, draw, shares
from embed_data.mix.config import MixConfig, as_list

torch.set_num_threads(1)

SEED_YAML = """\
use_all: False  # If True, use all data (ignores num_total_data and data_ratio)
num_total_data: 200000
allow_duplicate: True
datasets:
  name: [dataset1, dataset2]
  data_path: [./data/dataset1.json, ./data/dataset2.json]
  data_ratio: [0.7, 0.3]
"""


def write(path: Path, rows: int, name: str | None = None, **more: Any) -> Path:
    name = name or path.stem
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ({"query": f"{name} q{n}", "pos": [f"{name} p{n}"], **more} for n in range(rows))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> Callable[..., Any]:
    """``mixed(key=value, seed=1)``: the built mix; ``lines`` has what was announced."""
    registry = activate(["data"])[1]

    def make(*, seed: int = 42, rank: int = 0, cache: Path = tmp_path / "cache", **options: Any) -> Any:
        lines: list[str] = []
        context = BuildContext(registry, seed=seed, rank=rank, cache_dir=cache, announce=lines.append)
        dataset = build(registry, "dataset", {"kind": "mix", **options}, context)
        dataset.lines = lines
        return dataset

    return make


def files(folder: Path, **sizes: int) -> list[dict[str, Any]]:
    return [{"data_path": str(write(folder / f"{name}.jsonl", rows))} for name, rows in sizes.items()]


def counts(dataset: Any, part: int) -> Counter[str]:
    """How often each query of a part is in the mix."""
    first, last = dataset.starts[part : part + 2]
    rng = np.random.default_rng(0)
    return Counter(dataset.example(row, rng).query for row in range(first, last))


@pytest.fixture(scope="module")
def seed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seed")
    write(folder / "data" / "dataset1.json", 60_000)
    write(folder / "data" / "dataset2.json", 61_000)
    (folder / "dataset.yaml").write_text(SEED_YAML)
    return folder


def test_the_yaml_as_it_is_with_duplicates(
    seed_folder: Path, mixed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """140,000 of 60,000: all of them twice, and 20,000 at random a third time; 60,000 of 61,000 once each."""
    monkeypatch.chdir(seed_folder)
    dataset = mixed(config="dataset.yaml", cache=Path("cache"))
    assert dataset.starts.tolist() == [0, 140_000, 200_000]
    assert Counter(np.bincount(dataset.parts[0].rows, minlength=60_000).tolist()) == {2: 40_000, 3: 20_000}
    assert Counter(np.bincount(dataset.parts[1].rows, minlength=61_000).tolist()) == {1: 60_000, 0: 1_000}
    assert [part.name for part in dataset.parts] == ["dataset1", "dataset2"]
    again, other = (
        mixed(config="dataset.yaml", cache=Path("cache")),
        mixed(config="dataset.yaml", cache=Path("cache"), seed=1),
    )
    assert again.fingerprint() == dataset.fingerprint() != other.fingerprint()
    third = [np.flatnonzero(np.bincount(one.parts[0].rows) == 3) for one in (dataset, other)]
    assert 0.2 < len(np.intersect1d(*third)) / 20_000 < 0.5  # a third of a third of them, had they been drawn alike all


def test_the_yaml_as_it_is_without_duplicates_and_with_all(
    seed_folder: Path, mixed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(seed_folder)
    dataset = mixed(config="dataset.yaml", cache=Path("cache"), allow_duplicate=False)
    assert dataset.starts.tolist() == [0, 60_000, 120_000]
    assert len(np.unique(dataset.parts[0].rows)) == 60_000
    assert dataset.lines[-1] == (
        "mix: fewer rows than the share asks for: 'dataset1' (60,000 of 140,000): "
        "allow_duplicate: true would repeat them"
    )
    everything = mixed(config="dataset.yaml", cache=Path("cache"), use_all=True)
    assert everything.starts.tolist() == [0, 60_000, 121_000]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 1000).map(lambda n: n / 100), min_size=1, max_size=8).filter(any),
    st.integers(0, 10**7),
    st.floats(0.2, 20),
)
def test_allocations_add_up_and_are_within_one_of_the_quota(
    ratios: list[float], total: int, temperature: float
) -> None:
    for used in (1.0, temperature):
        parts = shares(ratios, used)
        assert sum(parts) == 1
        found = allocate(total, parts)
        assert sum(found) == total
        assert all(abs(count - total * part) < 1 for count, part in zip(found, parts, strict=True))
        assert all(count == 0 for count, ratio in zip(found, ratios, strict=True) if not ratio)
    assert shares(ratios) == [Fraction(str(r)) / sum(Fraction(str(one)) for one in ratios) for r in ratios]


def test_temperature_draws_ratios_together() -> None:
    """Against numbers worked by hand: sizes 100, 10,000 at T = 2 are as 10 : 100."""
    assert allocate(1100, shares([100, 10_000], 2)) == [100, 1000]
    assert allocate(1010, shares([100, 10_000], 1)) == [10, 1000]
    assert allocate(1000, shares([1, 10**9], 1e6)) == [500, 500]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 60), st.integers(0, 400), st.booleans(), st.integers(0, 2**31))
def test_draws_repeat_rows_evenly(available: int, wanted: int, duplicates: bool, seed: int) -> None:
    rows = draw(available, wanted, duplicates=duplicates, seed=seed, name="a")
    times = np.bincount(rows, minlength=available)
    assert (np.diff(rows) >= 0).all()
    if not available:
        assert not len(rows)
    elif duplicates or wanted <= available:
        assert len(rows) == wanted
        assert set(times) <= {wanted // available, -(-wanted // available)}
    else:
        assert times.tolist() == [1] * available
    assert np.array_equal(rows, draw(available, wanted, duplicates=duplicates, seed=seed, name="a"))


def test_what_a_source_draws_depends_on_no_other(tmp_path: Path, mixed: Callable[..., Any]) -> None:
    a, b, c = files(tmp_path, a=50, b=50, c=50)
    two = mixed(datasets=[a | {"data_ratio": 1}, b | {"data_ratio": 1}], num_total_data=40)
    three = mixed(datasets=[c | {"data_ratio": 1}, b | {"data_ratio": 1}, a | {"data_ratio": 1}], num_total_data=60)
    assert counts(two, 0) == counts(three, 2)
    assert counts(two, 0) != Counter({name.replace("b", "a"): n for name, n in counts(two, 1).items()})


@pytest.mark.parametrize("sampler", [ShuffledSampler, NoDuplicatesSampler, BySourceSampler])
def test_batches_are_the_same_on_any_number_of_ranks(sampler: Any, tmp_path: Path, mixed: Callable[..., Any]) -> None:
    options = {"datasets": files(tmp_path, a=30, b=9), "num_total_data": 80, "allow_duplicate": True, "temperature": 2}

    def make(dataset: Any, seed: int) -> Any:
        arguments = (dataset, seed, 8) if sampler is ShuffledSampler else (dataset, seed, 8, lambda _: None)
        return sampler(*arguments)

    first, second = mixed(**options), mixed(**options, rank=1)
    check_sampler(make, first, batch_size=8)
    assert first.fingerprint() == second.fingerprint()
    assert second.lines == [] or all(not line.startswith("mix") for line in second.lines)
    for draw_number in range(make(first, 3).draws_per_epoch):
        whole = make(first, 3).batch(draw_number)
        for world_size in (1, 2, 3, 8):
            ranks = [share_of_rank(make(second, 3).batch(draw_number), rank, world_size) for rank in range(world_size)]
            assert [row for rows in ranks for row in rows] == list(whole)


def test_a_repeated_row_is_never_twice_in_a_no_duplicates_batch(tmp_path: Path, mixed: Callable[..., Any]) -> None:
    dataset = mixed(datasets=files(tmp_path, a=12, b=40), num_total_data=100, allow_duplicate=True, temperature=5)
    assert max(counts(dataset, 0).values()) >= 4
    sampler = NoDuplicatesSampler(dataset, 0, 8, lambda _: None)
    rng = np.random.default_rng(0)
    for number in range(sampler.draws_per_epoch):
        queries = [dataset.example(row, rng).query for row in sampler.batch(number)]
        assert len(set(queries)) == len(queries)


def test_by_source_batches_keep_homogeneous_sources_apart(tmp_path: Path, mixed: Callable[..., Any]) -> None:
    a, b, c = files(tmp_path, a=20, b=20, c=20)
    dataset = mixed(datasets=[a, b | {"batching": "mixed"}, c | {"batching": "mixed"}], use_all=True)
    sampler = BySourceSampler(dataset, 0, 10, lambda _: None)
    rng = np.random.default_rng(0)
    batches = [{dataset.example(row, rng).source for row in sampler.batch(n)} for n in range(sampler.draws_per_epoch)]
    assert batches.count({"a"}) == 2
    assert {"b", "c"} in batches
    assert all(batch <= {"b", "c"} or batch == {"a"} for batch in batches)


def test_prompts_of_row_source_and_mix(tmp_path: Path, mixed: Callable[..., Any]) -> None:
    a, b, c = files(tmp_path, a=3, b=3, c=3)
    write(tmp_path / "c.jsonl", 3, prompt="row: ")
    dataset = mixed(
        datasets=[a | {"prompt": "a: ", "passage_prompt": "pa: "}, b, c | {"prompt": "c: "}],
        query_prompt="mix: ",
        use_all=True,
    )
    rng = np.random.default_rng(0)
    examples = [dataset.example(row, rng) for row in (0, 3, 6)]
    assert [(one.query_prompt, one.passage_prompt) for one in examples] == [
        ("a: ", "pa: "),
        ("mix: ", None),
        ("row: ", None),
    ]
    assert [one.source for one in examples] == ["a", "b", "c"]
    assert [one.row for one in examples] == [0, 3, 6]


def test_any_dataset_may_be_a_source(tmp_path: Path, mixed: Callable[..., Any]) -> None:
    path = write(tmp_path / "a.jsonl", 12, neg=["n1", "n2"])
    inner = {"kind": "retrieval", "path": str(path), "negatives": 1, "held_out_rows": 3}
    dataset = mixed(datasets=[{"name": "core", "data": inner}, *files(tmp_path, b=8)], negatives=2, use_all=True)
    assert dataset.starts.tolist() == [0, 9, 17]
    assert len(dataset.example(0, np.random.default_rng(0)).passages) == 2
    assert "kind retrieval" not in dataset.lines[0]
    counted = [len(one) for one, _ in dataset.identity_blocks()]
    assert sum(counted) == 17
    flat = b"".join(ids.tobytes() for _, ids in dataset.identity_blocks())
    assert flat == b"".join(one for row in range(17) for one in dataset.identities(row))
    assert sorted(dataset.texts()) == sorted(set(dataset.texts()))
    held = dataset.held_out()
    assert held is not None
    assert all(key.startswith("core/") for key in held.queries)


def test_texts_are_those_of_the_rows_drawn(tmp_path: Path, mixed: Callable[..., Any]) -> None:
    write(tmp_path / "a.jsonl", 30, neg=["common"])
    dataset = mixed(datasets=[{"data_path": str(tmp_path / "a.jsonl")}], num_total_data=7)
    queries = set(counts(dataset, 0))
    texts = list(dataset.texts())
    assert len(texts) == 2 * 7 + 1 == len(set(texts))
    assert queries <= set(texts)


@pytest.mark.parametrize("rows", [None, 6])
def test_no_source_trains_on_what_another_holds_out(
    rows: int | None, tmp_path: Path, mixed: Callable[..., Any]
) -> None:
    write(tmp_path / "a.jsonl", 40, "same")
    write(tmp_path / "b.jsonl", 50, "same")
    dataset = mixed(
        datasets=[{"data_path": str(tmp_path / f"{n}.jsonl")} for n in "ab"], held_out_rows=rows, use_all=True
    )
    held = dataset.held_out()
    assert len(held.queries) == (rows or 9)
    trained = {text for row in range(len(dataset)) for text in (dataset.example(row, np.random.default_rng(0)).query,)}
    assert trained.isdisjoint(held.queries.values())
    leaks = [line for line in dataset.lines if "shares a text with what is held out" in line]
    assert leaks or rows is None
    for query, judged in held.qrels.items():
        assert [held.corpus[key].replace(" p", " q") for key in judged] == [held.queries[query]]


def test_the_table(tmp_path: Path, mixed: Callable[..., Any]) -> None:
    write(tmp_path / "a.jsonl", 10)
    (tmp_path / "a.jsonl").open("a").write("nonsense\n")
    b = write(tmp_path / "b.jsonl", 4)
    scored = tmp_path / "c.csv"
    scored.write_text("sentence1,sentence2,score\nx,y,1\nz,w,5\n")
    dataset = mixed(
        on_bad_row="skip",
        datasets={
            "name": ["a", "b", "c"],
            "data_path": [str(tmp_path / "a.jsonl"), str(b), str(scored)],
            "data_ratio": [3, 6, 1],
            "limit": [5, None, None],
            "min_score": 2.0,
            "weight": [1, 0.5, 1],
        },
        num_total_data=10,
        allow_duplicate=True,
    )
    at = dataset.lines.index("mix: 10 rows from 3 sources")
    cells = [line.split("  ") for line in dataset.lines[at + 1 :]]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in cells]
    assert rows[0][:7] == ["source", "read", "used", "repeated", "dropped", "rows", "share"]
    assert rows[1] == ["a", "11", "3", "0", "8", "3", "30.0%", "24", "-", "-", "1 bad, 5 over the limit, 2 not drawn"]
    assert rows[2][:7] == ["b", "4", "4", "2", "0", "6", "60.0%"]
    assert rows[3][:7] == ["c", "2", "1", "0", "1", "1", "10.0%"]
    assert rows[3][-1] == "1 below min_score"
    assert dataset.lines[-2] == "mix: data_ratio adds up to 10: shares are relative to that sum"
    assert dataset.lines[-1] == "mix: 'b': weight and negative_strategy act through the loss kind `by-source`"


def test_a_limit_keeps_the_proportions(tmp_path: Path, mixed: Callable[..., Any]) -> None:
    dataset = mixed(datasets=files(tmp_path, a=90, b=30), limit=12, use_all=True)
    assert dataset.starts.tolist() == [0, 9, 12]


def test_config_file_and_keys_beside_it_and_the_resolved_config_load_again(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", 5)
    yaml = tmp_path / "d.yaml"
    yaml.write_text(
        f"use_all: true\non_bad_row: skip\ndatasets:\n  data_path: [{tmp_path / 'a.jsonl'}]\n  prompt: 'Q: '\n"
    )
    registry = activate(["data"])[1]
    first = MixConfig.model_validate(
        {"kind": "mix", "config": str(yaml), "use_all": False}, context={"registry": registry}
    )
    assert (first.config, first.use_all, first.datasets[0].on_bad_row, first.datasets[0].prompt) == (
        None,
        False,
        "skip",
        "Q: ",
    )
    assert first.datasets[0].name == "a"
    again = MixConfig.model_validate(
        first.model_dump(mode="json", serialize_as_any=True), context={"registry": registry}
    )
    assert again == first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("use_all: maybe\ndatasets: {data_path: [a]}", "d.yaml:1: use_all: input should be a valid boolean"),
        (
            "datasets:\n  data_path: [a, b]\n  data_ratio: [1]",
            "d.yaml:3: datasets.data_ratio has 1 entries, datasets.data_path has 2: one each is due",
        ),
        (
            "datasets:\n  data_path: [a, b]\n  data_ratio:\n  - 1\n  - x",
            "d.yaml:5: datasets.1.data_ratio: input should be a valid number",
        ),
        ("datasets:\n  data_pth: [a]", "d.yaml:1: datasets: unknown key 'data_pth': did you mean 'data_path'?"),
        ("datasets:\n- data_path: a\n  wieght: 2", "d.yaml:3: datasets.0.wieght: unknown key: did you mean 'weight'?"),
        ("datasets: {data_path: a}", "a list per key is needed"),
        ("use_all: true", "d.yaml: datasets: this key is needed and missing"),
        (
            "num_total: 3\ndatasets: {data_path: [a]}",
            "d.yaml:1: num_total: unknown key: did you mean 'num_total_data'?",
        ),
        ("config: e.yaml\ndatasets: {data_path: [a]}", "d.yaml:1: a dataset file cannot name another one"),
        (
            "datasets:\n- data_path: x/a.jsonl\n- data_path: y/a.json",
            "two sources are called 'a': give them different `name`s",
        ),
        ("datasets:\n- {data_path: a, data_ratio: 1}\n- data_path: b", "'b' has no data_ratio, others have"),
        ("datasets:\n- {data_path: a, data_ratio: 0}", "every data_ratio is 0: nothing would be drawn"),
        ("datasets: []", "datasets is empty: name a source"),
        ("datasets:\n- {name: a}", "a source needs one of `data_path` and `data`"),
        (
            "datasets:\n- {data: {kind: pydocs}, split: x}",
            "`split` is of files: a source with `data` takes its own keys inside it",
        ),
    ],
)
def test_faults_of_a_dataset_yaml_are_told_with_its_lines(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "d.yaml"
    path.write_text(text)
    registry = activate(["data"])[1]
    run = document.parse(f"dataset_config: {path}", "train.yaml")
    with pytest.raises(ConfigError) as caught:
        load.resolve(registry, load.Request(registry.recipe("data"), run))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_faults_at_build(tmp_path: Path, mixed: Callable[..., Any]) -> None:
    (a,) = files(tmp_path, a=5)
    with pytest.raises(DataError, match="no such file or folder"):
        mixed(datasets=[{"data_path": str(tmp_path / "b.jsonl")}])
    with pytest.raises(ConfigError, match="held_out_rows=5: the mix's files have 5 rows: set at most 4"):
        mixed(datasets=[a], held_out_rows=5)
    with pytest.raises(ConfigError, match="'retrieval': `negatives` is of files: set it inside `data`"):
        mixed(datasets=[{"data": {"kind": "retrieval", "path": a["data_path"]}, "negatives": 2}])
    two = {"data": {"kind": "retrieval", "path": str(write(tmp_path / "two.jsonl", 2)), "held_out_rows": 1}}
    (held,) = mixed(datasets=[two]).held_out().queries.values()
    (tmp_path / "one.jsonl").write_text(json.dumps({"query": held, "pos": ["p"]}))
    one = {"data_path": str(tmp_path / "one.jsonl")}
    with pytest.raises(ConfigError, match="no row of any source is drawn"):
        mixed(datasets=[two | {"data_ratio": 0}, one | {"data_ratio": 1}])


def test_lists_of_the_seed_form() -> None:
    assert as_list({"name": ["a", "b"], "data_path": ["x", "y"], "batching": "mixed"}) == [
        {"batching": "mixed", "name": "a", "data_path": "x"},
        {"batching": "mixed", "name": "b", "data_path": "y"},
    ]
