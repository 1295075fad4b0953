"""Validation errors as lines for the user: the place, the key, the value and the alternatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from embed_core.config.component import Component
from embed_core.config.document import Document, KeyPath
from embed_core.config.registry import Registry
from embed_core.errors import EmbedError, did_you_mean


def messages(
    cls: type[BaseModel],
    data: Mapping[str, Any],
    error: ValidationError,
    layers: Sequence[Document],
    registry: Registry,
) -> list[str]:
    """One line for each fault of ``error``, which validating ``data`` as ``cls`` raised; equal lines once.

    ``layers`` are the documents that ``data`` was made of, in rising order of precedence: they know the places.
    """
    lines = [_message(cls, data, fault, layers, registry) for fault in error.errors(include_url=False)]
    return list(dict.fromkeys(lines))


def _message(
    cls: type[BaseModel], data: Mapping[str, Any], fault: Any, layers: Sequence[Document], registry: Registry
) -> str:
    path = tuple(fault["loc"])
    place = place_of(path, layers)
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


def place_of(path: KeyPath, layers: Sequence[Document]) -> str:
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
