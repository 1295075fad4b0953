"""The loop as a whole: what it measures, saves, exports, announces, and how it ends."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

from embed_core.config.component import EvaluatorConfig, LossConfig, ModelConfig, SamplerConfig
from embed_core.config.run import RunConfig, ScheduleConfig
from embed_core.distributed.process_group import Ranks
from embed_core.errors import CheckpointError, ConfigError, EmbedError
from embed_core.export.config import TransformersCheckpointConfig
from embed_core.plugin.hookspecs import hookimpl
from embed_core.testing.datasets import tiny_dataset
from embed_core.testing.tiny import TinyModel
from embed_core.train.checkpoint import TrainState
from embed_core.train.lr_schedule import learning_rate_factor
from embed_core.train.trainer import Components, Pace, Runtime, Trainer
from embed_core.types import Batch, LossOutput, Targets


class Scripted(EvaluatorConfig):
    """Evaluations whose values are known beforehand."""

    kind: Literal["scripted"] = "scripted"
    values: tuple[float, ...] = ()

    def build(self, context: Any, dataset: Any) -> Any:
        values = iter(self.values)

        def evaluate(encoder: Any) -> Mapping[str, float]:
            return {"way/measure": next(values), "way/other": 0.0}

        return SimpleNamespace(name="scripted", evaluate=evaluate)


class Rowwise(LossConfig):
    """A loss whose rows do not interact, or one that is not a number."""

    kind: Literal["rowwise"] = "rowwise"
    factor: float = 1.0
    bad_step: int = -1

    def build(self, context: Any) -> Any:
        def loss(batch: Batch, targets: Targets) -> LossOutput:
            positive_BD = batch.passage.dense_ND[targets.positive_columns_B]
            factor = math.nan if targets.step == self.bad_step else self.factor
            value = factor * (1 - (batch.query.dense_ND * positive_BD).sum(1)).mean()
            return LossOutput(value, {"rowwise": value.detach()})

        return loss


class InOrder(SamplerConfig):
    """Rows in order, round and round."""

    kind: Literal["in-order"] = "in-order"

    def build(self, context: Any, dataset: Any) -> Any:
        def batch(draw: int) -> Sequence[int]:
            return [row % len(dataset) for row in range(draw * self.batch_size, (draw + 1) * self.batch_size)]

        return SimpleNamespace(batch=batch, draws_per_epoch=max(1, len(dataset) // self.batch_size))


class Broken(ModelConfig):
    """A model that cannot be built."""

    kind: Literal["broken"] = "broken"

    def build(self, context: Any) -> Any:
        raise RuntimeError("planted in build")


class Failing:
    """Observer that raises when the run ends, or at a step."""

    @hookimpl
    def embed_run_ended(self, event: Any) -> None:
        raise RuntimeError("planted in an observer")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_run_measures_steps_and_exports(hello_run: Any, tmp_path: Path) -> None:
    seen = hello_run("train.max_steps=3", "train.evaluate_every_steps=2")
    assert [event.step for event in seen.steps] == [1, 2, 3]
    assert [event.step for event in seen.evaluations] == [0, 2, 3]
    assert {event.rows for event in seen.steps} == {6}
    assert {event.total_steps for event in seen.steps} == {3}
    assert [event.epoch for event in seen.steps] == pytest.approx([n / 5 for n in (1, 2, 3)])
    assert all(event.tokens <= event.padded_tokens for event in seen.steps)
    (end,) = seen.ends
    assert (end.error, end.steps, end.export_dir) == (None, 3, tmp_path / "run" / "model")
    assert end.evaluations == seen.result.evaluations
    exported = weights(end.export_dir)
    for name, value in seen.result.model.state_dict().items():
        assert torch.equal(exported[name], value), name


def test_learning_rates_are_the_schedules(hello_run: Any) -> None:
    seen = hello_run("train.max_steps=4", "train.optimizer.learning_rate=0.1", "train.schedule={warmup_steps: 2}")
    schedule = ScheduleConfig(kind="cosine", warmup_steps=2)
    assert [event.learning_rate for event in seen.steps] == [
        0.1 * learning_rate_factor(schedule, step, 4) for step in range(4)
    ]


@pytest.mark.parametrize(
    ("train", "per_epoch", "wanted"),
    [
        ({"epochs": 3}, 5, 15),
        ({"epochs": 3, "gradient_accumulation_steps": 4}, 5, 3),
        ({"epochs": 0.5}, 5, 2),
        ({"epochs": 0.01}, 5, 1),
        ({"epochs": 3, "max_steps": 7}, 5, 7),
    ],
)
def test_how_many_steps_there_are(train: dict[str, Any], per_epoch: int, wanted: int) -> None:
    config = RunConfig.model_construct(train=RunConfig.model_fields["train"].annotation.model_validate(train))
    assert Pace.of(config, SimpleNamespace(draws_per_epoch=per_epoch)).total_steps == wanted


def test_accumulated_steps_are_one_large_step(hello_run: Any) -> None:
    same = ("train.optimizer={epsilon: 0.001, learning_rate: 0.05}", "train.max_steps=3", "evaluation=[]")
    large = hello_run(*same, parts={"loss": Rowwise(), "sampler": InOrder(batch_size=12)}, out="large")
    small = hello_run(
        *same,
        "train.gradient_accumulation_steps=3",
        parts={"loss": Rowwise(), "sampler": InOrder(batch_size=4)},
        out="small",
    )
    assert list(small.losses.values()) == pytest.approx(list(large.losses.values()), abs=1e-6)
    assert [e.gradient_norm for e in small.steps] == pytest.approx([e.gradient_norm for e in large.steps], abs=1e-5)
    for name, value in weights(large.result.export_dir).items():
        torch.testing.assert_close(weights(small.result.export_dir)[name], value, rtol=1e-4, atol=1e-5)
    assert len(set(large.losses.values())) == 3


def test_deduplication_saves_tokens_and_changes_nothing(hello_run: Any) -> None:
    on = hello_run("engine.deduplicate=true", "evaluation=[]", out="on")
    off = hello_run("engine.deduplicate=false", "evaluation=[]", out="off")
    assert list(off.losses.values()) == pytest.approx(list(on.losses.values()), abs=1e-6)
    assert sum(event.tokens for event in off.steps) > sum(event.tokens for event in on.steps)


def test_prefetching_changes_nothing(hello_run: Any) -> None:
    runs = [hello_run(f"engine.prefetch={n}", "evaluation=[]", out=f"{n}").losses for n in (0, 1, 5)]
    assert runs[0] == runs[1] == runs[2]


def test_the_best_state_is_kept_and_exported(hello_run: Any, tmp_path: Path) -> None:
    seen = hello_run(
        "checkpoint={every_steps: 1, keep_last: 1}",
        "train.evaluate_every_steps=1",
        "train.best_metric=scripted/way/measure",
        parts={"evaluation": (Scripted(values=(0.95, 0.2, 0.9, 0.3, 0.4)),)},
    )
    folder = tmp_path / "run"
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]
    assert "exporting the best model, of step 2" in seen.lines
    state = torch.load(folder / "checkpoints/step-00000002/deepspeed/mp_rank_00_model_states.pt", weights_only=False)
    for name, value in weights(folder / "model").items():
        assert torch.equal(value, state["module"][f"model.{name}"]), name
    status = json.loads((folder / "run.json").read_text())
    assert (status["status"], status["best_step"], status["best_value"]) == ("finished", 2, 0.9)


def test_the_last_model_is_exported_where_it_is_the_best(hello_run: Any, tmp_path: Path) -> None:
    seen = hello_run("train.evaluate_every_steps=2", parts={"evaluation": (Scripted(values=(0.1, 0.2, 0.9)),)})
    assert not [line for line in seen.lines if "exporting" in line]
    assert json.loads((tmp_path / "run/run.json").read_text())["best_step"] == 4
    plain = hello_run("evaluation=[]", out="plain")
    for name, value in weights(tmp_path / "run/model").items():
        assert torch.equal(value, weights(plain.result.export_dir)[name])


def test_an_unknown_best_metric_shows_before_the_first_step(hello_run: Any) -> None:
    with pytest.raises(
        ConfigError, match="'scripted/way/mesure' is no metric of this run: did you mean 'scripted/way/"
    ):
        hello_run("train.best_metric=scripted/way/mesure", parts={"evaluation": (Scripted(values=(0.1,)),)})
    assert hello_run.last.steps == []


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (("checkpoint={every_steps: 3, keep_last: 9}",), [3, 4]),
        (("checkpoint={every_steps: 0, every_minutes: 1e-9, keep_last: 9}",), [1, 2, 3, 4]),
        (("checkpoint={every_steps: 0, every_minutes: 0}",), []),
        (("checkpoint={every_steps: 0, every_minutes: 60}",), [4]),
    ],
)
def test_when_states_are_saved(hello_run: Any, tmp_path: Path, settings: tuple[str, ...], wanted: list[int]) -> None:
    hello_run(*settings, "evaluation=[]")
    folder = tmp_path / "run" / "checkpoints"
    found = [int(path.name.removeprefix("step-")) for path in folder.iterdir()] if folder.exists() else []
    assert sorted(found) == wanted


def test_a_loss_that_is_no_number_stops_the_run(hello_run: Any, tmp_path: Path) -> None:
    with pytest.raises(EmbedError, match=r"the loss is nan at step 1 \(rows 0, 1, 2, 3, 4, 5\): lower train\.optim"):
        hello_run(parts={"loss": Rowwise(factor=math.nan), "sampler": InOrder(batch_size=6)})
    (end,) = hello_run.last.ends
    assert isinstance(end.error, EmbedError)
    assert end.export_dir is None
    status = json.loads((tmp_path / "run" / "run.json").read_text())
    assert status["status"] == "failed"
    assert "the loss is nan" in status["error"]


def test_skipped_steps_are_counted_across_a_resume(hello_run: Any, tmp_path: Path) -> None:
    parts = {"loss": Rowwise(bad_step=1)}
    same = ("train.non_finite=skip", "checkpoint.every_steps=1", "evaluation=[]")
    first = hello_run(*same, "train.max_steps=2", parts=parts)
    assert [event.metrics.get("skipped") for event in first.steps] == [None, 1.0]
    run = tmp_path / "run" / "run.json"
    run.write_text(run.read_text().replace('"finished"', '"running"'))
    second = hello_run(*same, "train.max_steps=4", parts=parts, resume=True)
    assert [event.metrics.get("skipped") for event in second.steps] == [1.0, 1.0]
    assert "1 of 4 steps were skipped: their loss or gradient was not finite" in second.lines


def test_the_strategy_is_chosen_and_said(hello_run: Any) -> None:
    seen = hello_run("train.max_steps=2", "evaluation=[]")
    (line,) = [line for line in seen.lines if "strategy" in line]
    assert re.fullmatch(r"strategy direct: a batch keeps [\d.]+ MiB of [\d.]+ GiB free", line)
    asked = hello_run("train.max_steps=2", "evaluation=[]", "engine.strategy=cached", out="asked")
    assert [line for line in asked.lines if "strategy" in line] == []
    assert list(asked.losses.values()) == pytest.approx(list(seen.losses.values()), abs=1e-6)


def test_a_run_that_cannot_be_built_ends_too_and_writes_nothing(hello_run: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="planted in build"):
        hello_run(parts={"model": Broken()})
    (end,) = hello_run.last.ends
    assert str(end.error) == "planted in build"
    assert list(tmp_path.iterdir()) == []


def test_an_observer_that_fails_at_the_end_does_not_hide_the_cause(hello_run: Any) -> None:
    with pytest.raises(RuntimeError, match="planted in build"):
        hello_run(parts={"model": Broken()}, observers=[Failing()])
    assert "an observer failed at the end of the run: RuntimeError: planted in an observer" in hello_run.last.lines
    with pytest.raises(RuntimeError, match="planted in an observer"):
        hello_run("train.max_steps=1", "evaluation=[]", observers=[Failing()])


@pytest.mark.parametrize("fail", [False, True])
def test_the_runs_own_observers_are_gone_afterwards(hello_run: Any, fail: bool) -> None:
    if fail:
        with pytest.raises(EmbedError):
            hello_run(parts={"loss": Rowwise(factor=math.inf)})
    else:
        hello_run()
    left = {type(plugin).__name__ for plugin in hello_run.last.manager.get_plugins()}
    assert left == {"module", "Recorder"}


def test_a_tracker_that_is_not_installed_costs_no_former_run(
    hello_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hello_run("evaluation=[]")
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    monkeypatch.setattr("embed_core.observers.trackers._is_installed", lambda package: False)
    with pytest.raises(ConfigError, match="'wandb' is not installed"):
        hello_run("tracking.report_to=[wandb]", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


def test_overwrite_starts_anew(hello_run: Any, tmp_path: Path) -> None:
    hello_run("checkpoint.every_steps=1", "train.max_steps=6", "evaluation=[]")
    hello_run("train.max_steps=2", "evaluation=[]", overwrite=True)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert not (tmp_path / "run" / "checkpoints").exists()
    with pytest.raises(CheckpointError, match="--overwrite replaces it"):
        hello_run()


def test_default_output_directory(hello_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hello_run("train.max_steps=1", "evaluation=[]", "name=mine", out=None)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("mine-20")
    assert (folder / "model" / "model.safetensors").exists()


def test_more_ranks_than_rows_are_refused_alike_on_every_rank() -> None:
    model = TinyModel()
    parts = Components(model, tiny_dataset(), SimpleNamespace(batch=lambda n: [1, 2], draws_per_epoch=1), None, ())  # type: ignore[arg-type]
    config = RunConfig.model_construct(sampler=InOrder(batch_size=4), checkpoint=TransformersCheckpointConfig())
    for rank in range(3):
        ranks = Ranks(rank, 3, rank, "cpu")
        runtime = Runtime(ranks, None, lambda event: None, print)  # type: ignore[arg-type]
        trainer = Trainer(config, parts, None, TrainState(), runtime)
        with pytest.raises(EmbedError, match="'in-order': batch 0 has 2 rows for 3 ranks: every rank needs one"):
            trainer._batch(0)
