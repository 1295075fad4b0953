"""One plugin that implements every hook there is, installed as a package would be, in a real run."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from embed_core.plugin.hookspecs import hookspec  # noqa: F401 - the name the plugin below is written against
from processes import run

PLUGIN = '''
import json
import os
from pathlib import Path
from typing import ClassVar, Literal

from embed_core.config.addons import AddOn
from embed_core.config.component import (
    CheckpointConfig, DatasetConfig, EvaluatorConfig, LossConfig, ModelConfig, SamplerConfig,
)
from embed_core.config.recipe import Recipe
from embed_core.plugin.hookspecs import hookimpl

EMBED_REQUIRES = ("hello",)
LOG = Path(os.environ["EVERY_HOOK_LOG"])


def note(**facts):
    with LOG.open("a") as log:
        log.write(json.dumps(facts) + "\\n")


class Model(ModelConfig):
    kind: Literal["every"] = "every"

    def build(self, context):
        note(built="model")
        return context.registry.get("model", "hello")(buckets=128).build(context)


class Loss(LossConfig):
    kind: Literal["every"] = "every"

    def build(self, context):
        note(built="loss")
        return context.registry.get("loss", "infonce")().build(context)


class Sampler(SamplerConfig):
    kind: Literal["every"] = "every"

    def build(self, context, dataset):
        note(built="sampler")
        return context.registry.get("sampler", "shuffled")(batch_size=self.batch_size).build(context, dataset)


class Data(DatasetConfig):
    kind: Literal["every"] = "every"

    def build(self, context):
        from embed_core.testing import tiny_dataset

        note(built="dataset")
        return tiny_dataset(held_out_rows=6)


class Checkpoint(CheckpointConfig):
    kind: Literal["every"] = "every"

    def build(self, context):
        note(built="checkpoint")
        return context.registry.get("checkpoint", "hello")().build(context)


class Evaluator:
    name = "every"

    def evaluate(self, encoder):
        return {"dense/count": float(encoder.encode(["one text", "another"], "query").count)}


class Evaluation(EvaluatorConfig):
    kind: Literal["every"] = "every"

    def build(self, context, dataset):
        note(built="evaluator")
        return Evaluator()


class EveryRecipe(Recipe):
    name: ClassVar[str] = "every"

    def compile(self, world_size):
        kind = {"kind": "every"}
        return {
            "model": kind, "data": kind, "sampler": {**kind, "batch_size": 4}, "loss": kind, "checkpoint": kind,
            "evaluation": [kind], "train": {"max_steps": 3},
        }


@hookimpl
def embed_register_models():
    return [Model]


@hookimpl
def embed_register_losses():
    return [Loss]


@hookimpl
def embed_register_samplers():
    return [Sampler]


@hookimpl
def embed_register_datasets():
    return [Data]


@hookimpl
def embed_register_checkpoints():
    return [Checkpoint]


@hookimpl
def embed_register_evaluators():
    return [Evaluation]


@hookimpl
def embed_register_recipes():
    return [EveryRecipe]


class Colder(AddOn):
    name: ClassVar[str] = "colder"
    order: ClassVar[int] = 5
    colder: bool = False

    def is_on(self):
        return self.colder

    def wrap(self, part):
        note(wrapped=sorted(key for key in ("loss", "model") if part.get(key)))
        return dict(part)


@hookimpl
def embed_register_addons():
    return [Colder]


@hookimpl
def embed_register_commands(app):
    @app.command("greet")
    def greet(name: str) -> None:
        """Say hello."""
        print(f"hello, {name}")


@hookimpl
def embed_step_ended(event):
    note(step=event.step, of=event.total_steps, evaluation=event.evaluation is not None)


@hookimpl
def embed_run_ended(event):
    note(ended=event.steps, error=None if event.error is None else type(event.error).__name__,
         exported=str(event.export_dir))
'''


@pytest.fixture
def every(tmp_path: Path) -> Path:
    """A folder to put on the path that looks like an installed package ``embed-every``."""
    info = tmp_path / "site" / "embed_every-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: embed-every\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[embed]\nevery = every_plugin\n")
    (info.parent / "every_plugin.py").write_text(PLUGIN)
    return info.parent


def embed(every: Path, *arguments: str) -> CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(every),
        "EVERY_HOOK_LOG": str(every / "log.jsonl"),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "COLUMNS": "200",
    }
    return run([sys.executable, "-m", "embed_cli", *arguments], capture_output=True, env=environment)


def notes(every: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (every / "log.jsonl").read_text().splitlines()]


def test_every_hook_takes_part_in_a_run(every: Path, tmp_path: Path) -> None:
    answer = embed(every, "run", "--plugin", "every", "--set", "colder=true", "--output-dir", str(tmp_path / "out"))
    assert answer.returncode == 0, answer.stderr
    log = notes(every)
    assert log[0] == {"wrapped": ["loss", "model"]}
    built = [entry["built"] for entry in log if "built" in entry]
    assert sorted(map(str, built)) == ["checkpoint", "dataset", "evaluator", "loss", "model", "sampler"]
    steps = [entry["step"] for entry in log if "step" in entry and not entry["evaluation"]]
    assert steps == [1, 2, 3]
    assert [entry["step"] for entry in log if entry.get("evaluation")] == [0, 3], "before the first, after the last"
    ended = [entry for entry in log if "ended" in entry]
    assert ended == [{"ended": 3, "error": None, "exported": str(tmp_path / "out/model")}]
    assert (tmp_path / "out/model/model.safetensors").exists()


def test_run_ended_is_told_of_the_error(every: Path, tmp_path: Path) -> None:
    source = (every / "every_plugin.py").read_text()
    (every / "every_plugin.py").write_text(
        source.replace("note(step=event.step", 'raise RuntimeError("planted") or note(step=event.step')
    )
    answer = embed(every, "run", "--plugin", "every", "--output-dir", str(tmp_path / "out"))
    assert answer.returncode != 0
    assert "planted" in answer.stderr
    ended = [entry for entry in notes(every) if "ended" in entry]
    assert [entry["error"] is not None for entry in ended] == [True], "fired once, with the error"


def test_plugin_is_listed_with_its_package(every: Path) -> None:
    answer = embed(every, "plugins", "--plugin", "every")
    assert answer.returncode == 0, answer.stderr
    (line,) = [line for line in answer.stdout.splitlines() if "embed-every" in line]
    assert "1.2" in line
    assert "active" in line


def test_plugin_adds_a_command(every: Path) -> None:
    answer = embed(every, "greet", "world")
    assert (answer.returncode, answer.stdout) == (0, "hello, world\n"), answer.stderr
    assert "greet" in embed(every, "--help").stdout


def test_broken_plugin_costs_only_itself(every: Path, tmp_path: Path) -> None:
    (every / "every_plugin.py").write_text("import a_package_that_is_not_there\n")
    answer = embed(every, "plugins")
    assert answer.returncode == 0, answer.stderr
    (line,) = [line for line in answer.stdout.splitlines() if "embed-every" in line]
    assert "failed" in line
    assert "a_package_that_is_not_there" in line
    assert embed(every, "run", "--plugin", "hello", "--dry-run").returncode == 0
    fatal = embed(every, "run", "--plugin", "every", "--dry-run")
    assert fatal.returncode == 2
    assert "plugin 'every' (embed-every 1.2) cannot be imported: ModuleNotFoundError" in fatal.stderr
    assert "Traceback" not in fatal.stderr
