"""Slot → kind → config class. Passed around, never global; frozen once the plugins are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embed_core.errors import ConfigError, PluginError, did_you_mean

if TYPE_CHECKING:
    from embed_core.config.addons import AddOn
    from embed_core.config.component import Component
    from embed_core.config.recipe import Recipe

SLOTS = ("model", "loss", "sampler", "checkpoint", "dataset", "evaluator")


class Registry:
    """Which component kinds and recipes exist in this process, and which plugin each came from."""

    def __init__(self) -> None:
        self._kinds: dict[str, dict[str, type[Component]]] = {slot: {} for slot in SLOTS}
        self._recipes: dict[str, type[Recipe]] = {}
        self._addons: dict[str, type[AddOn]] = {}
        self._owners: dict[tuple[str, str], str] = {}
        self._frozen = False

    def add(self, slot: str, config: type[Component], plugin: str) -> None:
        """Register ``config`` under its kind. Raises PluginError on a second owner of the kind or a wrong class."""
        kind = config.kind_name()
        self._claim(slot, kind, plugin)
        self._kinds[slot][kind] = config

    def add_recipe(self, recipe: type[Recipe], plugin: str) -> None:
        """Register a plugin's recipe under its ``name``. Raises PluginError when the name is taken."""
        self._claim("recipe", recipe.name, plugin)
        self._recipes[recipe.name] = recipe

    def add_addon(self, addon: type[AddOn], plugin: str) -> None:
        """Register an add-on under its ``name`` and each of its keys. Raises PluginError when one of them is taken."""
        self._claim("add-on", addon.name, plugin)
        for key in addon.model_fields:
            self._claim("add-on key", key, plugin)
        self._addons[addon.name] = addon

    def freeze(self) -> None:
        """No registration after this: a config means the same for the whole run."""
        self._frozen = True

    def get(self, slot: str, kind: str) -> type[Component]:
        """The config class of ``kind``. Raises ConfigError naming the alternatives."""
        try:
            return self._kinds[slot][kind]
        except KeyError:
            raise ConfigError(f"unknown {slot} kind {kind!r}: {did_you_mean(kind, self._kinds[slot])}") from None

    def kinds(self, slot: str) -> dict[str, type[Component]]:
        """Every kind of a slot."""
        return dict(self._kinds[slot])

    def recipe(self, name: str) -> type[Recipe] | None:
        """The recipe of that name, or None."""
        return self._recipes.get(name)

    def recipes(self) -> dict[str, type[Recipe]]:
        """Every recipe by name."""
        return dict(self._recipes)

    def addons(self) -> list[type[AddOn]]:
        """Every add-on, in the order in which they wrap a run."""
        return sorted(self._addons.values(), key=lambda addon: (addon.order, addon.name))

    def owner(self, slot: str, kind: str) -> str:
        """The plugin that registered it."""
        return self._owners[slot, kind]

    def _claim(self, slot: str, kind: str, plugin: str) -> None:
        assert not self._frozen, "the registry is frozen"
        taken = self._owners.get((slot, kind))
        word = " kind" if slot in SLOTS else ""
        if taken == plugin:
            raise PluginError(f"plugin {plugin!r} registers {slot}{word} {kind!r} twice: register it once")
        if taken is not None:
            raise PluginError(
                f"plugins {taken!r} and {plugin!r} both register {slot}{word} {kind!r}: activate only one of them"
            )
        self._owners[slot, kind] = plugin
