"""Discover installed plugins, import the active ones only, register them, and attribute every failure."""

from __future__ import annotations

import inspect
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, Literal

import pluggy

from embed_core.config.registry import Registry
from embed_core.errors import EmbedError, PluginError, did_you_mean
from embed_core.plugin import hookspecs
from embed_core.utils.messages import one_line

GROUP = "embed"
SLOT_HOOKS = {
    "model": "embed_register_models",
    "loss": "embed_register_losses",
    "sampler": "embed_register_samplers",
    "checkpoint": "embed_register_checkpoints",
    "dataset": "embed_register_datasets",
    "evaluator": "embed_register_evaluators",
}


@dataclass(frozen=True, slots=True)
class Installed:
    """One entry point of the group ``embed``."""

    name: str
    package: str
    version: str
    entry_point: EntryPoint
    rival: str = ""
    """Another package, with its version, that claims the same name."""


@dataclass(frozen=True, slots=True)
class PluginStatus:
    """A line of ``embed plugins``."""

    name: str
    package: str
    version: str
    status: Literal["installed", "active", "failed"]
    cause: str = ""


def discover() -> dict[str, Installed]:
    """Installed plugins by name, nothing imported. A name that two packages claim cannot be loaded, others can."""
    found: dict[str, Installed] = {}
    for point in entry_points(group=GROUP):
        dist = point.dist
        package, version = (dist.name, dist.version) if dist is not None else ("?", "?")
        known = found.get(point.name)
        # An editable install and its build directory may both be on the path: the same package is no conflict.
        rival = f"{known.package} {known.version}" if known is not None and known.package != package else ""
        found[point.name] = Installed(point.name, package, version, point, rival)
    return found


def load_module(plugin: Installed) -> ModuleType:
    """Import a plugin's module. Raises PluginError with package, version and cause."""
    if plugin.rival:
        raise PluginError(
            f"plugin name {plugin.name!r} is claimed by {plugin.rival} and {plugin.package} {plugin.version}: "
            "uninstall one of them"
        )
    try:
        module = plugin.entry_point.load()
    except (Exception, SystemExit) as error:
        raise PluginError(f"{_who(plugin)} cannot be imported: {type(error).__name__}: {one_line(error)}") from error
    wanted = getattr(module, "EMBED_API_VERSION", hookspecs.API_VERSION)
    if wanted != hookspecs.API_VERSION:
        raise PluginError(
            f"{_who(plugin)} is written for hook API {wanted}, this embed-core has {hookspecs.API_VERSION}: "
            f"install a version of {plugin.package} that matches"
        )
    return module  # type: ignore[no-any-return]


def plugin_manager() -> pluggy.PluginManager:
    """A manager that knows the hook specs and nothing else."""
    manager = pluggy.PluginManager("embed")
    manager.add_hookspecs(hookspecs)
    return manager


def activate(names: Iterable[str]) -> tuple[pluggy.PluginManager, Registry]:
    """Load the core's own components and the named plugins; the registry comes back frozen.

    A plugin module may name others whose components its recipes use in ``EMBED_REQUIRES``; those are activated too.
    ``EMBED_USES`` names those it can do without: they are activated where they are installed and load.
    Raises PluginError for a name that is not installed, a module that cannot be imported, a hook with an unknown name
    or arguments, or an answer that is not what the hook asks for.
    """
    from embed_core.plugin import builtins

    installed = discover()
    manager, registry = plugin_manager(), Registry()
    _register(manager, registry, Installed("core", "embed-core", "", None), builtins)  # type: ignore[arg-type]
    pending, done = [(name, "") for name in names], set[str]()
    while pending:
        name, needed_by = pending.pop(0)
        if name in done:
            continue
        done.add(name)
        plugin = _installed(name, installed, needed_by)
        module = load_module(plugin)
        _register(manager, registry, plugin, module)
        pending.extend((required, name) for required in _named(plugin, module, "EMBED_REQUIRES"))
        optional = _named(plugin, module, "EMBED_USES")
        pending.extend((used, name) for used in optional if used in installed and _loads(used, done, installed))
    registry.freeze()
    return manager, registry


def installed_registry() -> Registry:
    """What the core and every installed plugin register. Plugins that fail are left out; so is what two of them claim,
    but for the first. Nothing of it is active in a run: it is for messages, and for keys checked before a run."""
    installed = discover()
    names: list[str] = []
    for name in sorted(installed):
        try:
            activate([*names, name])
        except EmbedError:
            continue
        names.append(name)
    return activate(names)[1]


def _installed(name: str, installed: Mapping[str, Installed], needed_by: str = "") -> Installed:
    if name not in installed:
        needed = f", which {needed_by!r} requires," if needed_by else ""
        raise PluginError(
            f"plugin {name!r}{needed} is not installed: {did_you_mean(name, installed)} "
            f"(`embed plugins` lists what is; `pip install embed-{name}` may be what is missing)"
        )
    return installed[name]


def _named(plugin: Installed, module: Any, attribute: str) -> Sequence[str]:
    names = getattr(module, attribute, ())
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise PluginError(f"{_who(plugin)}: {attribute} must be a tuple of plugin names, not {names!r}")
    return names


