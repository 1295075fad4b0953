"""Training states: complete or not there, pruned, refused where they are damaged or of another run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from embed_core.distributed.process_group import Ranks
from embed_core.errors import CheckpointError, EmbedError
from embed_core.train.checkpoint import CheckpointStore, TrainState, check_same_run

ALONE = Ranks(0, 1, 0, "cpu")
SAVING = ("checkpoint.every_steps=2",)


class FakeEngine:
    """Saves one file; loads nothing."""

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        (Path(folder) / tag).mkdir()
        (Path(folder) / tag / "weights.pt").write_text("weights")


def store(tmp_path: Path, *steps: int, keep: int = 2, best: int | None = None) -> CheckpointStore:
    made = CheckpointStore(tmp_path / "checkpoints", keep, ALONE)
    for step in steps:
        made.save(FakeEngine(), TrainState(step=step, best_step=best, evaluations={step: {"e/m": 0.5}}))
    return made


def test_the_last_k_and_the_best_are_kept(tmp_path: Path) -> None:
    assert store(tmp_path, 1, 2, 3, 4, 5, keep=2, best=2).steps() == [2, 4, 5]
    assert store(tmp_path, 6, 7, 8, keep=1, best=7).steps() == [7, 8]


def test_a_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    state = TrainState(3, {0: {"a/b": 0.25}, 3: {}}, 3, 0.25, 2, 1, {"seed": 1})
    made = store(tmp_path)
    made.save(FakeEngine(), state)
    assert made.read_state(3) == state


def test_a_half_written_state_is_no_state_and_is_cleared(tmp_path: Path) -> None:
    made = store(tmp_path, 2)
    for name in (".step-00000004.tmp", ".step-00000002.old", "step-4", "notes"):
        (made.folder / name).mkdir()
    assert made.steps() == [2]
    made.clear_leftovers()
    assert sorted(path.name for path in made.folder.iterdir()) == ["notes", "step-00000002", "step-4"]


def test_a_later_evaluation_is_noted(tmp_path: Path) -> None:
    made = store(tmp_path, 2)
    made.note(TrainState(step=2, evaluations={2: {"e/m": 0.75}}))
    assert made.read_state(2).evaluations == {2: {"e/m": 0.75}}
    made.note(TrainState(step=3))
    assert made.steps() == [2]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": {}, "evaluations": {}, "nonsense": 1}'])
def test_a_damaged_state_is_named_with_the_way_out(tmp_path: Path, content: str) -> None:
    made = store(tmp_path, 2)
    (made.path(2) / "state.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"state\.json: damaged .*: delete .*step-00000002 to resume from an ear"):
        made.read_state(2)


def test_a_missing_or_cut_file_of_deepspeed_is_named(tmp_path: Path) -> None:
    made = store(tmp_path, 2)
    weights = made.path(2) / "deepspeed" / "weights.pt"
    weights.write_text("weig")
    with pytest.raises(CheckpointError, match=r"deepspeed/weights\.pt: has 4 bytes instead of 7: delete"):
        made.read_state(2)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"deepspeed/weights\.pt: is missing: delete"):
        made.read_state(2)


def state(**facts: Any) -> TrainState:
    identity = {"seed": 1, "data": "f00", "model": {"kind": "x"}}
    return TrainState(**{"identity": identity, **facts})


def test_what_changed_is_named() -> None:
    other = state(identity={"seed": 2, "data": "f00", "model": {"kind": "y"}})
    with pytest.raises(CheckpointError, match=r'not the run that was saved \(seed: 1 → 2; model: {"kind": "x"} → '):
        check_same_run(state(), other)


def test_ranks_and_stage_may_change_where_nothing_is_sharded() -> None:
    check_same_run(state(world_size=1), state(world_size=4))
    for saved, now in (((1, 1), (2, 1)), ((2, 0), (2, 1)), ((2, 3), (2, 2))):
        with pytest.raises(CheckpointError, match=f"saved by {saved[0]} ranks at ZeRO stage {saved[1]}"):
            check_same_run(state(world_size=saved[0], zero_stage=saved[1]), state(world_size=now[0], zero_stage=now[1]))


class Interrupt:
    """Observer that ends the run at a step."""

    def __init__(self, step: int, error: BaseException) -> None:
        from embed_core.plugin.hookspecs import hookimpl

        def embed_step_ended(event: Any) -> None:
            if event.step == step and event.evaluation is None:
                raise error

        self.embed_step_ended = hookimpl(embed_step_ended)


@pytest.mark.parametrize("stage", [0, 2])
def test_resumed_losses_are_those_of_an_uninterrupted_run(hello_run: Any, stage: int) -> None:
    settings = (*SAVING, "train.max_steps=6", f"engine.zero_stage={stage}", "train.evaluate_every_steps=3")
    whole = hello_run(*settings, out="whole")
    with pytest.raises(KeyboardInterrupt):
        hello_run(*settings, observers=[Interrupt(5, KeyboardInterrupt())])
    resumed = hello_run(*settings, resume=True)
    assert "resuming after step 4" in resumed.lines
    assert resumed.losses == {step: whole.losses[step] for step in (5, 6)}
    assert resumed.result.evaluations == whole.result.evaluations


def test_a_run_that_died_before_its_first_state_starts_again(hello_run: Any) -> None:
    with pytest.raises(RuntimeError, match="planted"):
        hello_run(*SAVING, observers=[Interrupt(1, RuntimeError("planted"))])
    resumed = hello_run(*SAVING, resume=True)
    assert "no checkpoint was written before the run stopped: starting from step 0" in resumed.lines
    assert list(resumed.losses) == [1, 2, 3, 4]


def test_a_finished_run_is_trained_on_with_more_steps_and_else_says_so(hello_run: Any) -> None:
    first = hello_run("train.max_steps=3", "checkpoint.every_steps=50", "train.schedule.kind=constant")
    for steps, asked in ((3, "3"), (2, "2")):
        with pytest.raises(CheckpointError, match=f"has done 3 steps and {asked} were asked for: raise --max-steps"):
            hello_run(f"train.max_steps={steps}", "checkpoint.every_steps=50", resume=True)
    status = json.loads((first.result.output_dir / "run.json").read_text())
    assert status["status"] == "finished"
    more = hello_run("train.max_steps=5", "checkpoint.every_steps=50", resume=True)
    assert list(more.losses) == [4, 5]
    assert sorted(more.result.evaluations) == [0, 3, 5], "what the finished run measured at its end is kept"


def test_a_run_stopped_before_its_export_only_exports(hello_run: Any, tmp_path: Path) -> None:
    first = hello_run("checkpoint.every_steps=50")
    export = first.result.export_dir / "model.safetensors"
    weights = export.read_bytes()
    shutil.rmtree(first.result.export_dir)
    status = tmp_path / "run" / "run.json"
    status.write_text(status.read_text().replace('"finished"', '"running"'))
    resumed = hello_run("checkpoint.every_steps=50", resume=True)
    assert resumed.steps == []
    assert export.read_bytes() == weights


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("seed=7", "seed: 42 → 7"),
        ("loss.margin=0.5", "loss: "),
        ("sampler.batch_size=5", "sampler: "),
        ("engine.precision=bf16", 'precision: "fp32" → "bf16"'),
        ("engine.zero_stage=1", "has 1 at stage 1"),
    ],
)
def test_another_run_is_not_resumed(hello_run: Any, tmp_path: Path, setting: str, named: str) -> None:
    folder = tmp_path / "run" / "checkpoints"
    with pytest.raises(KeyboardInterrupt):
        hello_run(*SAVING, observers=[Interrupt(3, KeyboardInterrupt())])
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(CheckpointError) as refused:
        hello_run(*SAVING, setting, resume=True)
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)
    assert [path.name for path in folder.iterdir()] == ["step-00000002"]
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_changed_data_is_not_resumed(hello_run: Any) -> None:
    from embed_core.testing.datasets import tiny_dataset

    hello_run(*SAVING)
    with pytest.raises(CheckpointError, match="this is not the run that was saved \\(data: "):
        hello_run(*SAVING, "train.max_steps=6", resume=True, dataset=tiny_dataset(held_out_rows=7))


@pytest.mark.parametrize("stage", [0, 1])
def test_damaged_weights_are_a_user_error(hello_run: Any, tmp_path: Path, stage: int) -> None:
    settings = (*SAVING, f"engine.zero_stage={stage}")
    hello_run(*settings)
    for path in (tmp_path / "run" / "checkpoints" / "step-00000004" / "deepspeed").iterdir():
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(CheckpointError, match=r"step-00000004: DeepSpeed's part cannot be loaded .*: delete it to"):
        hello_run(*settings, "train.max_steps=6", resume=True)


def test_resume_and_overwrite_exclude_each_other(hello_run: Any, tmp_path: Path) -> None:
    hello_run(*SAVING)
    with pytest.raises(EmbedError, match="give one of them"):
        hello_run(*SAVING, resume=True, overwrite=True)
    assert (tmp_path / "run" / "checkpoints").exists()
