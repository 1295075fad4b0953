"""From a plugin's recipe, a file and overrides to one validated ``RunConfig``; every error names its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from embed_core.config.addons import AddOn, offered_keys, wrapped
from embed_core.config.component import CheckpointConfig, SamplerConfig
from embed_core.config.document import Document, lay_over
from embed_core.config.messages import messages, place_of
from embed_core.config.recipe import Recipe
from embed_core.config.registry import Registry
from embed_core.config.run import RunConfig
from embed_core.errors import ConfigError, did_you_mean

ModelT = TypeVar("ModelT", bound=BaseModel)

SANITY: Mapping[str, Any] = {
    "train": {"max_steps": 4, "gradient_accumulation_steps": 1, "evaluate_every_steps": 0},
    "checkpoint": {"every_steps": 2},
}
"""What ``--sanity`` lays over any run and its phases, besides 8 rows a batch (one per rank, if there are more ranks):
enough for data, step, checkpoint and evaluation to have happened."""

PHASE_PARTS = ("sampler", "train")
"""Parts of a phase that ``--sanity`` and ``--max-steps`` are about, where it has them."""


@dataclass(frozen=True)
class Request:
    """Everything that goes into a run's config, in rising order of precedence."""

    recipe: type[Recipe] | None
    document: Document = field(default_factory=Document)
    sanity: bool = False
    overrides: Document = field(default_factory=Document)
    flags: Mapping[str, Any] = field(default_factory=dict)
    """``seed``, ``output_dir``, ``max_steps``: given on the command line by their own options."""
    world_size: int = 1


def resolve(registry: Registry, request: Request) -> RunConfig:
    """Compile, lay over, validate, wrap. Raises ConfigError, one line per fault."""
    layers = [request.document, request.overrides]
    own = set(request.recipe.model_fields) if request.recipe else set()
    addon_keys = set(offered_keys(registry)) - own
    short = own | addon_keys if request.recipe else own
    _check_roots(layers, own | addon_keys, request.recipe)
    compiled, sanity = _compile(request, registry, layers, short)
    run: Any = _lay_over_run(compiled, _only(request.document.data, own | addon_keys, inside=False))
    if request.sanity:
        small = {**SANITY, "sampler": {"batch_size": max(8, request.world_size)}}
        run = _in_phases(_lay_over_run(run, small), small)
    run = _lay_over_run(run, _set_by_recipe_keys(request, registry, short, compiled))
    if request.sanity:
        run = _lay_over_run(run, sanity)
    run = _lay_over_run(run, _only(request.overrides.data, own | addon_keys, inside=False))
    run = _in_phases(_lay_over_run(run, _flags(request.flags)), _flags(request.flags))
    config = _validate(RunConfig, run, layers, registry)
    for addon in _addons(request.recipe, layers, addon_keys, registry):
        config = _validate(RunConfig, wrapped(plain(config), addon), layers, registry)
    return config


def _addons(
    recipe: type[Recipe] | None, layers: Sequence[Document], names: set[str], registry: Registry
) -> list[AddOn]:
    """The add-ons that are on, from the innermost to the outermost."""
    found = []
    for cls in registry.addons():
        given: Any = {}
        for layer in layers:
            given = lay_over(given, _only(layer.data, names & set(cls.model_fields), inside=True))
        defaults = recipe.addons.get(cls.name, {}) if recipe else {}
        if isinstance(defaults, str):
            if given:
                key = next(iter(given))
                raise ConfigError(f"{place_of((key,), layers)}: {key}: {given[key]!r}: {defaults}")
            continue
        addon = _validate(cls, {**defaults, **given}, layers, registry, given_keys=set(given))
        if addon.is_on():
            found.append(addon)
    return found


def _lay_over_run(run: Any, top: Mapping[str, Any]) -> Any:
    """``top`` over ``run``. A component that changes its kind keeps what every kind of its slot has: another sampler
    has the same batch size, another layout is saved as often."""
    kept: dict[str, Any] = {}
    for name, base in (("sampler", SamplerConfig), ("checkpoint", CheckpointConfig)):
        old, new = run.get(name), top.get(name)
        if (
            isinstance(old, Mapping)
            and isinstance(new, Mapping)
            and new.get("kind", old.get("kind")) != old.get("kind")
        ):
            shared = {key: old[key] for key in base.model_fields if key in old and key != "kind"}
            kept[name] = {**shared, **new}
    return lay_over(run, {**top, **kept})


