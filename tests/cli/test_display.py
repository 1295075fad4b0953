"""The display: plain lines to the letter, the live display as a terminal shows it, tables, and no torch."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from embed_cli.display import Display, PlainDisplay, Recent, RichDisplay, clock_time, make_display
from embed_cli.plugins_view import print_plugins
from embed_cli.tables import compare, grid, grid_width, plain_lines, rich_table
from embed_core.events import RunEvent, StepEvent
from embed_core.plugin.manager import PluginStatus, plugin_manager

BEFORE = {
    "held-out/dense/nDCG@10": 0.3,
    "held-out/dense/MRR@10": 0.25,
    "held-out/multi/nDCG@10": 0.5,
    "held-out/multi/MRR@10": 0.4,
}
AFTER = {
    "held-out/dense/nDCG@10": 0.4504,
    "held-out/dense/MRR@10": 0.25,
    "held-out/multi/nDCG@10": 0.4,
    "held-out/multi/MRR@10": 0.6,
}
THREE = {f"x/{way}/{m}": 0.5 for way in ("dense", "multi-vector") for m in ("nDCG@10", "MRR@10", "Recall@10")}


def _step(step: int, **changes: Any) -> StepEvent:
    facts: dict[str, Any] = {
        "rank": 0,
        "step": step,
        "total_steps": 300,
        "epoch": step / 300,
        "loss": 2.31414,
        "metrics": {"dense": 2.1, "sparse": 3.0},
        "learning_rate": 1.9e-5,
        "gradient_norm": 0.923,
        "seconds": 0.5,
        "rows": 1000,
        "tokens": 9000,
        "padded_tokens": 9100,
    }
    return StepEvent(**(facts | changes))


def _end(evaluations: dict[int, dict[str, float]] | None = None, **changes: Any) -> RunEvent:
    facts: dict[str, Any] = {
        "rank": 0,
        "output_dir": Path("runs/x"),
        "steps": 300,
        "error": None,
        "export_dir": Path("runs/x/model"),
        "evaluations": evaluations or {},
    }
    return RunEvent(**(facts | changes))


class Clock:
    """Seconds that pass when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Flushing(io.StringIO):
    """A stream that counts how often it is flushed."""

    flushed = 0

    def flush(self) -> None:
        self.flushed += 1


def _plain(every: float = 10.0) -> tuple[PlainDisplay, Flushing, Clock]:
    stream, clock = Flushing(), Clock()
    return PlainDisplay(Console(file=stream, width=80), every, clock), stream, clock


def test_plain_lines_to_the_letter() -> None:
    display, stream, clock = _plain()
    manager = plugin_manager()
    manager.register(display)
    display.announce("data: [9] rows of /a/very/long/path" + "/deep" * 20)
    manager.hook.embed_step_ended(event=_step(0, evaluation=BEFORE))
    for step in range(1, 6):
        manager.hook.embed_step_ended(event=_step(step))
        clock.now += 4
    manager.hook.embed_step_ended(event=_step(300, gradient_norm=None))
    manager.hook.embed_run_ended(event=_end({0: BEFORE, 300: AFTER}))
    fields = "loss 2.3141  dense 2.1000  sparse 3.0000  2,000 rows/s  18,000 tokens/s  padding 1.1%  lr 1.90e-05"
    assert stream.getvalue().splitlines() == [
        "data: [9] rows of /a/very/long/path" + "/deep" * 20,
        "step 0  held-out  dense         nDCG@10 0.300  MRR@10 0.250",
        "step 0  held-out  multi-vector  nDCG@10 0.500  MRR@10 0.400",
        f"step 1/300  {fields}  grad 0.92  ETA 2:30",
        f"step 4/300  {fields}  grad 0.92  ETA 2:28",
        f"step 300/300  {fields}  ETA 0:00",
        "held-out: step 0 → step 300",
        "                nDCG@10               MRR@10",
        "  dense         0.300 → 0.450 +0.150  0.250 → 0.250 +0.000",
        "  multi-vector  0.500 → 0.400 -0.100  0.400 → 0.600 +0.200",
        "finished 300 steps; the model is in runs/x/model",
    ]
    assert stream.flushed >= 6


def test_the_loss_is_not_its_own_term() -> None:
    """Losses name what they return; where another term has that name, it is shown."""
    display, stream, _ = _plain(0)
    display.embed_step_ended(_step(1, metrics={"loss": 2.31414, "accuracy": 0.5}))
    display.embed_step_ended(_step(2, metrics={"loss": 1.5}))
    same, other = stream.getvalue().splitlines()
    assert same.startswith("step 1/300  loss 2.3141  accuracy 0.5000  ")
    assert other.startswith("step 2/300  loss 2.3141  loss 1.5000  ")


