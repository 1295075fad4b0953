"""Phases: each trains from the weights of the one before; the run is one run for observers, states and a resume."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import pytest
import torch
from safetensors.torch import load_file

from embed_core.config.component import CheckpointConfig, DatasetConfig, LossConfig
from embed_core.config.run import PhaseConfig, RunConfig, TrainConfig
from embed_core.errors import CheckpointError, ConfigError
from embed_core.events import StepEvent
from embed_core.plugin.hookspecs import hookimpl
from embed_core.samplers.config import ShuffledConfig
from embed_core.testing.datasets import RowsDataset
from embed_core.types import Batch, LossOutput, Targets
from embed_hello.config import HelloModelConfig

ALL_ROWS = [(f"question {n}", [f"answer {n} of many"], []) for n in range(24)]


class OtherRows(DatasetConfig):
    """Rows of its own; or, with ``from_model``, rows made with the model of the phases before."""

    kind: Literal["other-rows"] = "other-rows"
    from_model: bool = False
    seen: ClassVar[list[Any]] = []

    def waits(self) -> bool:
        return self.from_model

    def build(self, context: Any) -> Any:
        self.seen.append((context.phase, context.phase_dir, context.encoder is not None))
        if not self.from_model:
            return RowsDataset(ALL_ROWS)
        assert context.phase_dir.is_dir()
        kept = context.phase_dir / "order.json"
        if not kept.exists():
            vectors = context.encoder.encode([row[0] for row in ALL_ROWS], "query").dense_ND
            kept.write_text(json.dumps(vectors.sum(1).argsort().tolist()))
        return RowsDataset([ALL_ROWS[n] for n in json.loads(kept.read_text())])


class Pull(LossConfig):
    """Pulls positives close, as fast as ``factor`` says."""

    kind: Literal["pull"] = "pull"
    factor: float = 1.0
    models: ClassVar[list[Any]] = []

    def build(self, context: Any) -> Any:
        self.models.append(copy.deepcopy(context.model.state_dict()))

        def loss(batch: Batch, targets: Targets) -> LossOutput:
            assert batch.query.dense_ND is not None
            assert batch.passage.dense_ND is not None
            positive_BD = batch.passage.dense_ND[targets.positive_columns_B]
            value = self.factor * (1 - (batch.query.dense_ND * positive_BD).sum(1)).mean()
            return LossOutput(value, {"pull": value.detach()})

        return loss


def train(**keys: Any) -> TrainConfig:
    return TrainConfig.model_validate(keys)


TWO = (
    PhaseConfig(name="first", train=train(max_steps=3)),
    PhaseConfig(
        name="second",
        data=OtherRows(),
        loss=Pull(factor=2.0),
        train=train(max_steps=2, optimizer={"learning_rate": 0.05}),
    ),
)
SAME = ("train.max_steps=null", "train.optimizer.learning_rate=0.01")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_phase_is_a_run_from_the_weights_before(hello_run: Any, tmp_path: Path, stage: int) -> None:
    settings = (*SAME, f"engine.zero_stage={stage}")
    both = hello_run(*settings, parts={"phases": TWO}, out="both")
    first = hello_run(*SAME, "train.max_steps=3", out="first")
    assert_equal(weights(tmp_path / "both/phases/first/model"), weights(tmp_path / "first/model"))
    # The second one on its own, from what the first left.
    second = hello_run(
        "train.max_steps=2",
        "train.optimizer.learning_rate=0.05",
        f"model.name_or_path={tmp_path / 'first/model'}",
        dataset=RowsDataset(ALL_ROWS),
        parts={"loss": Pull(factor=2.0), "evaluation": ()},
        out="second",
    )
    exported = weights(tmp_path / "both/model")
    for name, value in weights(tmp_path / "second/model").items():
        torch.testing.assert_close(exported[name], value, rtol=0, atol=1e-7)
    losses = [*first.losses.values(), *second.losses.values()]
    assert list(both.losses.values()) == pytest.approx(losses, abs=1e-6)
    assert [event.learning_rate for event in both.steps[3:]] == [event.learning_rate for event in second.steps]


def test_observers_see_one_run(hello_run: Any, tmp_path: Path) -> None:
    seen = hello_run(*SAME, parts={"phases": TWO})
    assert [(event.step, event.phase) for event in seen.steps] == [
        (1, "first"), (2, "first"), (3, "first"), (4, "second"), (5, "second"),
    ]  # fmt: skip
    assert {event.total_steps for event in seen.steps} == {5}
    assert [event.epoch for event in seen.steps] == pytest.approx([0.2, 0.4, 0.6, 0.25, 0.5])
    assert [event.step for event in seen.evaluations] == [0, 3, 5]
    assert [line for line in seen.lines if line.startswith("phase")] == [
        "phase 1 of 2, first: 3 steps",
        "phase 2 of 2, second: 2 steps",
    ]
    written = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [(one["step"], one["phase"]) for one in written if "evaluation" in one] == [
        (0, "first"), (3, "first"), (5, "second"),
    ]  # fmt: skip
    (end,) = seen.ends
    assert (end.steps, end.export_dir) == (5, tmp_path / "run/model")


def test_a_loss_is_built_from_the_model_it_starts_with(hello_run: Any, tmp_path: Path) -> None:
    Pull.models.clear()
    seen = hello_run(*SAME, parts={"phases": TWO})
    (start,) = Pull.models
    exported = weights(tmp_path / "run/phases/first/model")
    for name in exported:
        assert torch.equal(start[name], exported[name]), name
    assert any(not torch.equal(start[name], value) for name, value in seen.result.model.state_dict().items())


def test_rows_made_with_the_model_before_them(hello_run: Any, tmp_path: Path) -> None:
    OtherRows.seen.clear()
    made = PhaseConfig(name="made", data=OtherRows(from_model=True), train=train(max_steps=2))
    seen = hello_run(*SAME, parts={"phases": (*TWO, made)})
    # Those that can be built are built before the first step, the others with the model, once.
    assert OtherRows.seen == [
        ("second", tmp_path / "run/phases/second", False),
        ("made", tmp_path / "run/phases/made", True),
    ]
    assert [event.total_steps for event in seen.steps] == [7] * 7


class Stop(BaseException):
    """Stands for a kill: nothing is tidied up after it."""


class Killer:
    def __init__(self, step: int) -> None:
        self.step = step

    @hookimpl
    def embed_step_ended(self, event: StepEvent) -> None:
        if event.evaluation is None and event.step == self.step:
            raise Stop


@pytest.mark.parametrize("step", [2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("stage", [0, 2])
def test_killed_in_any_phase_and_resumed_is_the_uninterrupted_run(
    hello_run: Any, tmp_path: Path, step: int, stage: int
) -> None:
    made = PhaseConfig(name="made", data=OtherRows(from_model=True), train=train(max_steps=2))
    parts = {"phases": (*TWO, made)}
    settings = (*SAME, "checkpoint.every_steps=1", f"engine.zero_stage={stage}")
    whole = hello_run(*settings, parts=parts, out="whole")
    with pytest.raises(Stop):
        hello_run(*settings, parts=parts, observers=[Killer(step)], out="killed")
    OtherRows.seen.clear()
    rest = hello_run(*settings, parts=parts, resume=True, out="killed")
    assert rest.losses == {n: loss for n, loss in whole.losses.items() if n >= step}
    assert_equal(weights(tmp_path / "killed/model"), weights(tmp_path / "whole/model"))
    if step > 6:  # the rows of the last phase are on disk, and the model has moved on
        assert OtherRows.seen == [("made", tmp_path / "killed/phases/made", False)]
    assert rest.result.evaluations == whole.result.evaluations


def test_a_resume_with_fewer_phases_is_refused(hello_run: Any) -> None:
    settings = (*SAME, "checkpoint.every_steps=1")
    with pytest.raises(Stop):
        hello_run(*settings, parts={"phases": TWO}, observers=[Killer(5)])
    with pytest.raises(CheckpointError, match=r"not the run that was saved \(phase 2 of it, this one has 1\): use its"):
        hello_run(*settings, resume=True)
    with pytest.raises(CheckpointError, match="not the run that was saved"):
        hello_run(*settings, resume=True, parts={"phases": (TWO[0], TWO[1].model_copy(update={"loss": Pull()}))})


def test_overwriting_a_run_removes_its_phases(hello_run: Any, tmp_path: Path) -> None:
    hello_run(*SAME, parts={"phases": TWO})
    assert (tmp_path / "run/phases/first/model").is_dir()
    hello_run("train.max_steps=1", overwrite=True)
    assert not (tmp_path / "run/phases").exists()


def test_a_model_of_the_caller_is_trained_through_all_phases(hello_run: Any, tmp_path: Path) -> None:
    built = hello_run(*SAME, parts={"phases": TWO}, out="built")
    plain = hello_run("train.max_steps=1", "train.optimizer.learning_rate=1e-30", out="plain").result.model
    given = hello_run(*SAME, parts={"phases": TWO}, model=plain, out="given")
    assert given.result.model is plain
    assert list(given.losses.values()) == pytest.approx(list(built.losses.values()), abs=1e-6)


def test_too_many_ranks_for_a_later_phase_show_at_once(hello_run: Any) -> None:
    from embed_core.train.phases import Phases

    sampler = ShuffledConfig(batch_size=2)
    config = RunConfig.model_construct(
        phases=(TWO[0], PhaseConfig.model_construct(name="small", sampler=sampler, data=None, loss=None, train=None)),
        sampler=ShuffledConfig(batch_size=8),
        train=TrainConfig(),
    )
    with pytest.raises(ConfigError, match="2 rows cannot be shared by 3 ranks"):
        Phases(config, None, None).check(3)  # type: ignore[arg-type]


def test_what_a_phase_leaves_out_is_the_runs() -> None:
    run = TrainConfig.model_validate({"max_steps": 9, "optimizer": {"learning_rate": 0.5, "weight_decay": 0.25}})
    phase = PhaseConfig(name="a", train=train(epochs=2, max_steps=20, optimizer={"learning_rate": 0.125}))
    config = RunConfig.model_construct(train=run, phases=(phase, PhaseConfig(name="b")), data="data", loss="loss")
    merged = config.in_phase(0).train
    assert (merged.epochs, merged.max_steps) == (2, 9)
    assert (merged.optimizer.learning_rate, merged.optimizer.weight_decay) == (0.125, 0.25)
    assert config.in_phase(1).train == run
    assert (config.in_phase(1).data, config.in_phase(1).phases) == ("data", ())
    free = RunConfig.model_construct(train=TrainConfig(), phases=(phase,))
    assert free.in_phase(0).train.max_steps == 20


def test_a_phase_reads_texts_as_its_own_model_says(hello_run: Any, tmp_path: Path) -> None:
    """The first phase sees less of each text; the second goes on from its weights with the run's own limit."""
    short = HelloModelConfig(buckets=64, width=8, dimension=8, max_characters=9)
    first = PhaseConfig(name="first", model=short, train=train(max_steps=2))
    both = hello_run(*SAME, parts={"phases": (first, TWO[1])}, out="both")
    hello_run(*SAME, "train.max_steps=2", "model.max_characters=9", out="short")
    hello_run(*SAME, "train.max_steps=2", out="long")
    left = weights(tmp_path / "both/phases/first/model")
    assert_equal(left, weights(tmp_path / "short/model"))
    assert any(not torch.equal(v, left[name]) for name, v in weights(tmp_path / "long/model").items())
    assert both.result is not None
    assert both.result.model.max_characters == 512


