"""Add-ons: keys beside any recipe's, and wrappers of the run that was compiled; one of a third party among them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embed_core.config import document
from embed_core.config.addons import offered_keys
from embed_core.config.resolve import Request, resolve
from embed_core.config.run import RunConfig
from embed_core.errors import ConfigError, PluginError
from embed_core.plugin.manager import activate

TEMPER = '''
from typing import ClassVar, Literal
from pydantic import Field
from embed_core import LossConfig, hookimpl
from embed_core.config.addons import AddOn, replaced


class Tempered(LossConfig):
    kind: Literal["tempered"] = "tempered"
    inner: LossConfig
    factor: float = 1.0

    def build(self, context):
        return self.inner.build(context)


class TemperAddOn(AddOn):
    name: ClassVar[str] = "temper"
    order: ClassVar[int] = 25
    temper_factor: float | None = Field(default=None, gt=0)
    """The loss is multiplied by it."""

    def is_on(self):
        return self.temper_factor is not None

    def wrap(self, part):
        return replaced(part, "loss", "tempered", lambda loss: {"inner": loss, "factor": self.temper_factor})


@hookimpl
def embed_register_losses():
    return [Tempered]


@hookimpl
def embed_register_addons():
    return [TemperAddOn]
'''
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """``install("x", source)``: a package ``embed-x`` with an entry point ``x``, as pip would leave it."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def make(name: str, source: str) -> None:
        module = f"plugin_{name}_{tmp_path.name.replace('-', '_')}"
        info = site / f"embed_{name}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: embed-{name}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[embed]\n{name} = {module}\n")
        (site / f"{module}.py").write_text(source)
        monkeypatch.delitem(sys.modules, module, raising=False)

    return make


def run(plugins: list[str], *settings: str, text: str = "", **options: Any) -> RunConfig:
    """The run of the first plugin's recipe."""
    _, registry = activate(plugins)
    given = document.parse(text, "run.yaml") if text else document.Document()
    request = Request(registry.recipe(plugins[0]), given, overrides=document.overrides(settings), **options)
    return resolve(registry, request)


def kinds(component: Any) -> list[str]:
    """From the outermost to the innermost."""
    found = []
    while component is not None:
        found.append(component.kind)
        component = getattr(component, "inner", None)
    return found


def test_a_third_party_s_keys_work_beside_every_recipe(install: Install) -> None:
    install("temper", TEMPER)
    for plugin in ("hello", "bge", "qwen", "sbert", "vision"):
        plain, wrapped = run([plugin, "temper"]), run([plugin, "temper"], "temper_factor=2")
        assert wrapped.loss.factor == 2  # type: ignore[attr-defined]
        assert wrapped.loss.inner == plain.loss  # type: ignore[attr-defined]
        assert run([plugin, "temper"], text="temper_factor: 2") == wrapped


def test_the_order_is_the_declared_one_whatever_the_plugins_order(install: Install) -> None:
    install("temper", TEMPER)
    keys = ("mrl_dims=[32]", "teacher_model_name=big", "temper_factor=2", "use_lora=true")
    for plugins in (["hello", "temper", "mrl", "distill"], ["hello", "distill", "temper", "mrl"]):
        config = run(plugins, *keys)
        assert kinds(config.loss) == ["distilled", "tempered", "matryoshka", "hello"]
        assert kinds(config.model) == ["lora", "hello"]
        assert kinds(config.data) == ["with-teacher", "retrieval"]


def test_phases_are_wrapped_likewise_and_what_is_written_out_stays(install: Install) -> None:
    install("temper", TEMPER)
    phases = (
        "phases=[{name: a, loss: {kind: infonce}}, {name: b, loss: {kind: tempered, inner: {kind: hello}}}, {name: c}]"
    )
    a, b, c = run(["hello", "temper"], "temper_factor=2", phases).phases
    assert (kinds(a.loss), kinds(b.loss), c.loss) == (["tempered", "infonce"], ["tempered", "hello"], None)
    assert (a.loss.factor, b.loss.factor) == (2, 1)  # type: ignore[union-attr]


def test_run_keys_mean_the_component_inside() -> None:
    config = run(["hello"], "use_lora=true", "model.buckets=64", "loss.margin=0.5")
    assert (config.model.inner.buckets, config.loss.margin) == (64, 0.5)  # type: ignore[attr-defined]


