"""Trackers: what reaches TensorBoard's file, what the others are called with, and every error."""

from __future__ import annotations

import math
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from embed_core.config.run import TrackingConfig
from embed_core.errors import ConfigError
from embed_core.events import RunEvent, StepEvent
from embed_core.observers.trackers import Tracker, flat_parameters, make_trackers, tracked_values
from embed_core.plugin.manager import plugin_manager

EVALUATION = {"held-out/dense/nDCG@10": 0.25}


def _step(step: int, *, rank: int = 0, loss: float = 2.0, evaluation: dict[str, float] | None = None) -> StepEvent:
    return StepEvent(
        rank=rank,
        step=step,
        total_steps=5,
        epoch=step / 5,
        loss=loss,
        metrics={"dense": 1.5, "sparse": math.nan},
        learning_rate=1e-5,
        gradient_norm=None,
        seconds=0.5,
        rows=8,
        tokens=90,
        padded_tokens=100,
        evaluation=evaluation,
    )


def _end(rank: int = 0) -> RunEvent:
    return RunEvent(rank, Path("out"), 5, None, None)


def _points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def _tensorboard(tmp_path: Path, **options: Any) -> list[Tracker]:
    config = TrackingConfig(report_to=("tensorboard",), log_every_steps=options.pop("every", 1))
    return make_trackers(config, name="demo", output_dir=tmp_path, parameters={"train": {"lr": 0.5}}, **options)


def test_tensorboard_file_holds_the_run(tmp_path: Path) -> None:
    from accelerate.state import PartialState

    before = dict(PartialState._shared_state)
    manager = plugin_manager()
    for tracker in _tensorboard(tmp_path, every=2):
        manager.register(tracker)
    manager.hook.embed_step_ended(event=_step(0, evaluation=EVALUATION))
    for step in range(1, 6):
        manager.hook.embed_step_ended(event=_step(step, loss=float(step)))
    manager.hook.embed_step_ended(event=_step(5, evaluation={"held-out/dense/nDCG@10": 0.5}))
    manager.hook.embed_run_ended(event=_end())
    points = _points(tmp_path / "tensorboard")
    assert points["train/loss"] == [(1, 1.0), (2, 2.0), (4, 4.0), (5, 5.0)]
    assert points["eval/held-out/dense/nDCG_10"] == [(0, 0.25), (5, 0.5)]
    assert points["speed/padding_share"][0][1] == pytest.approx(0.1)
    assert "train/terms/sparse" not in points  # NaN
    hparams = next((tmp_path / "tensorboard").glob("*/hparams.yml"))
    assert hparams.read_text().strip() == "train.lr: 0.5"
    # No accelerate state, hence no process group, device or thread count of its own.
    assert dict(PartialState._shared_state) == before


def test_a_resumed_run_hides_the_steps_that_are_run_again(tmp_path: Path) -> None:
    for resumed_step, steps in ((None, (1, 2, 3)), (1, (2,))):
        (tracker,) = _tensorboard(tmp_path, resumed_step=resumed_step)
        for step in steps:
            tracker.embed_step_ended(_step(step, loss=10.0 * step + (resumed_step or 0)))
        tracker.embed_run_ended(_end())
    assert _points(tmp_path / "tensorboard")["train/loss"] == [(1, 10.0), (2, 21.0)]


def test_other_ranks_track_nothing(tmp_path: Path) -> None:
    assert _tensorboard(tmp_path, rank=1) == []
    assert not list(tmp_path.iterdir())


def test_nothing_asked_for_is_nothing_made(tmp_path: Path) -> None:
    assert make_trackers(TrackingConfig(report_to=()), name="x", output_dir=tmp_path, parameters={}) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_tracker_that_is_not_installed(rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        make_trackers(TrackingConfig(report_to=("wandb",)), name="x", output_dir=tmp_path, parameters={}, rank=rank)
    assert str(caught.value) == (
        "tracking.report_to: 'wandb' is not installed: `pip install wandb`, or take it out of tracking.report_to"
    )


def test_a_folder_of_that_name_is_no_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "swanlab").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "swanlab", raising=False)
    with pytest.raises(ConfigError, match="'swanlab' is not installed"):
        make_trackers(TrackingConfig(report_to=("swanlab",)), name="x", output_dir=tmp_path, parameters={})