def _in_phases(run: Any, top: Mapping[str, Any]) -> Any:
    """``top`` also over those parts that a phase has of its own: a phase is as small, and as short, as the run."""
    phases = run.get("phases")
    if not isinstance(phases, (list, tuple)):
        return run
    small = [
        lay_over(phase, {key: value for key, value in top.items() if key in PHASE_PARTS and phase.get(key) is not None})
        if isinstance(phase, Mapping)
        else phase
        for phase in phases
    ]
    return {**run, "phases": small}


def _compile(
    request: Request, registry: Registry, layers: Sequence[Document], short_keys: set[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    recipe = _recipe(request, registry, layers, short_keys)
    return ({}, {}) if recipe is None else (recipe.compile(request.world_size), recipe.sanity())


def _recipe(request: Request, registry: Registry, layers: Sequence[Document], short_keys: set[str]) -> Recipe | None:
    if request.recipe is None:
        return None
    keys: Any = {}
    for layer in layers:
        keys = lay_over(keys, _only(layer.data, short_keys, inside=True))
    return _validate(request.recipe, keys, layers, registry)


def _set_by_recipe_keys(
    request: Request, registry: Registry, short_keys: set[str], compiled: Mapping[str, Any]
) -> dict[str, Any]:
    """What ``--set`` changes through the recipe's keys: it goes over the file's run keys, as its other keys do."""
    if request.recipe is None or not short_keys & set(request.overrides.data):
        return {}
    try:
        before, _ = _compile(request, registry, [request.document], short_keys)
    except ConfigError:  # the file alone is wrong, and --set mends it: there is nothing to compare with
        return {}
    return _changed(before, compiled)


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, value in after.items():
        if key in before and before[key] == value:
            continue
        former = before.get(key)
        if isinstance(former, Mapping) and _same_kind(former, value):
            value = _changed(former, value)
        elif isinstance(former, list) and isinstance(value, list) and len(former) == len(value):
            pairs = list(zip(former, value, strict=True))
            if all(_same_kind(*pair) for pair in pairs):  # by element: the others are as the layers below have them
                value = {at: _changed(*pair) for at, pair in enumerate(pairs) if pair[0] != pair[1]}
        changed[key] = value
    return changed


def _same_kind(former: Any, value: Any) -> bool:
    both = isinstance(former, Mapping) and isinstance(value, Mapping)
    return both and former.get("kind") == value.get("kind")


def _only(data: Mapping[str, Any], names: set[str], *, inside: bool) -> dict[str, Any]:
    return {key: value for key, value in data.items() if (key in names) == inside}


def _flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in flags.items() if value is not None}
    steps = given.pop("max_steps", None)
    return given if steps is None else {**given, "train": {"max_steps": steps}}


def _check_roots(layers: Sequence[Document], short_keys: set[str], recipe: type[Recipe] | None) -> None:
    """A top-level key is the recipe's, an add-on's or the run's; say so before anything is compiled."""
    known = short_keys | set(RunConfig.model_fields)
    for layer in layers:
        for key in layer.data:
            if key in known:
                continue
            place, plugin = layer.place((key,)), offered_keys(None).get(key)
            if plugin is not None:
                raise ConfigError(
                    f"{place}: {key!r} is a key of plugin {plugin!r}, which is installed and not active: "
                    f"add --plugin {plugin}, or leave the key out"
                )
            where = f" of recipe {recipe.name!r} or of a run" if recipe else " of a run"
            raise ConfigError(f"{place}: {key!r} is no key{where}: {did_you_mean(str(key), known)}")


def _validate(
    cls: type[ModelT], data: Mapping[str, Any], layers: Sequence[Document], registry: Registry, **context: Any
) -> ModelT:
    try:
        return cls.model_validate(data, context={"registry": registry, "config_name": layers[0].name, **context})
    except ValidationError as error:
        raise ConfigError("\n".join(messages(cls, data, error, layers, registry))) from None


def plain(config: RunConfig) -> dict[str, Any]:
    """The resolved config as YAML-able data, every default written out; loading it gives the same run.

    Of a phase's ``train`` what it sets, no default: those are the run's.
    """
    data = config.model_dump(mode="json", serialize_as_any=True)
    for written, phase in zip(data["phases"], config.phases, strict=True):
        if phase.train is not None:
            written["train"] = phase.train.model_dump(mode="json", exclude_unset=True)
    return data


def default_output_dir(name: str, stamp: str) -> Path:
    """``runs/{name}-{stamp}`` in the working directory."""
    return Path("runs") / f"{name}-{stamp}"
