"""Recipe, file, sanity, overrides and flags become one run; every fault names its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import pytest
import yaml
from pydantic import Field

from embed_core.config.component import SamplerConfig
from embed_core.config.document import overrides, parse
from embed_core.config.recipe import Recipe
from embed_core.config.registry import Registry
from embed_core.config.resolve import SANITY, Request, plain, resolve
from embed_core.config.run import RunConfig
from embed_core.errors import ConfigError
from embed_core.plugin.manager import activate


class Short(Recipe):
    """A recipe with a key per thing that may collide."""

    name: ClassVar[str] = "short"
    rate: float = Field(default=1e-3, gt=0)
    rows: int = 32
    steps: int | None = None
    both: bool = False
    other: bool = False
    seed: int = 1

    def compile(self, world_size: int) -> dict[str, Any]:
        if self.both and self.other:
            raise ConfigError("both and other exclude each other")
        return {
            "name": self.name,
            "seed": self.seed,
            "model": {"kind": "hello"},
            "data": {"kind": "retrieval", "path": "rows.jsonl"},
            "sampler": {"kind": "shuffled", "batch_size": self.rows * world_size},
            "loss": {"kind": "hello"},
            "checkpoint": {"kind": "hello"},
            "evaluation": [{"kind": "retrieval"}],
            "train": {"max_steps": self.steps, "optimizer": {"learning_rate": self.rate}},
        }

    def sanity(self) -> dict[str, Any]:
        return {"model": {"buckets": 256}}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return activate(["hello"])[1]


def run(registry: Registry, file: str = "", *sets: str, recipe: Any = Short, **request: Any) -> RunConfig:
    return resolve(registry, Request(recipe, parse(file, "run.yaml"), overrides=overrides(sets), **request))


def rate(config: RunConfig) -> float:
    return config.train.optimizer.learning_rate


def test_each_layer_goes_over_the_one_below(registry: Registry) -> None:
    file = "train: {max_steps: 50, evaluate_every_steps: 7}\n"
    steps = [
        run(registry).train.max_steps,
        run(registry, file).train.max_steps,
        run(registry, file, sanity=True).train.max_steps,
        run(registry, file, "train.max_steps=60", sanity=True).train.max_steps,
        run(registry, file, "train.max_steps=60", sanity=True, flags={"max_steps": 70}).train.max_steps,
    ]
    assert steps == [None, 50, SANITY["train"]["max_steps"], 60, 70]
    kept = run(registry, file, flags={"max_steps": 70, "seed": None}).train
    assert (kept.max_steps, kept.evaluate_every_steps) == (70, 7)


def test_keys_of_the_recipe_and_of_the_run_mix(registry: Registry) -> None:
    config = run(registry, "rate: 0.5\nengine: {zero_stage: 2}\n", "rows=4", "engine.precision=bf16", world_size=3)
    assert (rate(config), config.sampler.batch_size) == (0.5, 12)
    assert (config.engine.zero_stage, config.engine.precision) == (2, "bf16")


def test_a_recipe_key_that_is_set_goes_over_the_files_run_key(registry: Registry) -> None:
    file = "train: {optimizer: {learning_rate: 0.5, beta1: 0.8}}\n"
    config = run(registry, file, "rate=0.25")
    assert rate(config) == 0.25
    assert config.train.optimizer.beta1 == 0.8
    assert rate(run(registry, file)) == 0.5
    assert rate(run(registry, file, "rate=0.25", "train.optimizer.learning_rate=0.125")) == 0.125


def test_a_recipe_key_that_is_set_goes_over_sanity(registry: Registry) -> None:
    config = run(registry, "", "steps=2", "rows=3", sanity=True)
    assert (config.train.max_steps, config.sampler.batch_size) == (2, 3)
    file = run(registry, "steps: 2\n", sanity=True)
    assert file.train.max_steps == SANITY["train"]["max_steps"]


def test_sanity_has_a_row_for_every_rank(registry: Registry) -> None:
    assert run(registry, sanity=True).sampler.batch_size == 8
    assert run(registry, sanity=True, world_size=16).sampler.batch_size == 16
    assert run(registry, sanity=True).model.buckets == 256  # type: ignore[attr-defined]


def test_set_may_mend_a_file(registry: Registry) -> None:
    assert run(registry, "both: true\nother: true\n", "other=false").name == "short"
    with pytest.raises(ConfigError, match="exclude each other"):
        run(registry, "both: true\nother: true\n")


def test_flags(registry: Registry) -> None:
    flags = {"seed": 9, "output_dir": "there", "max_steps": None, "plugins": ["hello"]}
    config = run(registry, "seed: 2\n", "seed=3", flags=flags)
    assert (config.seed, str(config.output_dir), config.plugins) == (9, "there", ("hello",))
    assert run(registry, "seed: 2\n", "seed=3").seed == 3


def test_a_changed_kind_takes_nothing_of_the_old_one(registry: Registry) -> None:
    config = run(registry, "loss: {kind: infonce}\n", "checkpoint.kind=transformers")
    assert (config.loss.kind, config.checkpoint.kind) == ("infonce", "transformers")


def test_a_changed_sampler_or_layout_keeps_what_every_kind_has(registry: Registry) -> None:
    assert run(registry, "sampler: {kind: no-duplicates}\n").sampler.batch_size == 32
    assert run(registry, "", "sampler.kind=no-duplicates", "sampler.batch_size=8").sampler.batch_size == 8
    changed = run(registry, "checkpoint: {every_steps: 5}\n", "checkpoint.kind=transformers")
    assert (changed.checkpoint.kind, changed.checkpoint.every_steps) == ("transformers", 5)


def test_elements_of_lists(registry: Registry) -> None:
    config = run(registry, "", "evaluation.0.path=there")
    assert config.evaluation[0].path == "there"  # type: ignore[attr-defined]
    assert run(registry, "", "evaluation=[]").evaluation == ()
    with pytest.raises(ConfigError, match=r"evaluation\.1: there is no element 1 in a list of 1"):
        run(registry, "", "evaluation.1.path=there")


def test_what_is_printed_loads_as_the_same_run(registry: Registry) -> None:
    config = run(registry, "", "rate=1e-5", "evaluation.0.path=x", "name=2024-01-02", flags={"output_dir": "o"})
    again = run(registry, yaml.safe_dump(plain(config), sort_keys=False), recipe=None)
    assert again == config
    assert plain(again) == plain(config)


@pytest.mark.parametrize(
    ("file", "sets", "message"),
    [
        ("rat: 1\n", (), "run.yaml:1: 'rat' is no key of recipe 'short' or of a run: did you mean 'rate'?"),
        ("rate: -1\n", (), "run.yaml:1: rate: input should be greater than 0, got -1"),
        ("rate: -1\n", ("rate=-2",), "--set rate: rate: input should be greater than 0, got -2"),
        ("train:\n  max_steps: many\n", (), "run.yaml:2: train.max_steps: input should be a valid integer"),
        ("", ("train.optimizer.rate=1",), "--set train.optimizer.rate: train.optimizer.rate: unknown key 'rate': "),
        ("train: 5\n", (), "run.yaml:1: train: "),
        ("model:\n  kind: helo\n", (), "run.yaml:2: model: unknown model kind 'helo': did you mean 'hello'?"),
        ("evaluation:\n- kind: retrieval\n- {}\n", (), "run.yaml:3: evaluation.1: an evaluator needs a `kind`"),
        ("model:\n  bucket: 4\n", (), "run.yaml:2: model.bucket: unknown key 'bucket': did you mean 'buckets'?"),
        (
            "evaluation:\n- kind: retrieval\n- kind: retrieval\n  pth: 1\n",
            (),
            "run.yaml:4: evaluation.1.pth: unknown key 'pth': did you mean 'path'?",
        ),
    ],
)
def test_faults_name_their_place(registry: Registry, file: str, sets: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        run(registry, file, *sets)
    assert str(error.value).startswith(message), str(error.value)


def test_each_fault_is_a_line(registry: Registry) -> None:
    with pytest.raises(ConfigError) as error:
        run(registry, "train: {max_steps: 0}\nseed: -1\nengine: {zero_stage: 7}\n", recipe=None)
    lines = str(error.value).splitlines()
    for key in ("seed", "train.max_steps", "engine.zero_stage"):
        assert any(f": {key}: " in line for line in lines)
    assert any(line == "model: this key is needed and missing" for line in lines)


def test_evaluators_have_different_names(registry: Registry) -> None:
    with pytest.raises(ConfigError, match="evaluators must have different names; "):
        run(registry, "evaluation: [{kind: retrieval}, {kind: retrieval}]\n")


PHASES = """phases:
  - {name: one, train: {max_steps: 9}}
  - name: two
    sampler: {kind: no-duplicates, batch_size: 64}
    train: {optimizer: {learning_rate: 0.5}}
