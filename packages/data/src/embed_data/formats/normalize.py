"""Turns records of any shape into validated rows, or says why a record is no row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from embed_core.datasets.row import Row, parse_row
from embed_core.errors import DataError, json_type
from embed_data.formats.columns import FLAGEMBEDDING, NEGATIVE, Columns, Plan, plan
from embed_data.formats.swift import COLUMNS as SWIFT_COLUMNS
from embed_data.formats.swift import SHAPE as SWIFT
from embed_data.formats.swift import is_swift, swift_row

_DEEPEST = 8


class Normaliser:
    """Turns records into rows. The columns of a file may differ from row to row; each set is planned once."""

    def __init__(self, columns: Columns, *, strict: bool = False) -> None:
        """``strict``: an object with `query` and `pos` is a FlagEmbedding row, whose `pos` and `neg` must be lists, and
        none of its other keys is taken for a negative."""
        self.columns, self._strict = columns, strict
        self._plans: dict[tuple[str, ...], Plan] = {}
        self.shapes: dict[str, int] = {}
        """How many rows of each shape were read."""

    def row(self, value: Any, place: str) -> Row:
        """The row of a record. Raises DataError, beginning with ``place``."""
        shape, row = FLAGEMBEDDING, self._flagembedding_row(value, place)
        if row is None:
            try:
                shape, fields, _ = self.fields(value)
                fields = _with_score(fields)
            except DataError as error:
                raise DataError(f"{place}: {error}") from None
            row = parse_row(fields, place)
        self.shapes[shape] = self.shapes.get(shape, 0) + 1
        return row

    def _flagembedding_row(self, value: Any, place: str) -> Row | None:
        """The row of an object whose keys are FlagEmbedding's; ``None`` for any other value, which needs a plan."""
        if self.columns or not isinstance(value, Mapping):
            return None
        if self._strict:
            return parse_row(value, place) if "query" in value and "pos" in value else None
        if not is_flagembedding(value) or is_swift(value):
            return None
        try:
            return parse_row(value, place)
        except DataError:  # with a plan it may be a row, or there is more to say
            return None

    def fields(self, value: Any) -> tuple[str, dict[str, Any], frozenset[str]]:
        """The shape's name, a FlagEmbedding row with a pair's one ``score``, and the record's columns that are in it.

        Raises DataError without a place.
        """
        if isinstance(value, list):
            return _listed(value)
        if not isinstance(value, Mapping):
            raise DataError(f"expected an object or a list of texts, found {json_type(value)}")
        if is_swift(value) and not self.columns:
            return SWIFT, swift_row(value), SWIFT_COLUMNS
        names = tuple(value)
        found = self._plans.get(names)
        if found is None:
            found = plan(names, self.columns)
            if len(self._plans) < 1000:  # a file whose every row has other keys must not fill the memory
                self._plans[names] = found
        return found.shape, _planned(value, found), found.used


def most_frequent(shapes: Mapping[str, int]) -> str:
    """The three shapes that most rows have, for the user."""
    return ", ".join(sorted(shapes, key=lambda name: -shapes[name])[:3])


def is_flagembedding(value: Any) -> bool:
    """Whether a record is a FlagEmbedding row as it is, and none of its texts has another name."""
    if not isinstance(value, Mapping) or "query" not in value or not isinstance(value.get("pos"), list):
        return False
    if any(name != "neg" and NEGATIVE.fullmatch(name) for name in value):
        return False
    return value.get("neg") is None or isinstance(value["neg"], list)


def _planned(value: Mapping[str, Any], found: Plan) -> dict[str, Any]:
    fields: dict[str, Any] = {"query": _at(value, found.query)}
    if fields["query"] is None or not isinstance(fields["query"], str):
        raise DataError(f"column `{found.query}` must be a text, found {json_type(fields['query'])}")
    fields["pos"] = [text for name in found.pos for text in _texts(value, name)]
    if not fields["pos"]:
        raise DataError(f"no positive: {', '.join(f'`{name}`' for name in found.pos)} is empty")
    fields["neg"] = [text for name in found.neg for text in _texts(value, name)]
    for role, name in (found.extras or {}).items():
        fields[role] = _texts(value, name) if role == "masked" else _at(value, name)
    if found.score is not None:
        fields["score"] = _at(value, found.score)
    return fields


def _listed(value: list[Any]) -> tuple[str, dict[str, Any], frozenset[str]]:
    """``[anchor, positive, negative, …]`` or ``[text, text, score]``."""
    scored = len(value) == 3 and isinstance(value[2], (int, float)) and not isinstance(value[2], bool)
    texts = value[:2] if scored else value
    if value and isinstance(value[0], (Mapping, list)):
        raise DataError("a list of rows, no row: a file that is one JSON array is read with `format: json`")
    if len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        raise DataError("a list must be [anchor, positive, negative, …] or [text, text, score]")
    fields: dict[str, Any] = {"query": texts[0], "pos": [texts[1]], "neg": list(texts[2:])}
    if scored:
        return "[text, text, score]", {**fields, "score": value[2]}, frozenset()
    return "[anchor, positive, negatives]", fields, frozenset()


def _texts(value: Mapping[str, Any], name: str) -> list[Any]:
    """A column's texts: one or a list; a null or an empty cell is none."""
    found = _at(value, name)
    if found is None or found == "":
        return []
    if isinstance(found, str):
        return [found]
    if not isinstance(found, list):
        raise DataError(f"column `{name}` must be a text or a list of texts, found {json_type(found)}")
    for at, text in enumerate(found):
        if not isinstance(text, str):
            raise DataError(f"column `{name}[{at}]` must be a text, found {json_type(text)}")
    return found


def _at(value: Mapping[str, Any], name: str) -> Any:
    """The column, or what ``a.b`` leads to; ``None`` where there is nothing."""
    if name in value:
        return value[name]
    found: Any = value
    for part in name.split(".", _DEEPEST):
        if not isinstance(found, Mapping):
            return None
        found = found.get(part)
    return found


def _with_score(fields: dict[str, Any]) -> dict[str, Any]:
    """Turns the one score of a pair into its positive's score."""
    score = fields.pop("score", None)
    if score is None:
        return fields
    if isinstance(score, str):  # CSV has nothing but text
        try:
            score = float(score)
        except ValueError:
            raise DataError(f"the score must be a number, found {json_type(score)}") from None
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not _finite(score):
        raise DataError(f"the score must be a finite number, found {json_type(score)}")
    if len(fields["pos"]) != 1:
        raise DataError(f"one score for {len(fields['pos'])} positives: one each is due, as `pos_scores`")
    if fields.get("neg"):
        raise DataError("one score and negatives: scores of all are due, as `pos_scores` and `neg_scores`")
    return {**fields, "pos_scores": [score]}


def _finite(score: float) -> bool:
    try:
        return math.isfinite(score)
    except OverflowError:  # an integer beyond the range of floats
        return False


def check_characters(row: Row, place: str) -> None:
    """Raises DataError, beginning with ``place``, for a text that no tokenizer takes."""
    for text in (row.query, *row.pos, *row.neg, row.prompt or "", *(row.pos_keys or ())):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise DataError(f"{place}: {half} is half of a surrogate pair and no character: remove it") from None
