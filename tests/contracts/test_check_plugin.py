"""`check_plugin` passes our plugins and catches heavy imports, undocumented fields and recipes that are no run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from embed_core.errors import PluginError
from embed_core.testing import check_plugin

HONEST = '''
from typing import ClassVar, Literal
from embed_core.config.component import LossConfig
from embed_core.config.recipe import Recipe
from embed_core.plugin.hookspecs import hookimpl


class PlantedLoss(LossConfig):
    kind: Literal["planted"] = "planted"
    weight: float = 1.0
    """Of the loss."""

    def build(self, context):
        return context.registry.get("loss", "infonce")().build(context)


class PlantedRecipe(Recipe):
    name: ClassVar[str] = "planted"
    weight: float = 1.0
    """Of the loss."""

    def compile(self, world_size):
        return {"model": {}, "data": {}, "sampler": {}, "loss": {}, "checkpoint": {}}


@hookimpl
def embed_register_losses():
    return [PlantedLoss]


@hookimpl
def embed_register_recipes():
    return [PlantedRecipe]
'''


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The module of an installed plugin ``planted``, here and in child processes."""
    info = tmp_path / "embed_planted-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: embed-planted\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[embed]\nplanted = planted_plugin\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    )
    monkeypatch.delitem(sys.modules, "planted_plugin", raising=False)
    module = tmp_path / "planted_plugin.py"
    module.write_text(HONEST)
    return module


@pytest.mark.parametrize("name", ["bge", "data", "hello"])
def test_our_plugins_pass(name: str) -> None:
    check_plugin(name)


def test_honest_plugin_passes(planted: Path) -> None:
    check_plugin("planted")


def test_heavy_import_is_named(planted: Path) -> None:
    planted.write_text("import torch\n" + HONEST)
    with pytest.raises(AssertionError, match="loading plugin 'planted' imports torch: move those imports into `build`"):
        check_plugin("planted")


def test_undocumented_field_is_named(planted: Path) -> None:
    planted.write_text(HONEST.replace('    """Of the loss."""\n', "", 1))
    with pytest.raises(AssertionError, match=r"PlantedLoss\.weight has no docstring under it"):
        check_plugin("planted")


def test_undocumented_key_of_the_recipe_is_named(planted: Path) -> None:
    first, second = HONEST.split("class PlantedRecipe")
    planted.write_text(first + "class PlantedRecipe" + second.replace('    """Of the loss."""\n', ""))
    with pytest.raises(AssertionError, match=r"PlantedRecipe\.weight has no docstring under it"):
        check_plugin("planted")


def test_recipe_that_is_no_run_is_named(planted: Path) -> None:
    planted.write_text(HONEST.replace('"sampler": {}, "loss": {}, ', ""))
    with pytest.raises(AssertionError, match=r"recipe 'planted' compiles to a run without \['loss', 'sampler'\]"):
        check_plugin("planted")


def test_plugin_that_does_not_load_is_an_error(planted: Path) -> None:
    planted.write_text("import a_package_that_is_not_there\n")
    with pytest.raises(PluginError, match="cannot be imported: ModuleNotFoundError"):
        check_plugin("planted")
