"""Handles rows that cannot be used: the first one stops the run, or all are counted and listed."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

from embed_core.errors import DataError

SHOWN = 2000
"""Characters of a bad row that are kept in the list."""


class BadRows:
    """Counts, and lists in a JSONL file (``place``, ``reason``, ``row``) that is there only if there is any."""

    def __init__(self, policy: Literal["error", "skip"], path: Path) -> None:
        self.policy, self.path = policy, path
        self.count = 0
        self.reasons: dict[str, int] = {}
        self.first = ""
        """Place and reason of the first one."""
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, place: str, reason: str, value: Any) -> None:
        """Raises DataError under the policy ``error``."""
        if self.policy == "error":
            raise DataError(f"{place}: {reason}")
        self.count += 1
        self.first = self.first or f"{place}: {reason}"
        kind = reason.split(":")[0]
        if kind in self.reasons or len(self.reasons) < 100:
            self.reasons[kind] = self.reasons.get(kind, 0) + 1
        if self._file is None:
            self._file = self.path.open("w", encoding="utf-8")
        text = json.dumps(value, default=repr)  # ASCII: what is no character would not be written otherwise
        self._file.write(json.dumps({"place": place, "reason": reason, "row": text[:SHOWN]}) + "\n")
