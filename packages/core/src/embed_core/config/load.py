"""From a plugin's recipe, a file and overrides to one validated ``RunConfig``; every error names its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from embed_core.config.base import CheckpointConfig, Component, Recipe, SamplerConfig
from embed_core.config.document import Document, KeyPath, lay_over
from embed_core.config.run import RunConfig
from embed_core.config.taught import check_kinds, taught
from embed_core.errors import ConfigError, EmbedError, did_you_mean
from embed_core.registry import Registry

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
    """Compile, lay over, validate. Raises ConfigError, one line per fault."""
    layers = [request.document, request.overrides]
    recipe_fields = set(request.recipe.model_fields) if request.recipe else set()
    _check_roots(layers, recipe_fields, request.recipe)
    compiled, sanity = _compile(request, registry, layers, recipe_fields)
    run: Any = _lay_over_run(compiled, _only(request.document.data, recipe_fields, inside=False))
    if request.sanity:
        small = {**SANITY, "sampler": {"batch_size": max(8, request.world_size)}}
        run = _in_phases(_lay_over_run(run, small), small)
    run = _lay_over_run(run, _set_by_recipe_keys(request, registry, recipe_fields, compiled))
    if request.sanity:
        run = _lay_over_run(run, sanity)
    run = _lay_over_run(run, _only(request.overrides.data, recipe_fields, inside=False))
    run = _in_phases(_lay_over_run(run, _flags(request.flags)), _flags(request.flags))
    config = _validate(RunConfig, run, layers, registry)
    return _taught(config, _recipe(request, registry, layers, recipe_fields), layers, registry)


def _taught(config: RunConfig, recipe: Recipe | None, layers: Sequence[Document], registry: Registry) -> RunConfig:
    """With the recipe's teacher, around what all keys together have made of data and loss: they mean what they mean
    without a teacher, and faults are told before."""
    teacher = None if recipe is None else recipe.teacher()
    if recipe is None or teacher is None:
        return config
    check_kinds(registry, _place(("teacher_model_name",), layers), recipe.teacher_model_name)
    return _validate(RunConfig, taught(plain(config), teacher, recipe.distillation_alpha), layers, registry)


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
    request: Request, registry: Registry, layers: Sequence[Document], recipe_fields: set[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    recipe = _recipe(request, registry, layers, recipe_fields)
    return ({}, {}) if recipe is None else (recipe.compile(request.world_size), recipe.sanity())


def _recipe(request: Request, registry: Registry, layers: Sequence[Document], recipe_fields: set[str]) -> Recipe | None:
    if request.recipe is None:
        return None
    keys: Any = {}
    for layer in layers:
        keys = lay_over(keys, _only(layer.data, recipe_fields, inside=True))
    return _validate(request.recipe, keys, layers, registry)


def _set_by_recipe_keys(
    request: Request, registry: Registry, recipe_fields: set[str], compiled: Mapping[str, Any]
) -> dict[str, Any]:
    """What ``--set`` changes through the recipe's keys: it goes over the file's run keys, as its other keys do."""
    if request.recipe is None or not recipe_fields & set(request.overrides.data):
        return {}
    try:
        before, _ = _compile(request, registry, [request.document], recipe_fields)
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


def _check_roots(layers: Sequence[Document], recipe_fields: set[str], recipe: type[Recipe] | None) -> None:
    """A top-level key is the recipe's or the run's; say so before anything is compiled."""
    known = recipe_fields | set(RunConfig.model_fields)
    for layer in layers:
        for key in layer.data:
            if key not in known:
                where = f" of recipe {recipe.name!r} or of a run" if recipe else " of a run"
                place = layer.place((key,))
                raise ConfigError(f"{place}: {key!r} is no key{where}: {did_you_mean(str(key), known)}")


def _validate(cls: type[ModelT], data: Mapping[str, Any], layers: Sequence[Document], registry: Registry) -> ModelT:
    try:
        return cls.model_validate(data, context={"registry": registry, "config_name": layers[0].name})
    except ValidationError as error:
        lines = [_message(cls, data, fault, layers, registry) for fault in error.errors(include_url=False)]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def _message(
    cls: type[BaseModel], data: Mapping[str, Any], fault: Any, layers: Sequence[Document], registry: Registry
) -> str:
    path = tuple(fault["loc"])
    place = _place(path, layers)
    key = ".".join(map(str, path))
    prefix = f"{place}: {key}" if place else key
    if fault["type"] == "extra_forbidden":
        owner = _class_at(cls, data, path[:-1], registry)
        known = list(owner.model_fields) if owner else []
        return f"{prefix}: unknown key {path[-1]!r}: {did_you_mean(str(path[-1]), known)}"
    if fault["type"] == "missing":
        return f"{prefix}: this key is needed and missing"
    if fault["type"] == "kind_missing":
        slot = fault["ctx"]["slot"]
        article = "an" if slot[0] in "aeiou" else "a"
        return f"{prefix}: {article} {slot} needs a `kind`, one of: {', '.join(sorted(registry.kinds(slot)))}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "value_error":  # our own validators name the value themselves
        return f"{prefix}: {message}" if prefix else message
    message = message[:1].lower() + message[1:]
    return f"{prefix}: {message}, got {_short(fault['input'])}"


def _place(path: KeyPath, layers: Sequence[Document]) -> str:
    """Where the faulty key was written, or the `kind` of the faulty component; the latest layer wins."""
    tries = ((*path, "kind"), path)
    found = (p for keys in tries for layer in reversed(layers) if (p := layer.place(keys)))
    # A section whose keys contradict each other is written where the last of them is.
    inside = (p for layer in reversed(layers) for at, p in reversed(layer.places.items()) if at[: len(path)] == path)
    return next(found, "") or (next(inside, "") if path else "")


def _class_at(cls: type[BaseModel], data: Any, path: KeyPath, registry: Registry) -> type[BaseModel] | None:
    """The config class that validates ``data`` at ``path``: components are looked up by their ``kind``."""
    current: Any = cls
    for part in path:
        if isinstance(part, str):
            if not (isinstance(current, type) and issubclass(current, BaseModel)) or part not in current.model_fields:
                return None
            current = current.model_fields[part].annotation
            data = data.get(part) if isinstance(data, Mapping) else None
        else:
            current = next((a for a in getattr(current, "__args__", ()) if a is not Ellipsis), None)
            data = data[part] if isinstance(data, (list, tuple)) and part < len(data) else None
        current = _concrete(current, data, registry)
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _concrete(annotation: Any, data: Any, registry: Registry) -> Any:
    # Of `X | None` the X; a list's elements are looked up when the path goes into it.
    union = get_origin(annotation) in (Union, UnionType)
    for option in get_args(annotation) if union else (annotation,):
        if isinstance(option, type) and issubclass(option, Component) and option.is_slot_base():
            kind = data.get("kind") if isinstance(data, Mapping) else None
            try:
                return registry.get(option.slot, str(kind))
            except EmbedError:
                return None
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return annotation


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


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
