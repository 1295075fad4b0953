"""Reads the width of a model's vectors from its files, without loading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

_KEYS = ("hidden_size", "d_model", "dim", "n_embd")
"""The keys for the width of the token states in transformers' configs."""


class Width(NamedTuple):
    """The width of a model's vectors, and the place in a file that states it."""

    width: int
    place: str


def dense_width(model: str) -> Width | None:
    """The width of the vectors of ``model``, a directory or a cached model of the hub; None where no local file states
    it. The last Dense module of sentence-transformers counts, else the token states."""
    modules = _read(model, "modules.json")
    for entry in reversed(modules[0] if modules and isinstance(modules[0], list) else []):
        if str(entry.get("type", "")).rsplit(".", 1)[-1] == "Dense":
            found = _read(model, f"{entry.get('path', '')}/config.json")
            if found and isinstance(found[0].get("out_features"), int):
                return Width(found[0]["out_features"], found[1])
    found = _read(model, "config.json")
    if not found or not isinstance(found[0], dict):
        return None
    config = found[0].get("text_config") or found[0]
    width = next((config[key] for key in _KEYS if isinstance(config.get(key), int)), None)
    return None if width is None else Width(width, f"{_KEYS[0]} in {found[1]}" if "hidden_size" in config else found[1])


def _read(model: str, name: str) -> tuple[Any, str] | None:
    """A JSON file of a model and its path; None if it is unreadable, which loading the model reports better."""
    path = Path(model).expanduser() / name
    if not Path(model).expanduser().is_dir():
        cached = _cached(model, name)
        if cached is None:
            return None
        path = cached
    try:
        return json.loads(path.read_text(encoding="utf-8")), str(path)
    except (OSError, ValueError):
        return None


def _cached(model: str, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, name)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None