def test_lines_of_a_run_with_phases_name_the_phase() -> None:
    display, stream, _ = _plain()
    display.embed_step_ended(_step(1, phase="stage-2-easier"))
    display.embed_step_ended(_step(1, phase="stage-2-easier", evaluation={"held-out/dense/nDCG@10": 0.5}))
    step, evaluation = stream.getvalue().splitlines()
    assert step.startswith("step 1/300  stage-2-easier  loss 2.3141  dense 2.1000")
    assert evaluation == "step 1  stage-2-easier  held-out  dense  nDCG@10 0.500"
    live = io.StringIO()
    shown = RichDisplay(Console(file=live, force_terminal=True, width=80))
    shown.embed_step_ended(_step(1, phase="stage-2-easier"))
    shown.close()
    assert "stage-2-easier   loss 2.3141" in live.getvalue()


def test_a_stream_without_unicode_gets_ascii() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    PlainDisplay(Console(file=stream)).embed_run_ended(_end({0: BEFORE, 3: AFTER}))
    assert b"0.300 -> 0.450 +0.150" in raw.getvalue()


def test_the_end_says_where_the_model_is_or_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    display, stream, _ = _plain()
    display.embed_run_ended(_end(error=RuntimeError("x"), export_dir=None, steps=0))
    (tmp_path / "runs" / "x").mkdir(parents=True)
    display.embed_run_ended(_end(error=RuntimeError("x"), export_dir=None, steps=1234))
    display.embed_run_ended(_end(export_dir=None))
    assert stream.getvalue().splitlines() == [
        "stopped after 0 steps; nothing was written",
        "stopped after 1,234 steps; what there is lies in runs/x",
        "finished 300 steps in runs/x",
    ]


def test_the_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    plain, stream, _ = _plain()
    rich = RichDisplay(Console(file=stream, force_terminal=True))
    for display in (make_display(rank=1), plain, rich):
        display.embed_step_ended(_step(1, rank=1))
        display.embed_step_ended(_step(1, rank=1, evaluation=BEFORE))
        display.embed_run_ended(_end({0: BEFORE}, rank=1))
    make_display(rank=1).announce("hello")
    assert stream.getvalue() == capsys.readouterr().out == ""


def test_the_kind_of_display_follows_the_console() -> None:
    assert type(make_display(Console(file=io.StringIO()))) is PlainDisplay
    assert type(make_display(Console(file=io.StringIO(), force_terminal=True))) is RichDisplay
    assert type(make_display(Console(file=io.StringIO(), force_terminal=True), rank=3)) is Display


@pytest.fixture
def terminal() -> Iterator[tuple[RichDisplay, io.StringIO, Clock]]:
    stream, clock = io.StringIO(), Clock()
    console = Console(file=stream, force_terminal=True, width=80, height=30, color_system=None, legacy_windows=False)
    display = RichDisplay(console, clock)
    yield display, stream, clock
    display.close()


def test_the_live_display_shows_the_last_step_and_keeps_its_width(terminal: Any) -> None:
    display, stream, clock = terminal
    display.embed_step_ended(_step(1))
    clock.now += 65
    display.embed_step_ended(_step(150, metrics={f"term{i}": 1.0 for i in range(9)}))
    display.announce("checkpoint [saved]")
    display.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue().replace("\r", "\n"))
    *_, bar, losses, terms, speed = [line.rstrip() for line in shown.split("\n") if line.strip()]
    assert re.fullmatch(r"━+╸ +150/300  elapsed 1:06  ETA 1:15", bar)
    assert losses == "loss 2.3141   term0 1.0000   term1 1.0000   term2 1.0000   term3 1.0000"
    assert terms == "term4 1.0000   term5 1.0000   term6 1.0000   term7 1.0000   term8 1.0000"
    assert speed == "2,000 rows/s   18,000 tokens/s   padding 1.1%   lr 1.90e-05   grad 0.92"
    assert max(map(len, (bar, losses, terms, speed))) <= 80
    assert "checkpoint [saved]\n" in shown
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 1  # the cursor is back


def test_the_end_of_a_run_frees_the_terminal_then_prints_the_table(terminal: Any) -> None:
    display, stream, _ = terminal
    display.embed_step_ended(_step(0, evaluation=BEFORE))
    display.embed_step_ended(_step(300))
    display.embed_step_ended(_step(300, evaluation=AFTER))
    display.embed_run_ended(_end({0: BEFORE, 300: AFTER}))
    shown = stream.getvalue()
    table = shown[shown.index("\x1b[?25h") :]
    assert "held-out: step 0 → step 300" in table
    assert "multi-vector  0.500 → 0.400 -0.100  0.400 → 0.600 +0.200" in table
    assert "finished 300 steps; the model is in runs/x/model" in table
    assert "step 0  held-out  dense" in shown
    assert "step 300  held-out" not in shown  # the table says it