"""


def test_phases_are_components_too(registry: Registry) -> None:
    config = run(registry, PHASES)
    assert [phase.name for phase in config.phases] == ["one", "two"]
    one, two = config.in_phase(0), config.in_phase(1)
    assert (one.sampler.kind, two.sampler.kind, two.sampler.batch_size) == ("shuffled", "no-duplicates", 64)
    assert (one.train.max_steps, two.train.max_steps) == (9, None)
    assert (rate(one), rate(two)) == (1e-3, 0.5)


def test_what_is_written_down_of_phases_reads_as_the_same_run(registry: Registry) -> None:
    config = run(registry, PHASES + "train: {gradient_clipping: 0.25, optimizer: {weight_decay: 0.5}}\n")
    again = RunConfig.model_validate(plain(config), context={"registry": registry})
    for number in range(2):
        assert again.in_phase(number).train == config.in_phase(number).train
        assert again.in_phase(number).train.gradient_clipping == 0.25
    assert again.in_phase(1).train.optimizer.weight_decay == 0.5


def test_a_small_run_is_small_in_every_phase(registry: Registry) -> None:
    config = run(registry, PHASES, sanity=True)
    assert [config.in_phase(n).train.max_steps for n in range(2)] == [SANITY["train"]["max_steps"]] * 2
    assert [config.in_phase(n).sampler.batch_size for n in range(2)] == [8, 8]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("phases: [{name: a}, {name: a}]\n", r"phases must have different names; \['a'\] occurs twice"),
        ("phases: [{name: ../a}]\n", r"run.yaml:1: phases.0.name: string should match pattern"),
        ("phases: [{name: a, loss: {kind: hallo}}]\n", r"run.yaml:1: phases.0.loss.*'hallo'.*did you mean 'hello'"),
        ("phases: [{name: a, steps: 3}]\n", r"run.yaml:1: phases.0.steps: unknown key 'steps'"),
    ],
)
def test_mistakes_in_phases_are_located(registry: Registry, file: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(registry, file)


def test_a_sampler_may_bring_phases() -> None:
    class Staged(SamplerConfig):
        kind: Literal["staged"] = "staged"

        def phases(self, run: Any) -> Sequence[Mapping[str, Any]]:
            inner = {"kind": "shuffled", "batch_size": self.batch_size}
            return [{"name": name, "sampler": inner} for name in ("easy", "hard")]

        def build(self, context: Any, dataset: Any) -> Any:
            raise AssertionError("its phases have samplers of their own")

    registry = activate(["hello"])[1]
    registry._frozen = False
    registry.add("sampler", Staged, "test")
    config = run(registry, "sampler: {kind: staged}\n")
    assert [phase.name for phase in config.phases] == ["easy", "hard"]
    assert (config.in_phase(1).sampler.kind, config.in_phase(1).sampler.batch_size) == ("shuffled", 32)
    # What is written down has both, and reads as the same run.
    again = RunConfig.model_validate(plain(config), context={"registry": registry})
    assert [phase.name for phase in again.phases] == ["easy", "hard"]
    given = run(registry, "sampler: {kind: staged}\nphases: [{name: mine, sampler: {kind: shuffled}}]\n")
    assert [phase.name for phase in given.phases] == ["mine"]