def test_a_run_without_a_recipe_takes_them_too() -> None:
    _, registry = activate(["hello"])
    from embed_core.config.resolve import plain

    whole = document.Document(data=plain(run(["hello"])))
    assert kinds(resolve(registry, Request(None, whole, overrides=document.overrides(["use_lora=true"]))).model) == [
        "lora",
        "hello",
    ]


def test_faults_name_their_place(install: Install) -> None:
    install("temper", TEMPER)
    with pytest.raises(ConfigError, match=r"^run.yaml:1: temper_factor: input should be greater than 0, got -1$"):
        run(["hello", "temper"], text="temper_factor: -1")
    with pytest.raises(ConfigError) as caught:
        run(["hello"], text="temper_factor: 1")
    assert str(caught.value) == (
        "run.yaml:1: 'temper_factor' is a key of plugin 'temper', which is installed and not active: add --plugin "
        "temper, or leave the key out"
    )
    with pytest.raises(ConfigError, match="'temper_facto' is no key of recipe 'hello' or of a run: did you mean"):
        run(["hello", "temper"], "temper_facto=1")


def test_a_recipe_may_refuse_an_addon_and_have_defaults_for_it() -> None:
    with pytest.raises(ConfigError, match=r"--set mrl_dims: mrl_dims: \[8\]: recipe distill has dimensions of its own"):
        run(["distill"], "mrl_dims=[8]")
    assert run(["qwen"], "tuner_type=lora").model.r == 8  # type: ignore[attr-defined]
    assert run(["bge"], "tuner_type=lora").model.r == 16  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("lora_rank=4",), "lora_rank is of no use with tuner_type full: set tuner_type: lora, or leave it out"),
        (("use_lora=true", "lora_rank=4", "lora_r=5"), "lora_rank is 4 and lora_r is 5: they mean the same; set one"),
        (("use_lora=true", "tuner_type=full"), "tuner_type is 'full' and use_lora is true: set one of them"),
    ],
)
def test_contradictions_of_lora(settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(["hello"], *settings)


def test_lora_by_either_name() -> None:
    names = (
        ("tuner_type=lora", "lora_rank=4", "target_modules=[a]"),
        ("use_lora=true", "lora_r=4", "lora_target_modules=[a]"),
    )
    first, second = (run(["hello"], *keys).model for keys in names)
    assert first == second
    assert (first.r, first.target_modules) == (4, ("a",))  # type: ignore[attr-defined]
    assert run(["hello"], "use_lora=false", "lora_r=4") == run(["hello"]), "a file may keep the options of what is off"


def test_n_dims_per_step_without_dimensions_is_refused() -> None:
    with pytest.raises(ConfigError, match="n_dims_per_step is of no use without mrl_dims: set mrl_dims or use_mrl"):
        run(["bge"], "n_dims_per_step=2")


def test_a_recipe_object_takes_them_and_refuses_other_keys() -> None:
    from pydantic import ValidationError

    from embed_bge.recipe import BGERecipe

    assert BGERecipe(teacher_model_name="big", max_steps=2).addon_keys == {"teacher_model_name": "big"}  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="extra_forbidden"):
        BGERecipe(teacher_model_nam="big")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        (
            TEMPER.replace("return [TemperAddOn]", "return [int]"),
            "returned <class 'int'>, which is no AddOn with a `name`",
        ),
        (TEMPER.replace("    order: ClassVar[int] = 25\n", ""), "which is no AddOn with a `name` and an `order`"),
        (TEMPER.replace("def wrap", "def wraps"), "TemperAddOn does not define wrap"),
        (TEMPER.replace("temper_factor", "use_lora"), "plugins 'core' and 'bad' both register add-on key 'use_lora'"),
        (TEMPER.replace('= "temper"', '= "lora"'), "plugins 'core' and 'bad' both register add-on 'lora'"),
    ],
)
def test_a_faulty_addon_is_its_plugin_s_fault(install: Install, source: str, cause: str) -> None:
    install("bad", source)
    with pytest.raises(PluginError) as caught:
        activate(["bad"])
    assert cause in str(caught.value)


def test_offered_keys_are_those_of_active_plugins_or_of_all() -> None:
    assert "teacher_model_name" not in offered_keys(activate(["hello"])[1])
    assert offered_keys(None)["teacher_model_name"] == "distill"
    assert offered_keys(activate([])[1])["use_lora"] == "core"
