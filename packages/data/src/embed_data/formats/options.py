"""The options of commands that read rows: ``--column``, ``--format``, ``--no-header``, ``--split``, ``--subset``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from embed_core.errors import ConfigError
from embed_data.formats.config import SEVERAL, FileFields


def file_fields(columns: Sequence[str], **options: Any) -> FileFields:
    """How a file is read; ``columns`` are ``role=name``. Raises ConfigError, one line per fault."""
    found: FileFields = validated(FileFields, {"columns": _columns(columns), **options})
    return found


def validated(cls: Any, data: dict[str, Any], **context: Any) -> Any:
    """Raises ConfigError, one line per fault."""
    try:
        return cls.model_validate(data, context=context)
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            message = str(fault["msg"]).removeprefix("Value error, ")
            place = ".".join(map(str, fault["loc"]))
            own = fault["type"] == "value_error"
            lines.append(
                message if own or not place else f"{place}: {message[:1].lower()}{message[1:]}, got {fault['input']!r}"
            )
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def _columns(pairs: Sequence[str]) -> dict[str, Any]:
    """``pos=a`` twice is two columns."""
    found: dict[str, Any] = {}
    for pair in pairs:
        role, equals, name = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"--column {pair!r}: write it as ROLE=NAME, for instance --column query=question")
        found[role] = (*found.get(role, ()), name) if role in SEVERAL else name
    return found
