"""JSON as people write it in config files: with comments, and indented by tabs."""

from __future__ import annotations

import re

JSON_SUFFIXES = (".json", ".jsonc", ".json5")
_PART = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/|\t', re.DOTALL)
"""A string, in which all the others are text; a comment; a tab, which YAML does not take for space."""


def without_comments(text: str) -> str:
    """``text`` with spaces for ``// …`` and ``/* … */`` outside strings: every line and column stays where it is."""
    return _PART.sub(lambda found: found[0] if found[0].startswith('"') else re.sub(r"[^\n]", " ", found[0]), text)