def test_a_phase_s_model_has_the_weights_of_the_run_s(hello_run: Any) -> None:
    wider = HelloModelConfig(buckets=64, width=16, dimension=8)
    message = r"the model of a phase has another \S+ than that of the phase before: `model` of a phase says how texts"
    with pytest.raises(ConfigError, match=message):
        hello_run(*SAME, parts={"phases": (TWO[0], PhaseConfig(name="wider", model=wider))})


def test_what_building_a_model_says_is_said_once(hello_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later phase takes the weights over: that its model started anew would not be true."""
    build = HelloModelConfig.build

    def announced(self: HelloModelConfig, context: Any) -> Any:
        context.announce("weights: new")
        return build(self, context)

    monkeypatch.setattr(HelloModelConfig, "build", announced)
    seen = hello_run(*SAME, parts={"phases": TWO})
    assert seen.lines.count("weights: new") == 1


def test_evaluations_are_of_the_runs_own_data_in_every_phase(hello_run: Any) -> None:
    seen = hello_run(*SAME, parts={"phases": TWO})
    first, *others = [list(event.evaluation) for event in seen.evaluations]
    assert first
    assert others == [first, first]


def test_trained_parameters_of_a_loss_leave_with_the_model(hello_run: Any) -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Linear(1, 1, bias=False)

        def forward(self, batch: Batch, targets: Targets) -> LossOutput:
            assert batch.query.dense_ND is not None
            value = (self.scale(torch.ones(1, 1)) - 3).square().mean() + 0 * batch.query.dense_ND.sum()
            return LossOutput(value, {"scaled": value.detach()})

    class ScaledConfig(LossConfig):
        kind: Literal["scaled"] = "scaled"

        def build(self, context: Any) -> Any:
            return Scaled()

    cards = []

    class Checkpoint(CheckpointConfig):
        kind: Literal["cards"] = "cards"

        def build(self, context: Any) -> Any:
            return SimpleNamespace(export=lambda model, state, directory, card: cards.append(card))

    parts = {"loss": ScaledConfig(), "checkpoint": Checkpoint()}
    hello_run("train.max_steps=40", "train.optimizer.learning_rate=0.3", "evaluation=[]", parts=parts)
    (card,) = cards
    assert float(card.loss_state["scale.weight"]) == pytest.approx(3, abs=0.3)
