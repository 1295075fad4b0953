"""Validates one image-text row: finds the columns of each role, and which of their values are pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from embed_core.errors import DataError, json_type
from embed_vision.datasets.items import Mixed, Picture, VisionItem

Mode = Literal["t2i", "i2t", "i2i", "t2t", "m2i", "m2t"]
"""Types of query and passage: t a text, i a picture, m a text with a picture."""
MODES = get_args(Mode)
ROLES = ("query", "query_image", "positive", "negatives", "score", "prompt")
"""Roles that a column may have."""

NAMES: Mapping[str, tuple[str, ...]] = {
    "query text": ("query", "query_text", "caption", "text", "question", "anchor", "instruction"),
    "query picture": ("query_image", "source_image", "image", "query"),
    "positive picture": ("positive_image", "pos_image", "target_image", "positive", "image", "pos"),
    "positive text": ("positive", "positive_text", "pos_text", "caption", "text", "answer", "document", "pos"),
    "negatives": ("negatives", "hard_negatives", "negative_images", "negative_texts", "negative", "neg"),
    "score": ("score",),
    "prompt": ("prompt",),
}
"""Usual column names by role; the first that a row has counts, and the query's columns are not used again."""


@dataclass(frozen=True, slots=True)
class VisionRow:
    """A query with its positives, negatives, score and prompt."""

    query: VisionItem
    pos: tuple[VisionItem, ...]
    """At least one positive."""
    neg: tuple[VisionItem, ...] = ()
    score: float | None = None
    """How well query and positive match, on the data's own scale (for the loss ``cosent``)."""
    prompt: str | None = None
    place: str = ""
    """``file:line``, for messages."""


@dataclass(frozen=True, slots=True)
class RowOptions:
    """How rows are parsed."""

    mode: Mode = "t2i"
    columns: Mapping[str, str] | None = None
    """Maps roles to the data's columns."""
    image_root: Path = Path()
    """Folder that relative paths of pictures start from."""


def parse_row(data: Mapping[str, Any], place: str, options: RowOptions) -> VisionRow:
    """Parse a row of any of the modes. Raises DataError, beginning with ``place`` (``file:line``).

    Pictures are paths (relative to ``image_root``), bytes, or ``{"bytes": …, "path": …}`` as Hugging Face datasets
    store them; positives and negatives are one value or a list. A null is an absent field; other columns are ignored.
    No picture is opened here.
    """
    reader = _Reader(data, place, options)
    query, used = reader.query()
    pos = reader.positives(used)
    return VisionRow(query, pos, reader.negatives(), reader.score(), reader.prompt(), place)


class _Reader:
    def __init__(self, data: Mapping[str, Any], place: str, options: RowOptions) -> None:
        self.data, self.place, self.options = data, place, options
        self.columns = options.columns or {}
        self.asks, self.finds = options.mode[0], options.mode[2]

    def query(self) -> tuple[VisionItem, set[str]]:
        """The query, and the columns that it used."""
        if self.asks == "t":
            value, column = self._value("query", "query text")
            return self._text(value, column), {column}
        value, column = self._value("query_image", "query picture")
        picture = self._picture(value, column)
        if self.asks == "i":
            return picture, {column}
        text, text_column = self._value("query", "query text", {column})
        return Mixed(self._text(text, text_column), picture), {column, text_column}

    def positives(self, used: set[str]) -> tuple[VisionItem, ...]:
        """The positives; at least one."""
        name = "positive picture" if self.finds == "i" else "positive text"
        value, column = self._value("positive", name, used)
        found = self._items(value, column)
        if not found:
            raise DataError(f"{self.place}: `{column}` is an empty list: a row needs at least one positive")
        return found

    def negatives(self) -> tuple[VisionItem, ...]:
        """The negatives; there may be none."""
        column = self._column("negatives", "negatives", set())
        return () if column is None else self._items(self.data[column], column)

    def score(self) -> float | None:
        """The score of the pair, if the row has one."""
        column = self._column("score", "score", set())
        if column is None:
            return None
        value = self.data[column]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < float("inf"):
            raise DataError(f"{self.place}: `{column}` must be a finite number, found {_type(value)}")
        return float(value)

    def prompt(self) -> str | None:
        """The row's prompt for the query, which replaces the model's."""
        column = self._column("prompt", "prompt", set())
        if column is not None and not isinstance(self.data[column], str):
            raise DataError(f"{self.place}: `{column}` must be a string, found {_type(self.data[column])}")
        return None if column is None else self.data[column]

    def _column(self, role: str, name: str, used: set[str]) -> str | None:
        if role in self.columns:
            mapped = self.columns[role]
            return mapped if self.data.get(mapped) is not None else None
        return next((n for n in NAMES[name] if n not in used and self.data.get(n) is not None), None)

    def _value(self, role: str, name: str, used: set[str] | None = None) -> tuple[Any, str]:
        column = self._column(role, name, used or set())
        if column is not None:
            return self.data[column], column
        has = ", ".join(f"`{key}`" for key, value in self.data.items() if value is not None) or "nothing"
        if role in self.columns:
            raise DataError(f"{self.place}: no `{self.columns[role]}`, which columns.{role} names: the row has {has}")
        names = " or ".join(f"`{n}`" for n in NAMES[name][:4])
        raise DataError(
            f"{self.place}: retrieval_mode {self.options.mode} needs a {name}, as {names}, and the row has {has}: "
            f"name the column in `columns.{role}`, or choose another retrieval_mode"
        )

    def _items(self, value: Any, column: str) -> tuple[VisionItem, ...]:
        values = value if isinstance(value, (list, tuple)) else [value]
        read = self._picture if self.finds == "i" else self._text
        return tuple(read(one, f"{column}[{at}]" if values is value else column) for at, one in enumerate(values))

    def _text(self, value: Any, column: str) -> str:
        if not isinstance(value, str):
            raise DataError(f"{self.place}: `{column}` must be a string, found {_type(value)}")
        if not value.strip():
            raise DataError(f"{self.place}: `{column}` is empty: remove the row")
        return value

    def _picture(self, value: Any, column: str) -> Picture:
        path: Any = value
        data: Any = None
        if isinstance(value, Mapping):
            path, data = value.get("path"), value.get("bytes")
        elif isinstance(value, (bytes, bytearray)):
            path, data = None, value
        if data is not None and not isinstance(data, (bytes, bytearray)):
            raise DataError(f"{self.place}: `{column}.bytes` must be bytes, found {_type(data)}")
        if data:
            return Picture(path if isinstance(path, str) and path else None, bytes(data), self.place)
        if not isinstance(path, str) or not path:
            raise DataError(
                f"{self.place}: `{column}` must be the path of a picture, its bytes, or an object of both, found "
                f"{_type(value)}"
            )
        # A URL stays as it is written, for the message.
        rooted = path if "://" in path or path.startswith("data:") else str(self.options.image_root / path)
        return Picture(rooted, None, self.place)


def _type(value: Any) -> str:
    return "bytes" if isinstance(value, (bytes, bytearray)) else json_type(value)
