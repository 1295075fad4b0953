"""The tables and the plot at the end of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from embed_core.events import RunEvent
from embed_mrl import plugin, report

FIGURES = {
    "held-out/dense@128/fp32/nDCG@10": 0.5,
    "held-out/dense@128/fp32/MRR@10": 0.4,
    "held-out/dense@128/binary/nDCG@10": 0.45,
    "held-out/dense@128/binary/MRR@10": 0.35,
    "held-out/dense@20/int8/nDCG@10": 0.25,
    "held-out/dense@20/int8/MRR@10": 0.2,
}
OTHERS = {"held-out/dense/nDCG@10": 0.1, "sts/spearman": 0.3, "x/sparse@3/fp32/nDCG@10": 0.2}


def event(tmp_path: Path, evaluations: Any = None, **options: Any) -> RunEvent:
    given = {0: dict.fromkeys(FIGURES, 0.01), 9: OTHERS | FIGURES} if evaluations is None else evaluations
    facts = {"rank": 0, "output_dir": tmp_path, "steps": 9, "error": None, "export_dir": None, **options}
    return RunEvent(evaluations=given, **facts)


def test_points_are_read_off_the_metrics() -> None:
    found = report.points(OTHERS | FIGURES | {"other/dense@8/fp32/AP(rel=2)@10": 0.5})
    assert list(found) == ["held-out", "other"]
    assert [(p.dim, p.precision, p.size) for p in found["held-out"]] == [
        (128, "fp32", 512),
        (128, "binary", 16),
        (20, "int8", 20),
    ]
    assert found["held-out"][2].values == {"nDCG@10": 0.25, "MRR@10": 0.2}
    assert found["other"][0].values == {"AP(rel=2)@10": 0.5}
    assert report.points(OTHERS) == {}
    assert report.last({}) == {}


def test_the_end_of_a_run_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    plugin.embed_run_ended(event(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "held-out: size against quality"
    assert lines[1].split() == ["dimensions", "precision", "bytes", "nDCG@10", "kept", "MRR@10"]
    assert [line.split() for line in lines[2:5]] == [
        ["128", "fp32", "512", "0.5000", "100.0%", "0.4000"],
        ["128", "binary", "16", "0.4500", "90.0%", "0.3500"],
        ["20", "int8", "20", "0.2500", "50.0%", "0.2000"],
    ]
    assert len({len(line) for line in lines[1:5]}) == 1, "aligned"
    assert lines[5] == f"tables: {tmp_path}/dimensions.md; plot: {tmp_path}/dimensions.png"
    table = (tmp_path / "dimensions.md").read_text()
    assert "## held-out" in table
    assert "| 20 | int8 | 20 | 0.2500 | 50.0% | 0.2000 |" in table
    assert (tmp_path / "dimensions.png").read_bytes().startswith(b"\x89PNG")


def test_the_plot_shows_every_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    kept: list[Any] = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, path, **_: kept.append(self))
    assert "plot:" in report.drawn(report.points(FIGURES), tmp_path)
    (axes,) = kept[0].axes
    curves = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}
    assert curves == {"fp32": ([512], [0.5]), "binary": ([16], [0.45]), "int8": ([20], [0.25])}
    assert (axes.get_ylabel(), axes.get_xscale(), axes.get_title()) == ("nDCG@10", "log", "held-out")


def test_without_matplotlib_it_says_how(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    plugin.embed_run_ended(event(tmp_path))
    assert capsys.readouterr().out.endswith("no plot: `pip install embed-mrl[plot]` draws one\n")
    assert (tmp_path / "dimensions.md").exists()


def test_a_directory_that_cannot_be_written_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dimensions.md").mkdir()
    plugin.embed_run_ended(event(tmp_path))
    assert "could not be written" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [{"evaluations": {}}, {"evaluations": {3: OTHERS}}, {"rank": 1}, {"error": ValueError("stopped")}],
    ids=str,
)
def test_silent_where_there_is_nothing_to_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    plugin.embed_run_ended(event(tmp_path, **options))
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())


def test_nothing_to_keep_of_a_model_that_finds_nothing() -> None:
    (of,) = report.points({"x/dense@8/fp32/nDCG@10": 0.0}).values()
    assert report.rows(of)[1] == ["8", "fp32", "32", "0.0000", "-"]