class FakeRun:
    """Stands for the run object of wandb and swanlab."""

    def __init__(self, calls: list[Any]) -> None:
        self._calls = calls

    def log(self, values: dict[str, float], step: int) -> None:
        self._calls.append(("log", step, values))

    def finish(self) -> None:
        self._calls.append(("finish",))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """wandb, swanlab and mlflow as modules that write down how they are called."""
    made: list[Any] = []

    class Config(dict[str, Any]):
        def update(self, values: dict[str, Any], allow_val_change: bool) -> None:  # type: ignore[override]
            made.append(("config", values))

    def init(**options: Any) -> FakeRun:
        made.append(("init", options))
        return FakeRun(made)

    for name in ("wandb", "swanlab"):
        module = ModuleType(name)
        module.__dict__.update(init=init, config=Config())
        monkeypatch.setitem(sys.modules, name, module)
    mlflow = ModuleType("mlflow")
    limits = SimpleNamespace(MAX_PARAM_VAL_LENGTH=10, MAX_PARAMS_TAGS_PER_BATCH=100)
    mlflow.__dict__.update(
        utils=SimpleNamespace(validation=limits),
        search_experiments=lambda filter_string: [],
        create_experiment=lambda name, artifact_location, tags: made.append(("experiment", name)) or "7",
        start_run=lambda **options: made.append(("init", options)),
        log_params=lambda values: made.append(("config", values)),
        log_metrics=lambda values, step: made.append(("log", step, values)),
        end_run=lambda: made.append(("finish",)),
    )
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    for name in ("wandb", "swanlab", "mlflow"):
        sys.modules[name].__spec__ = ModuleSpec(name, None, origin="fake")
    return made


@pytest.mark.parametrize("kind", ["wandb", "swanlab", "mlflow"])
def test_the_other_trackers_are_called_as_they_expect(kind: Any, calls: list[Any], tmp_path: Path) -> None:
    (tracker,) = make_trackers(
        TrackingConfig(report_to=(kind,), project="mine"), name="demo", output_dir=tmp_path, parameters={"a": {"b": 1}}
    )
    tracker.embed_step_ended(_step(0, evaluation=EVALUATION))
    tracker.embed_step_ended(_step(1, rank=1))
    tracker.embed_run_ended(_end())
    named = {call[0]: call[1] for call in calls if len(call) == 2}
    if kind == "wandb":
        assert named["init"] == {"project": "mine", "name": "demo", "dir": str(tmp_path)}
    if kind == "swanlab":
        assert named["init"] == {"project": "mine", "experiment_name": "demo", "logdir": str(tmp_path / "swanlab")}
    if kind == "mlflow":
        assert named["experiment"] == "mine"
        assert named["init"]["run_name"] == "demo"
    assert named["config"] == {"a.b": 1}
    assert [call for call in calls if call[0] == "log"] == [("log", 0, {"eval/held-out/dense/nDCG_10": 0.25})]


def test_mlflow_drops_a_parameter_that_is_too_long_without_failing(calls: list[Any], tmp_path: Path) -> None:
    parameters = {"short": 1, "long": "x" * 11}
    make_trackers(TrackingConfig(report_to=("mlflow",)), name="x", output_dir=tmp_path, parameters=parameters)
    assert ("config", {"short": 1}) in calls


def test_a_tracker_that_cannot_start(calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> None:
        raise RuntimeError("no API key\nconfigured")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(ConfigError) as caught:
        make_trackers(TrackingConfig(report_to=("wandb",)), name="x", output_dir=tmp_path, parameters={})
    assert str(caught.value) == (
        "tracking.report_to: 'wandb' could not start (RuntimeError: no API key configured): mend that, or take it out "
        "of tracking.report_to"
    )


def test_a_tracker_that_fails_later_is_dropped_and_the_run_goes_on() -> None:
    class Gone:
        logged = 0

        def log(self, values: Any, step: int) -> None:
            self.logged += 1
            raise ConnectionError("server gone")

        def finish(self) -> None:
            raise AssertionError("a dropped tracker is not called again")

    said: list[str] = []
    gone = Gone()
    tracker = Tracker("wandb", gone, 1, said.append)
    for step in (1, 2):
        tracker.embed_step_ended(_step(step))
    tracker.embed_run_ended(_end())
    assert gone.logged == 1
    assert said == ["tracker 'wandb' failed and is off from here: ConnectionError: server gone"]


def test_names_and_values_of_a_step() -> None:
    assert tracked_values(_step(2)) == {
        "train/loss": 2.0,
        "train/lr": 1e-5,
        "train/epoch": 0.4,
        "train/terms/dense": 1.5,
        "speed/rows_per_s": 16.0,
        "speed/tokens_per_s": 180.0,
        "speed/padding_share": pytest.approx(0.1),
    }


def test_parameters_are_flat() -> None:
    nested = {"a": {"b": None, "c": [1, "é"]}, "d": [{"e": True}, {"e": 2.5}], "f": Path("x"), "g": []}
    assert flat_parameters(nested) == {
        "a.b": "none",
        "a.c": '[1, "é"]',
        "d.0.e": True,
        "d.1.e": 2.5,
        "f": "x",
        "g": "[]",
    }
