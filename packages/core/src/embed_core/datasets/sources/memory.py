"""Rows that a Python program already holds: a list of dicts, a `datasets.Dataset`, any sequence of mappings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from embed_core.datasets.row import Row, parse_row
from embed_core.datasets.sources.base import RowSource
from embed_core.errors import DataError


class InMemoryRows(RowSource):
    """A sequence of FlagEmbedding rows (mappings)."""

    format = "rows in memory"

    def __init__(self, rows: Sequence[Mapping[str, Any]], name: str = "train_dataset") -> None:
        if len(rows) == 0:
            raise DataError(f"{name} is empty: rows like {{'query': ..., 'pos': [...]}} are needed")
        self.name = name
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Row:
        """Raises DataError with the row's number."""
        place = f"{self.name}[{index}]"
        data = self._rows[index]
        if not isinstance(data, Mapping):
            raise DataError(f"{place}: a row is a mapping with `query` and `pos`, got {type(data).__name__}")
        return parse_row(data, place)

    def digest(self) -> str:
        """A digest of the rows' content."""
        digest = blake2b(digest_size=16)
        for index in range(len(self._rows)):
            digest.update(json.dumps(dict(self._rows[index]), sort_keys=True, default=str).encode())
        return digest.hexdigest()