def _loads(name: str, active: Container[str], installed: Mapping[str, Installed]) -> bool:
    """Whether a plugin that is only used, and all it requires, can be registered: one that fails is left out whole."""
    pending, tried = [name], set[str]()
    while pending:
        plugin = installed.get(pending.pop())
        if plugin is None:
            return False
        if plugin.name in active or plugin.name in tried:
            continue
        tried.add(plugin.name)
        try:
            module = load_module(plugin)
            _register(plugin_manager(), Registry(), plugin, module)
            pending.extend(_named(plugin, module, "EMBED_REQUIRES"))
        except PluginError:
            return False
    return True


def _register(manager: pluggy.PluginManager, registry: Registry, plugin: Installed, module: Any) -> None:
    try:
        manager.register(module, name=plugin.name)
        _check_hook_names(manager, module)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        raise PluginError(f"{_who(plugin)}: {one_line(error)}") from error
    for slot, hook in SLOT_HOOKS.items():
        for config in _answer(manager, plugin, module, hook):
            _check_class(plugin, hook, config, slot)
            registry.add(slot, config, plugin.name)
    for recipe in _answer(manager, plugin, module, "embed_register_recipes"):
        _check_recipe(plugin, recipe)
        registry.add_recipe(recipe, plugin.name)
    for addon in _answer(manager, plugin, module, "embed_register_addons"):
        _check_addon(plugin, addon)
        registry.add_addon(addon, plugin.name)


def _check_hook_names(manager: pluggy.PluginManager, module: Any) -> None:
    """pluggy only reports unknown hooks in bulk, and passes over unmarked ones; say which, and what was meant."""
    known = {name for name in vars(hookspecs) if name.startswith("embed_")}
    for name in dir(module):
        value = getattr(module, name, None)
        marked = inspect.isroutine(value) and getattr(value, "embed_impl", None) is not None
        if marked and name not in known:
            raise PluginError(f"unknown hook {name!r}: {did_you_mean(name, known)}")
        if name in known and not marked:
            raise PluginError(f"{name} is not marked as a hook: put @hookimpl above it")


def _answer(manager: pluggy.PluginManager, plugin: Installed, module: Any, hook: str) -> Sequence[Any]:
    implementation = getattr(module, hook, None)
    if implementation is None or getattr(implementation, "embed_impl", None) is None:
        return ()
    try:
        answer = implementation()
    except Exception as error:
        raise PluginError(f"{_who(plugin)}: {hook} failed: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(answer, (list, tuple)):
        raise PluginError(f"{_who(plugin)}: {hook} must return a list of classes, not {type(answer).__name__}")
    return answer


def _check_class(plugin: Installed, hook: str, config: Any, slot: str) -> None:
    from embed_core.config.component import SLOT_BASES

    base = SLOT_BASES[slot]
    if not (inspect.isclass(config) and issubclass(config, base)):
        raise PluginError(f"{_who(plugin)}: {hook} returned {config!r}, which is no subclass of {base.__name__}")
    if config.is_slot_base():
        raise PluginError(f'{_who(plugin)}: {config.__name__} must define `kind: Literal["its-kind"] = "its-kind"`')
    _check_complete(plugin, config)


def _check_recipe(plugin: Installed, recipe: Any) -> None:
    from embed_core.config.recipe import Recipe

    if not (inspect.isclass(recipe) and issubclass(recipe, Recipe) and isinstance(getattr(recipe, "name", None), str)):
        raise PluginError(
            f"{_who(plugin)}: embed_register_recipes returned {recipe!r}, which is no Recipe with a `name`"
        )
    _check_complete(plugin, recipe)


def _check_addon(plugin: Installed, addon: Any) -> None:
    from embed_core.config.addons import AddOn

    named = inspect.isclass(addon) and issubclass(addon, AddOn) and isinstance(getattr(addon, "name", None), str)
    if not named or not isinstance(getattr(addon, "order", None), int):
        raise PluginError(
            f"{_who(plugin)}: embed_register_addons returned {addon!r}, which is no AddOn with a `name` and an `order`"
        )
    _check_complete(plugin, addon)


def _check_complete(plugin: Installed, config: Any) -> None:
    lacking = ", ".join(sorted(getattr(config, "__abstractmethods__", ())))
    if lacking:
        raise PluginError(f"{_who(plugin)}: {config.__name__} does not define {lacking}")


def status(active: Iterable[str] = ()) -> list[PluginStatus]:
    """Every installed plugin, each loaded on its own so that one failure is its own line.

    Raises PluginError for a name of ``active`` that is not installed.
    """
    rows: list[PluginStatus] = []
    wanted, installed = set(active), discover()
    for name in sorted(wanted):
        _installed(name, installed)
    for plugin in installed.values():
        try:
            activate([plugin.name])
            state: Literal["installed", "active", "failed"] = "active" if plugin.name in wanted else "installed"
            rows.append(PluginStatus(plugin.name, plugin.package, plugin.version, state))
        except EmbedError as error:
            rows.append(PluginStatus(plugin.name, plugin.package, plugin.version, "failed", str(error)))
    return sorted(rows, key=lambda row: row.name)


def _who(plugin: Installed) -> str:
    version = f" {plugin.version}" if plugin.version else ""
    return f"plugin {plugin.name!r} ({plugin.package}{version})"
