"""Keys that recipes share are defined once and mean the same in every recipe."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any, get_args

import pytest

from embed_core.config import document, retrieval_keys, training_keys
from embed_core.config.component import Section
from embed_core.config.recipe import Recipe
from embed_core.config.registry import Registry
from embed_core.config.resolve import Request, resolve
from embed_core.plugin.manager import activate

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = [
    tomllib.loads(path.read_text(encoding="utf-8"))["project"] for path in ROOT.glob("packages/*/pyproject.toml")
]
PLUGINS = sorted(name for project in PROJECTS for name in project.get("entry-points", {}).get("embed", {}))
SHARED_MODULES = (training_keys.__name__, retrieval_keys.__name__)
OWN = {"loss_type": "each recipe chooses among losses of its own"}
ARRIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "seed": ("7", {"seed": 7}),
    "output_dir": ("out/here", {"output_dir": Path("out/here")}),
    "learning_rate": ("3.0e-3", {"train.optimizer.learning_rate": 3e-3}),
    "weight_decay": ("0.2", {"train.optimizer.weight_decay": 0.2}),
    "max_grad_norm": ("0.4", {"train.gradient_clipping": 0.4}),
    "max_steps": ("11", {"train.max_steps": 11}),
    "gradient_accumulation_steps": ("6", {"train.gradient_accumulation_steps": 6}),
    "warmup_ratio": ("0.3", {"train.schedule.warmup_ratio": 0.3}),
    "warmup_steps": ("0", {"train.schedule.warmup_steps": 0}),
    "eval_steps": ("22", {"train.evaluate_every_steps": 22}),
    "num_train_epochs": ("5", {"train.epochs": 5.0}),
    "per_device_train_batch_size": ("5", {"sampler.batch_size": 10}),
    "lr_scheduler_type": ("constant", {"train.schedule.kind": "constant"}),
    "fp16": ("true", {"engine.precision": "fp16"}),
    "bf16": ("false", {"engine.precision": "fp32"}),
    "gradient_checkpointing": ("true", {"engine.gradient_checkpointing": True}),
    "save_steps": ("21", {"checkpoint.every_steps": 21, "checkpoint.every_minutes": 0}),
    "save_total_limit": ("5", {"checkpoint.keep_last": 5}),
    "logging_steps": ("23", {"tracking.log_every_steps": 23}),
}
"""Key about training → a value, and where it arrives in the run of any recipe, on two ranks."""


@pytest.fixture(scope="module")
def registry() -> Registry:
    return activate(PLUGINS)[1]


def fields(recipe: type[Recipe]) -> dict[str, Any]:
    """The keys of a recipe that are no sections: ``model`` and ``train`` of nested layouts hold keys of their own."""
    return {name: field for name, field in recipe.model_fields.items() if not _is_section(field.annotation)}


def _is_section(annotation: Any) -> bool:
    return any(isinstance(one, type) and issubclass(one, Section) for one in (annotation, *get_args(annotation)))


def definer(recipe: type[Recipe], key: str) -> str:
    """The module of the class that declares ``key``."""
    return next(cls.__module__ for cls in recipe.__mro__ if key in vars(cls).get("__annotations__", {}))


def test_there_are_the_recipes_we_know_of(registry: Registry) -> None:
    assert {"bge", "data", "distill", "mrl", "qwen", "sbert", "vision"} <= set(registry.recipes())


def test_no_recipe_defines_a_shared_key_by_itself(registry: Registry) -> None:
    users = defaultdict(list)
    for recipe in registry.recipes().values():
        for key in fields(recipe):
            users[key].append(recipe)
    addons = {key for addon in registry.addons() for key in addon.model_fields}
    shared = {key for module in (training_keys, retrieval_keys) for cls in vars(module).values()
              if isinstance(cls, type) and issubclass(cls, Recipe) for key in cls.model_fields}  # fmt: skip
    assert shared >= set(ARRIVES)
    wrong = [
        f"{key}: {recipe.name} defines it in {definer(recipe, key)}"
        for key, recipes in users.items()
        if (len(recipes) > 1 or key in shared) and key not in OWN
        for recipe in recipes
        if definer(recipe, key) not in SHARED_MODULES
    ]
    assert wrong == []
    hidden = [
        f"{key} of {recipe.name} hides the add-on's"
        for key in addons & set(users)
        for recipe in users[key]
        if definer(recipe, key) != next(
            definer(addon, key) for addon in registry.addons() if key in addon.model_fields  # type: ignore[arg-type]
        )
    ]  # fmt: skip
    assert hidden == []


def test_every_shared_training_key_is_tried() -> None:
    assert set(training_keys.TrainingKeys.model_fields) - set(retrieval_keys.ModelKeys.model_fields) == set(ARRIVES)


@pytest.mark.parametrize("key", ARRIVES)
def test_a_shared_key_compiles_to_the_same_place_with_the_same_value(registry: Registry, key: str) -> None:
    value, places = ARRIVES[key]
    takers = [recipe for recipe in registry.recipes().values() if key in fields(recipe)]
    assert takers, f"no recipe takes {key}"
    for recipe in takers:
        run = resolve(registry, Request(recipe, overrides=document.overrides([f"{key}={value}"]), world_size=2))
        plain = resolve(registry, Request(recipe, world_size=2))
        for place, wanted in places.items():
            assert at(run, place) == wanted, f"{recipe.name}: {place}"
        assert run != plain, f"{recipe.name}: {key}={value} is its default"


def at(config: Any, path: str) -> Any:
    for part in path.split("."):
        config = getattr(config, part)
    return config


def test_help_says_what_none_stands_for(registry: Registry) -> None:
    recipe = registry.recipe("bge")
    assert recipe is not None
    described = recipe.model_fields["learning_rate"].description
    assert described == "Peak learning rate, reached after the warm-up. None = 1e-05, from scratch 0.001."
    assert training_keys.TrainingKeys.model_fields["learning_rate"].description == described.split(" None")[0]


def test_defaults_that_differ_are_declared(registry: Registry) -> None:
    for recipe in registry.recipes().values():
        for key, field in fields(recipe).items():
            if definer(recipe, key) in SHARED_MODULES:
                cls = next(one for one in recipe.__mro__ if key in vars(one).get("__annotations__", {}))
                usual = cls.model_fields[key].get_default(call_default_factory=True)  # type: ignore[attr-defined]
                assert field.get_default(call_default_factory=True) == recipe.defaults.get(key, usual), key