def test_rates_are_over_the_window_and_survive_a_pause() -> None:
    recent = Recent(window_seconds=2.0)
    for step, seconds in enumerate((100.0, 0.5, 0.5, 0.5, 0.5), start=1):
        recent.add(_step(step, seconds=seconds))
    assert recent.per_second(lambda e: e.rows) == 2000.0
    assert recent.seconds_left(_step(100)) == 100.0
    slow = Recent(window_seconds=2.0)
    slow.add(_step(1, seconds=30.0))
    slow.add(_step(2, seconds=20.0))
    assert slow.per_second(lambda e: e.rows) == 40.0
    assert Recent().per_second(lambda e: e.rows) == Recent().padding_share == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (94.4, "1:34"), (59.7, "1:00"), (7294, "2:01:34"), (-1, "0:00")]
)
def test_clock_time(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


# --- tables ---------------------------------------------------------------------------------------------------------


def test_one_comparison_per_evaluator_first_against_last() -> None:
    middle = dict.fromkeys(BEFORE, 0.0)
    first, second = compare({300: AFTER | {"sts/spearman": 0.9}, 150: middle, 0: BEFORE | {"sts/spearman": 0.8}})
    assert (first.evaluator, first.ways, first.measures) == ("held-out", ("dense", "multi"), ("nDCG@10", "MRR@10"))
    assert first.after["multi", "MRR@10"] == 0.6
    assert plain_lines(second) == ["sts: step 0 → step 300", "    spearman", "    0.800 → 0.900 +0.100"]
    assert compare({}) == []


def test_a_single_evaluation_has_no_difference() -> None:
    (only,) = compare({0: BEFORE})
    assert plain_lines(only) == [
        "held-out: step 0",
        "                nDCG@10  MRR@10",
        "  dense         0.300    0.250",
        "  multi-vector  0.500    0.400",
    ]


def test_what_was_measured_once_only_has_a_dash() -> None:
    (only,) = compare({0: {"x/dense/P@1": 0.5}, 2: {"x/all/P@1": 0.75}})
    assert plain_lines(only)[2:] == ["  dense  0.500 → –", "  all    – → 0.750"]


def test_three_measures_fit_80_columns_and_narrower_terminals_get_rows() -> None:
    (comparison,) = compare({0: THREE, 9: THREE})
    assert len(grid(comparison, 80)) == 3
    for width in (80, 60):
        stream = io.StringIO()
        Console(file=stream, width=width).print(rich_table(comparison, width))
        assert "…" not in stream.getvalue()
        assert max(len(line.rstrip()) for line in stream.getvalue().splitlines()) <= width
        assert stream.getvalue().count("0.500 → 0.500 +0.000") == 6
    narrow = grid(comparison, 60)
    assert len(narrow) == 7
    assert grid_width(narrow) <= 60


def test_gains_are_green_losses_red_and_no_change_plain() -> None:
    (comparison,) = compare({0: BEFORE, 300: AFTER})
    stream = io.StringIO()
    Console(file=stream, width=80, force_terminal=True, color_system="standard").print(rich_table(comparison, 80))
    shown = stream.getvalue()
    assert "\x1b[32m+0.150" in shown
    assert "\x1b[31m-0.100" in shown
    assert "m+0.000" not in shown


# --- embed plugins ----------------------------------------------------------------------------------------------------

PLUGINS = [
    PluginStatus("bge", "embed-bge", "0.1.0", "active"),
    PluginStatus(
        "broken", "embed-broken", "1.0", "failed", "plugin 'broken' cannot be imported: [Errno 2] " + "x" * 99
    ),
]


def test_plugins_off_a_terminal_are_one_whole_line_each() -> None:
    stream = io.StringIO()
    print_plugins(Console(file=stream, width=40), PLUGINS)
    assert stream.getvalue().splitlines() == [
        "plugin  package       version  status  cause",
        "bge     embed-bge     0.1.0    active",
        "broken  embed-broken  1.0      failed  plugin 'broken' cannot be imported: [Errno 2] " + "x" * 99,
    ]


def test_plugins_on_a_terminal_fold_the_cause_and_lose_nothing() -> None:
    stream = io.StringIO()
    print_plugins(Console(file=stream, width=80, force_terminal=True, color_system=None), PLUGINS)
    shown = stream.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("x") == 99
    assert "[Errno 2]" in " ".join(shown.split())


def test_no_plugin_at_all() -> None:
    stream = io.StringIO()
    print_plugins(Console(file=stream, width=40), [])
    assert stream.getvalue() == "no plugin is installed: `pip install embed-bge` is a beginning\n"


def test_importing_the_display_imports_no_torch() -> None:
    code = "import embed_cli.display, embed_cli.plugins_view, sys; print({'torch', 'numpy'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert answer.strip() == "set()"
