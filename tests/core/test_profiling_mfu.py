"""Model FLOPs utilisation of real steps: what an event says against the texts of the step, and where it is written."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from embed_cli.display import PlainDisplay
from embed_cli.run_command import RunRequest, resolve
from embed_core.distributed.process_group import Ranks, leave
from embed_core.events import StepEvent
from embed_core.hardware.specs import measured_peak
from embed_core.inspection.parts import Parts
from embed_core.observers.trackers import tracked_values
from embed_core.plugin.hookspecs import hookimpl
from embed_core.profiling import mfu
from embed_core.profiling.flops import cost_of
from embed_core.profiling.mfu import MfuMeter
from embed_core.testing.datasets import tiny_dataset
from embed_core.testing.tiny import TinyModel
from embed_core.train.run import Options, run

torch.set_num_threads(1)
SETTINGS = (
    "model={from_scratch: {vocab_size: 200, hidden: 16, layers: 2, heads: 2}}",
    "per_device_train_batch_size=6",
    "evaluation=[]",
    "train.max_steps=2",
    "gradient_accumulation_steps=2",
    "checkpoint.every_minutes=0",
    "tracking.report_to=[]",
    "engine={precision: fp32, token_budget: 200}",
)
CPU = Ranks(0, 1, 0, "cpu")


class Events:
    def __init__(self) -> None:
        self.seen: list[StepEvent] = []

    @hookimpl
    def embed_step_ended(self, event: StepEvent) -> None:
        self.seen.append(event)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[], tuple[Any, Any, Any]]]:
    monkeypatch.setenv("EMBED_CACHE", str(tmp_path / "cache"))

    def train() -> tuple[Any, Any, Any]:
        request = RunRequest(("bge",), overrides=SETTINGS, output_dir=tmp_path / "run")
        config, manager, registry = resolve(request, 1)
        events, lines = Events(), list[str]()
        manager.register(events)
        run(config, manager, registry, Options(dataset=tiny_dataset(), announce=lines.append))
        parts = Parts(config, registry, CPU, dataset=tiny_dataset())
        return events.seen, lines, parts

    yield train
    leave()


def test_a_run_says_how_busy_its_devices_were(trained: Callable[[], tuple[Any, Any, Any]], tmp_path: Path) -> None:
    events, lines, parts = trained()
    model = parts.model()
    cost = cost_of(model)
    assert cost is not None
    peak = measured_peak("cpu", "fp32")
    steps = [event for event in events if event.evaluation is None]
    assert len(steps) == 2
    for event in steps:
        numbers = (2 * event.step - 2, 2 * event.step - 1)
        lengths = [one.length for number in numbers for one in parts.batches.host(model, number).encoded]
        assert event.flops == pytest.approx(cost.training(sum(lengths), sum(n * n for n in lengths)))
        assert event.peak_flops == peak
        assert event.mfu == pytest.approx(event.flops / event.seconds / peak)
    assert any(
        line.startswith("peak ") and "GFLOP/s in fp32, measured with matrix products on cpu" in line for line in lines
    )
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [record["mfu"] for record in records] == [pytest.approx(event.mfu) for event in steps]
    assert tracked_values(steps[0])["speed/mfu"] == steps[0].mfu


class Two(Ranks):
    """Rank 0 of two, whose other has the peak ``other``."""

    other: float | None = 5e9

    def gather(self, value: Any) -> list[Any]:
        return [value, type(self).other]


def test_the_peak_is_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import XLMRobertaConfig, XLMRobertaModel

    model = XLMRobertaModel(XLMRobertaConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    monkeypatch.setattr(mfu, "peak_of", lambda ranks, precision: (1e9, False))
    lines: list[str] = []
    assert MfuMeter(model, "bf16", Two(0, 2, 0, "cpu"), lines.append).peak == 6e9
    assert lines == [], "a data sheet is nothing to announce"
    monkeypatch.setattr(Two, "other", None)
    assert MfuMeter(model, "bf16", Two(0, 2, 0, "cpu"), lines.append).peak is None


def test_a_model_whose_cost_is_not_known_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mfu, "peak_of", lambda ranks, precision: pytest.fail("asked"))
    meter = MfuMeter(TinyModel(), "fp32", CPU, pytest.fail)
    assert (meter.peak, meter.flops(100, 1000)) == (None, None)


def event(step: int, **changes: Any) -> StepEvent:
    facts: dict[str, Any] = {"rank": 0, "step": step, "total_steps": 9, "epoch": 0.1, "loss": 1.0, "metrics": {}}
    facts |= {"learning_rate": 1e-3, "gradient_norm": None, "seconds": 0.5, "rows": 8, "tokens": 75}
    return StepEvent(**(facts | {"padded_tokens": 100} | changes))


@pytest.mark.parametrize(
    ("flops", "peak", "seconds", "wanted"),
    [(3e9, 12e9, 0.5, 0.5), (None, 12e9, 0.5, None), (3e9, None, 0.5, None), (3e9, 12e9, 0.0, None)],
)
def test_utilisation_of_an_event(flops: float | None, peak: float | None, seconds: float, wanted: float | None) -> None:
    found = event(1, flops=flops, peak_flops=peak, seconds=seconds)
    assert found.mfu == wanted
    assert tracked_values(found).get("speed/mfu") == wanted


def test_the_display_shows_it_over_its_window() -> None:
    stream = io.StringIO()
    display = PlainDisplay(Console(file=stream, width=80), every_seconds=0.0)
    display.embed_step_ended(event(1, flops=3e9, peak_flops=12e9))
    display.embed_step_ended(event(2, flops=6e9, peak_flops=12e9, seconds=1.0))
    display.embed_step_ended(event(3))
    first, second, third = stream.getvalue().splitlines()
    assert "padding 25.0%  MFU 50.0%  lr 1.00e-03" in first
    assert "MFU 50.0%" in second, "9 of 18 GFLOP that 1.5 seconds allow"
    assert "MFU" not in third, "not of a part of the window"
