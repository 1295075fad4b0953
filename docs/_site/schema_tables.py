"""Turns a JSON schema into Markdown tables of keys: one row for every key a user can write."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
PLAIN = {"object": "mapping", "string": "text", "number": "number", "integer": "integer", "boolean": "true or false"}


class Tables:
    """Renders keys of one JSON schema. ``slots`` maps the title of a slot's choice to the page that lists its kinds."""

    def __init__(self, definitions: Mapping[str, Schema], slots: Mapping[str, str]) -> None:
        self._definitions, self._slots = definitions, slots

    def of(self, schema: Schema, leave_out: tuple[str, ...] = ()) -> str:
        """A table of the keys of an object, with the keys of nested sections written as ``section.key``."""
        rows = [row for key, row in self._rows(schema, "", {}) if key not in leave_out]
        return "\n".join(["| key | |", "|---|---|", *rows]) if rows else "It has no keys of its own."

    def _rows(self, schema: Schema, prefix: str, shown: dict[str, str]) -> Iterator[tuple[str, str]]:
        required = schema.get("required", ())
        for name, field in schema.get("properties", {}).items():
            key = prefix + name
            section = self._section(field)
            repeated = shown.get(section, "")
            yield key, self._row(key, field, name in required, f"see `{repeated}`" if repeated else "")
            if section and not repeated:
                shown[section] = key
                inner = f"{key}[]." if _is_list(field) else f"{key}."
                yield from self._rows(self._definitions[section], inner, shown)

    def _row(self, key: str, field: Schema, required: bool, see: str) -> str:
        facts = [see or self._type(field), "required" if required else "" if self._section(field) else _default(field)]
        text = described(field.get("description") or "")
        cell = f"<small>{' · '.join(fact for fact in facts if fact)}</small>"
        return f"| `{key}` | {cell}{'<br>' + text.replace('|', chr(92) + '|') if text else ''} |"

    def _section(self, field: Schema) -> str:
        """The definition whose keys a field has, where that is a section rather than a slot; else an empty string."""
        for part in (field, *field.get("anyOf", ()), field.get("items") or {}):
            name = part.get("$ref", "").rsplit("/", 1)[-1]
            if name and "properties" in self._definitions[name]:
                return name
        return ""

    def _type(self, field: Schema) -> str:
        if "$ref" in field:
            definition = self._definitions[field["$ref"].rsplit("/", 1)[-1]]
            title = definition.get("title", "")
            if title in self._slots:
                return f"[{'an' if title[0] in 'aeiou' else 'a'} {title}]({self._slots[title]})"
            return "section" if "properties" in definition else self._type(definition)
        if "anyOf" in field:
            return self._any_of(field)
        if "const" in field:
            return f"`{field['const']}`"
        if "enum" in field:
            return ", ".join(f"`{_yaml(value)}`" for value in field["enum"])
        if field.get("type") == "array":
            return self._list(field)
        if field.get("type") == "object" and isinstance(field.get("additionalProperties"), Mapping):
            return f"mapping of {self._type(field['additionalProperties']) or 'anything'}"
        name = "path" if field.get("format") == "path" else PLAIN.get(field.get("type", ""), "")
        bounds = [f"{sign} {field[word]:g}" for word, sign in BOUNDS.items() if word in field]
        return " ".join([name, " and ".join(bounds)]).strip()

    def _any_of(self, field: Schema) -> str:
        kinds = [self._type(option) for option in field["anyOf"] if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(kind for kind in kinds if kind))

    def _list(self, field: Schema) -> str:
        if "prefixItems" in field:
            return f"list of {len(field['prefixItems'])}: {', '.join(self._type(one) for one in field['prefixItems'])}"
        item = self._type(field.get("items") or {})
        return f"list of {item}" if item else "list"


def roles(text: str) -> str:
    """Turns reStructuredText's roles, such as ``:class:`a.b.C```, into code: `` `C` ``."""
    return re.sub(r":\w+:`~?([^`]+)`", lambda role: f"`{role[1].rsplit('.', 1)[-1]}`", text)


def literal_blocks(text: str) -> str:
    """Turns the double colon before an indented block, which Markdown does not know, into a single one."""
    return re.sub(r"::$", ":", text, flags=re.MULTILINE)


def described(text: str) -> str:
    """A docstring as one line of Markdown; what Python calls ``None`` is ``null`` in a config."""
    line = " ".join(text.split())
    line = roles(line)
    return re.sub(r"(?<![\w`])None(?= = )", "`null`", line)


def _default(field: Schema) -> str:
    if "default" not in field or "const" in field:
        return ""
    value = field["default"]
    if isinstance(value, Mapping) and set(value) > {"kind"}:
        value = {"kind": value["kind"]}  # what the kind's own defaults are stands where the kind is described
    text = _yaml(value)
    return f"default `{text}`" if len(text) <= 60 else ""


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _is_list(field: Schema) -> bool:
    return field.get("type") == "array"
