"""The benchmarks' arithmetic, their rows and their settings; nothing is timed."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of ``benchmarks/``, which is a folder of scripts and no installed package."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import cases, clock, fixture, report, run, train_embed, train_flagembedding

    modules: dict[str, ModuleType] = {"cases": cases, "clock": clock, "fixture": fixture, "report": report, "run": run}
    return SimpleNamespace(**modules, embed=train_embed, flag=train_flagembedding)


def case(bench: Any, name: str = "mnrl", **changes: Any) -> Any:
    found = next(c for c in bench.cases.CASES if c.name == name)
    return dataclasses.replace(found, **changes)


def measurement(bench: Any, seconds: float, steps: int = 3, start: float = 100.0) -> Any:
    """Steps of ``seconds`` each, the first of which took long; half of the time on the processor."""
    wall = [start + 50 + seconds * n for n in range(steps)]
    return bench.report.Measurement([(w, w / 2) for w in wall], [2.0 - n / 10 for n in range(steps)], 10.0 * seconds)


def test_speed_leaves_out_start_up_and_the_first_steps(bench: Any) -> None:
    small = case(bench, batch_size=8, steps=3, skip=1)
    found = measurement(bench, seconds=4.0)
    assert found.rows_per_second(small) == pytest.approx(8 * 2 / 8.0)
    assert found.rows_per_second(small, cpu=True) == pytest.approx(8 * 2 / 4.0)


def test_an_incomplete_measurement_is_no_measurement(bench: Any) -> None:
    with pytest.raises(AssertionError, match="2 steps were marked, 3 asked for"):
        measurement(bench, 1.0, steps=2).rows_per_second(case(bench, steps=3, skip=1))


def test_ratios_are_taken_pair_by_pair_without_the_failures(bench: Any) -> None:
    small = case(bench, batch_size=8, steps=3, skip=1)
    fast = [measurement(bench, s) for s in (1.0, 2.0, 1.0)]
    slow = [measurement(bench, 4.0), measurement(bench, 4.0), None]
    assert bench.report.ratios(small, "a", "b", {"a": fast, "b": slow}) == pytest.approx([4.0, 2.0])


def test_report_shows_spread_target_failures_and_losses(bench: Any) -> None:
    small = case(bench, batch_size=8, steps=3, skip=1)
    names = [system.name for system in small.systems]
    found = {names[0]: [measurement(bench, s) for s in (1.0, 2.0, 1.0)]}
    found[names[1]] = [measurement(bench, 4.0), measurement(bench, 4.0), None]
    text = bench.report.case_report(small, found, tokens_per_row=10.0)
    assert "| embed | 8.00 (4.00–8.00) | 80 | 16.00 |  | 20 | 3 |" in text
    assert "| sentence-transformers | 2.00 (2.00–2.00) | 20 | 4.00 |  | 40 | 2 (1 failed) |" in text
    assert "| embed / sentence-transformers | 3.00× (2.00–4.00) | 3.00× | 3.50 | **missed** |" in text
    assert "| 1 | 2.0000 | 2.0000 |" in text
    assert "| 3 | 1.8000 | 1.8000 |" in text


def test_utilisation_is_of_the_work_that_all_systems_do(bench: Any) -> None:
    """Known to one system only: padding and a second forward are no work."""
    small = case(bench, batch_size=8, steps=3, skip=1)
    names = [system.name for system in small.systems]
    known = dataclasses.replace(measurement(bench, 1.0), flops=[9.0, 80.0, 80.0], peak_flops=200.0)
    found = {names[0]: [known], names[1]: [measurement(bench, 4.0)]}
    text = bench.report.case_report(small, found, tokens_per_row=10.0)
    assert "| embed | 8.00 (8.00–8.00) | 80 | 16.00 | 40.0% |" in text
    assert "| sentence-transformers | 2.00 (2.00–2.00) | 20 | 4.00 | 10.0% |" in text


def test_gpu_cases_need_a_gpu(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {c.device for c in bench.run.default_cases(bench.run.parse(["--gpu"]))} == {"cuda"}
    assert {c.device for c in bench.run.default_cases(bench.run.parse(["--large"]))} == {"cpu"}
    monkeypatch.setattr(bench.run, "gpu", lambda: "")
    monkeypatch.setattr("sys.argv", ["run", "--gpu"])
    with pytest.raises(SystemExit, match="no CUDA device is visible here: the GPU cases need one"):
        bench.run.main()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_trainer_gets_one_core_or_the_gpu(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    started = {}

    def start(command: Any, *, env: Any, **more: Any) -> None:
        started.update(command=command, hidden=env.get("CUDA_VISIBLE_DEVICES"))

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(bench.run.subprocess, "run", start)
    (tmp_path / "m.json").write_text('{"marks": [], "losses": [], "peak_mib": 1}')
    bench.run.train(bench.cases.EMBED, {"measured": str(tmp_path / "m.json"), "device": device}, tmp_path)
    assert (started["command"][0], started["hidden"]) == (
        ("taskset", "") if device == "cpu" else (sys.executable, None)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpu-bge", "gpu-qwen"])
def test_gpu_cases_train_in_miniature_on_a_cpu(bench: Any, tmp_path: Path, name: str) -> None:
    small = {"hidden": 32, "layers": 1, "heads": 2, "vocab_size": 600, "batch_size": 4, "steps": 3, "skip": 1}
    tiny = case(bench, name, device="cpu", query_max_len=32, passage_max_len=32, **small)
    rows = [{"query": f"what is number {n}?", "pos": [f"the number {n} of many"], "lang": ""} for n in range(60)]
    text = bench.run.run_case(tiny, rows, tmp_path / "case", 1)
    assert "failed" not in text
    curves = [json.loads(p.read_text())["losses"] for p in sorted((tmp_path / "case").glob("*/measured.json"))]
    assert len(curves) == 2
    assert curves[0] == pytest.approx(curves[1], abs=2e-2)


def test_report_of_a_system_that_always_failed(bench: Any) -> None:
    small = case(bench, batch_size=8, steps=3, skip=1)
    found = {"embed": [measurement(bench, 1.0)], "sentence-transformers": [None]}
    text = bench.report.case_report(small, found, tokens_per_row=10.0)
    assert "| sentence-transformers | failed |" in text
    assert "no pair" in text
    assert "not measured" in text


def test_peers_get_the_rows_in_the_order_of_our_sampler(bench: Any, tmp_path: Path) -> None:
    rows = [{"query": f"q{n}", "pos": [f"p{n}"], "lang": "en"} for n in range(40)]
    small = case(bench, batch_size=4, steps=5)
    plain, ordered = bench.fixture.write_rows(rows, small, tmp_path)
    given, drawn = ([json.loads(line)["query"] for line in path.read_text().splitlines()] for path in (plain, ordered))
    assert len(given) == 20
    # The definition of the sampler: one permutation per epoch by a generator of (seed, epoch).
    assert drawn == [given[n] for n in np.random.default_rng([bench.fixture.SEED, 0]).permutation(20)]
    assert drawn != given


def test_teacher_rows_have_seven_negatives_of_their_language(bench: Any) -> None:
    rows = [
        {"query": f"{lang} {n}", "pos": [f"{lang} passage {n // 2}"], "lang": lang} for n in range(30) for lang in "ab"
    ]
    made = bench.fixture.with_teacher(rows, 10)
    assert len(made) == 10
    for row in made:
        texts = row["pos"] + row["neg"]
        assert len(set(texts)) == len(texts) == 8
        assert {text[0] for text in texts} == {row["query"][0]}
        assert len(row["pos_scores"]) == 1
        assert len(row["neg_scores"]) == 7


@pytest.mark.parametrize(("query", "passage", "score"), [("abcd", "xabcx", 2.5), ("ab", "ab", 5.0), ("abc", "", 0.0)])
def test_teacher_score_is_the_share_of_trigrams(bench: Any, query: str, passage: str, score: float) -> None:
    assert bench.fixture.overlap(query, passage) == pytest.approx(score)


def test_every_system_has_its_script_and_every_ratio_its_systems(bench: Any) -> None:
    assert len({c.name for c in bench.cases.CASES}) == len(bench.cases.CASES)
    for one in bench.cases.CASES:
        names = {system.name for system in one.systems}
        assert all((ROOT / "benchmarks" / f"{system.script}.py").is_file() for system in one.systems)
        assert all({ratio.over, ratio.under} <= names for ratio in one.ratios)
        assert 1 <= one.skip < one.steps


def test_large_cases_run_only_when_asked_for(bench: Any) -> None:
    chosen = {flag: {c.name for c in bench.run.default_cases(bench.run.parse([*flag]))} for flag in ((), ("--large",))}
    assert chosen["--large",] - chosen[()] == set(bench.cases.LARGE)
    assert bench.run.parse(["--case", "m3", "--repeats", "2"]).case == ["m3"]


def test_a_failed_trainer_is_noted_and_its_output_kept(bench: Any, tmp_path: Path) -> None:
    broken = bench.cases.System("broken", "no_such_script")
    assert bench.run.train(broken, {"measured": str(tmp_path / "none.json"), "device": "cpu"}, tmp_path) is None
    log = (tmp_path / "log.txt").read_text()
    assert "no_such_script" in log
    assert "CalledProcessError" in log


def test_both_sides_of_a_case_are_told_the_same(bench: Any, tmp_path: Path) -> None:
    m3 = case(bench, "m3")
    orders = [
        bench.run.order(m3, system, tmp_path / "m", tmp_path / "r", tmp_path / "o", tmp_path / system.name)
        for system in m3.systems
    ]
    differ = {key for key in orders[0] if orders[0][key] != orders[1][key]}
    assert differ == {"output", "measured"}
    words = bench.flag.arguments(orders[1])
    told = dict(zip(words[::2], words[1::2], strict=True))
    assert told["--train_data"] == orders[1]["ordered_rows"]
    assert told["--per_device_train_batch_size"] == str(m3.batch_size)
    assert told["--train_group_size"] == "8"


def event(**facts: Any) -> Any:
    return SimpleNamespace(**facts, total_steps=2, flops=6e9, peak_flops=None)


def test_clock_writes_what_the_report_reads(bench: Any, tmp_path: Path) -> None:
    clock, path = bench.clock.Clock(), tmp_path / "measured.json"
    observer = bench.embed.ClockObserver(clock, path, rows=4)
    for step in (1, 2):
        assert not path.exists()
        observer.embed_step_ended(event(rows=4, loss=1.0 / step, step=step))
    found = bench.report.Measurement(**json.loads(path.read_text()))
    assert found.losses == [1.0, 0.5]
    assert len(found.marks) == 2
    assert found.marks[0][0] < found.marks[1][0]
    assert 10 < found.peak_mib < 1e6


def test_clock_refuses_a_batch_of_another_size(bench: Any, tmp_path: Path) -> None:
    observer = bench.embed.ClockObserver(bench.clock.Clock(), tmp_path / "measured.json", rows=4)
    with pytest.raises(AssertionError, match="64 rows, not 4"):
        observer.embed_step_ended(event(rows=64, loss=1.0, step=1))
