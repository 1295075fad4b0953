"""The registry: kinds by slot, one owner each, frozen once the plugins are loaded."""

from __future__ import annotations

from typing import ClassVar, Literal

import pytest

from embed_core.config.component import LossConfig
from embed_core.config.recipe import Recipe
from embed_core.config.registry import Registry
from embed_core.errors import ConfigError, PluginError


class First(LossConfig):
    kind: Literal["first"] = "first"


class Other(LossConfig):
    kind: Literal["first"] = "first"


class ARecipe(Recipe):
    name: ClassVar[str] = "r"


def test_what_is_added_is_found_with_its_owner() -> None:
    registry = Registry()
    registry.add("loss", First, "mine")
    registry.add_recipe(ARecipe, "mine")
    assert registry.get("loss", "first") is First
    assert registry.kinds("loss") == {"first": First}
    assert registry.owner("loss", "first") == registry.owner("recipe", "r") == "mine"
    assert registry.recipe("r") is ARecipe
    assert registry.recipe("none") is None
    assert registry.recipes() == {"r": ARecipe}


def test_the_answers_are_copies() -> None:
    registry = Registry()
    registry.kinds("loss")["x"] = First
    registry.recipes()["x"] = ARecipe
    assert registry.kinds("loss") == {}
    assert registry.recipes() == {}


def test_a_kind_has_one_owner() -> None:
    registry = Registry()
    registry.add("loss", First, "one")
    with pytest.raises(PluginError, match="plugins 'one' and 'two' both register loss kind 'first': activate only one"):
        registry.add("loss", Other, "two")
    with pytest.raises(PluginError, match="plugin 'one' registers loss kind 'first' twice"):
        registry.add("loss", Other, "one")
    assert registry.get("loss", "first") is First


@pytest.mark.parametrize(
    ("kind", "hint"), [("frist", "did you mean 'first'"), ("zzz", "one of: first"), ("", "one of: first")]
)
def test_an_unknown_kind_names_the_alternatives(kind: str, hint: str) -> None:
    registry = Registry()
    registry.add("loss", First, "mine")
    with pytest.raises(ConfigError, match=f"unknown loss kind '{kind}': {hint}"):
        registry.get("loss", kind)
    with pytest.raises(ConfigError, match="unknown model kind 'x': none is available"):
        registry.get("model", "x")


def test_frozen() -> None:
    registry = Registry()
    registry.freeze()
    with pytest.raises(AssertionError, match="frozen"):
        registry.add("loss", First, "late")
