"""Errors that a user can cause and mend. The CLI prints them as one line and exits with code 2; no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

__all__ = ["CheckpointError", "ConfigError", "DataError", "EmbedError", "PluginError", "did_you_mean", "json_type"]


class EmbedError(ValueError):
    """Base of every error a user can cause and mend. The message is one line: value, place, alternatives, fix."""


class ConfigError(EmbedError):
    """A configuration that cannot be used."""


class DataError(EmbedError):
    """A data file or row that cannot be used; the message starts with ``file:line``."""


class PluginError(EmbedError):
    """A plugin that is missing, broken, or answers a hook with something the hook does not allow."""


class CheckpointError(EmbedError):
    """A model directory, checkpoint or output directory that cannot be read, written or resumed."""


def did_you_mean(value: str, alternatives: Iterable[str]) -> str:
    """``did you mean 'x'?`` when one alternative is close to ``value``, else the alternatives themselves."""
    known = sorted(alternatives)
    close = difflib.get_close_matches(value, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    if not known:
        return "none is available"
    return "one of: " + ", ".join(known)


def json_type(value: Any) -> str:
    """Name a value in JSON's words, for messages: ``the string 'abc'``, ``a list``, ``null``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        digits = str(value)
        return f"the number {digits if len(digits) <= 40 else digits[:40] + '…'}"
    if isinstance(value, str):
        return f"the string {value[:40]!r}" if len(value) <= 40 else f"the string {value[:40] + '…'!r}"
    return "a list" if isinstance(value, list) else "an object"
