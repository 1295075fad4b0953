"""YAML and JSON files and ``--set`` overrides as plain data in which every key knows its place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from embed_core.errors import ConfigError, did_you_mean

KeyPath = tuple[str | int, ...]
JSON_SUFFIXES = (".json", ".jsonc", ".json5")
_COMMENT_OR_TAB = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/|\t', re.DOTALL)
"""Matches a JSON string (inside which nothing else counts), a comment, or a tab, which YAML does not take for space."""


@dataclass
class Document:
    """Plain nested data, and for every key path the place it was written at."""

    data: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)
    name: str = ""
    """Of the file, without its suffix; empty for what no file holds. Recipes find it as ``config_name`` in the context
    of their validation."""

    def place(self, path: KeyPath) -> str:
        """The place of ``path`` or of its nearest written parent; empty when nothing of it was written."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return ""


def read(path: Path) -> Document:
    """Read a YAML or JSON file, this one with comments or without. Raises ConfigError with file:line for syntax errors
    and duplicate keys."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*") if p.suffix in {".yaml", ".yml", ".json"}]
        hint = did_you_mean(path.name, siblings) if siblings else f"there is no config in {path.parent.resolve()}"
        raise ConfigError(f"config file {str(path)!r} does not exist: {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {str(path)!r} cannot be read: {error}") from None
    document = parse(without_comments(text) if path.suffix in JSON_SUFFIXES else text, str(path))
    document.name = path.stem
    return document


def without_comments(text: str) -> str:
    """``text`` with spaces for tabs and for ``// …`` and ``/* … */`` outside strings: every line and column stays."""
    return _COMMENT_OR_TAB.sub(
        lambda found: found[0] if found[0].startswith('"') else re.sub(r"[^\n]", " ", found[0]), text
    )


def parse(text: str, name: str) -> Document:
    """Parse YAML (of which JSON is a part) from ``text``; ``name`` is what error messages call it."""
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{name}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if root is None:
        return Document()
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{name}:{root.start_mark.line + 1}: a config is a mapping of keys to values")
    document = Document()
    constructor = _Loader("")
    document.data = _plain(root, (), name, document.places, constructor)
    return document


def overrides(pairs: Iterable[str]) -> Document:
    """``--set a.b=c`` pairs as a document; values are read as YAML (``[1, 2]``, ``true``, ``null``, ``text``)."""
    document = Document()
    for pair in pairs:
        key, equals, raw = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {pair!r}: write it as key=value, for instance --set train.max_steps=100")
        try:
            value = yaml.load(raw, Loader=_Loader)
        except yaml.YAMLError:
            value = raw
        path: KeyPath = tuple(int(part) if part.isdigit() else part for part in key.strip().split("."))
        put(document.data, path, value)
        document.places[path] = f"--set {key.strip()}"
    return document


def put(data: Any, path: KeyPath, value: Any) -> None:
    """Set a nested key, creating mappings on the way (an index stays a key: :func:`lay_over` resolves it)."""
    for part in path[:-1]:
        child = data.get(part)
        if not isinstance(child, dict):
            child = data[part] = {}
        data = child
    data[path[-1]] = value


def lay_over(base: Any, top: Any, at: KeyPath = ()) -> Any:
    """``top`` over ``base``: mappings merge key by key, everything else is replaced.

    A component whose ``kind`` changes is replaced as a whole: its other keys belonged to another kind. A mapping
    whose keys are all indices is laid over the elements of a list. Raises ConfigError, naming the path ``at``, for an
    element that is not there.
    """
    if isinstance(base, (list, tuple)) and isinstance(top, Mapping) and top and all(isinstance(k, int) for k in top):
        items = list(base)
        for index, value in top.items():
            if index >= len(items):
                key = ".".join(map(str, (*at, index)))
                raise ConfigError(f"{key}: there is no element {index} in a list of {len(items)}: count from 0")
            items[index] = lay_over(items[index], value, (*at, index))
        return items
    if not (isinstance(base, Mapping) and isinstance(top, Mapping)):
        return top
    if "kind" in top and "kind" in base and top["kind"] != base["kind"]:
        return dict(top)
    merged = dict(base)
    for key, value in top.items():
        merged[key] = lay_over(merged[key], value, (*at, key)) if key in merged else value
    return merged


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats: PyYAML's 1.1 rules read ``1e-5`` as a string. A date is text: no key wants one, names do."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the base class declares it
        first: [rule for rule in rules if rule[0] != "tag:yaml.org,2002:timestamp"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*(?:[eE][-+]?[0-9]+)|\.[0-9]+(?:[eE][-+]?[0-9]+)?)$"),
    list("-+0123456789."),
)


def _plain(node: yaml.Node, path: KeyPath, name: str, places: dict[KeyPath, str], loader: yaml.SafeLoader) -> Any:
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ConfigError(f"{name}:{line}: the key {key!r} is not text")
            if key in result:
                raise ConfigError(f"{name}:{line}: the key {'.'.join(map(str, (*path, key)))} is written twice")
            places[(*path, key)] = f"{name}:{line}"
            result[key] = _plain(value_node, (*path, key), name, places, loader)
        return result
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, child in enumerate(node.value):
            places[(*path, index)] = f"{name}:{child.start_mark.line + 1}"
            items.append(_plain(child, (*path, index), name, places, loader))
        return items
    try:
        return loader.construct_object(node, deep=True)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"{name}:{node.start_mark.line + 1}: {problem}") from None
