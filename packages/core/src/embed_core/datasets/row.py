"""One validated training row, which every source of training data gives to the dataset."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from embed_core.errors import DataError, did_you_mean, json_type

if TYPE_CHECKING:
    from collections.abc import Mapping

RowType = Literal["normal", "only_1neg", "symmetric_class", "symmetric_sts", "symmetric_clustering"]
"""FlagEmbedding's ``type``, which acts on a row.

``normal``: as if absent. ``only_1neg``: one negative, whatever the group size. ``symmetric_sts``,
``symmetric_clustering``: passages carry the query's prompt. ``symmetric_class``: that too, and a row with few negatives
has a smaller group instead of repeated ones: the other class labels are all there are.
"""

ROW_VERSION = 2
"""Raised with every change of what :func:`parse_row` takes or makes of the same data: what was validated before is then
validated anew."""
_MEANT = {"positive": "pos", "positives": "pos", "negative": "neg", "negatives": "neg", "anchor": "query"}


@dataclass(frozen=True, slots=True)
class Row:
    """A query with everything known of it."""

    query: str
    pos: tuple[str, ...]
    """The positive texts, at least one."""
    neg: tuple[str, ...] = ()
    pos_scores: tuple[float, ...] | None = None
    """A teacher's score of each positive."""
    neg_scores: tuple[float, ...] | None = None
    prompt: str | None = None
    """Prompt of this row's query, instead of the dataset's or the model's."""
    type: RowType = "normal"
    pos_keys: tuple[str, ...] | None = None
    """External document ids of the positives."""
    neg_keys: tuple[str, ...] | None = None
    place: str = ""
    """``file:line``."""
    masked: tuple[str, ...] = ()
    """Texts that may answer the query: never drawn, and never its negatives (what ``embed mine --audit`` marks)."""

    @property
    def symmetric(self) -> bool:
        """Whether passages carry the query's prompt."""
        return self.type.startswith("symmetric")


def parse_row(data: Mapping[str, Any], place: str) -> Row:
    """A FlagEmbedding row (``query``, ``pos``, optional ``neg``, ``pos_scores``, ``neg_scores``, ``prompt``, ``type``).

    ``doc_id``, one id per positive (a list, or a string where there is one positive), gives their external ids.
    ``masked`` lists texts that are neither: no negatives of the query, wherever in the batch they are, and not drawn.
    A null is an absent field; other keys are ignored. Raises DataError, beginning with ``place`` (``file:line``).
    """
    query = _query(data, place)
    pos = _texts(data, "pos", place)
    if not pos:
        raise DataError(f"{place}: `pos` is an empty list: a row needs at least one positive text")
    if not all(text.strip() for text in pos):
        raise DataError(f"{place}: `pos` holds an empty text: remove it, or the row")
    neg = _texts(data, "neg", place) if data.get("neg") is not None else ()
    pos_scores, neg_scores = _scores(data, "pos", len(pos), place), _scores(data, "neg", len(neg), place)
    if pos_scores is None and neg_scores is not None:
        raise DataError(f"{place}: `neg_scores` without `pos_scores`: a teacher scores both, or neither")
    if neg and pos_scores is not None and neg_scores is None:
        raise DataError(f"{place}: `pos_scores` without `neg_scores`: a teacher scores both, or neither")
    return Row(
        query, pos, neg, pos_scores, neg_scores, _prompt(data, place), _type(data, place),
        _keys(data, len(pos)), None, place,
        _texts(data, "masked", place) if data.get("masked") is not None else (),
    )  # fmt: skip


def _query(data: Mapping[str, Any], place: str) -> str:
    value = data.get("query")
    if value is None:
        raise DataError(f"{place}: no `query`{_instead(data, 'query')}")
    if not isinstance(value, str):
        raise DataError(f"{place}: `query` must be a string, found {json_type(value)}")
    if not value.strip():
        raise DataError(f"{place}: `query` is empty: remove the row")
    return value


def _instead(data: Mapping[str, Any], wanted: str) -> str:
    """Ends a message: which column stands for the field that is due, or which columns the row has."""
    for name in data:
        if _MEANT.get(name) == wanted:
            return f": rename `{name}` to `{wanted}`"
    return f": a row has `query` and `pos`, this one has {', '.join(f'`{name}`' for name in data) or 'no keys'}"


def _texts(data: Mapping[str, Any], name: str, place: str) -> tuple[str, ...]:
    value = data.get(name)
    if value is None:
        raise DataError(f"{place}: no `{name}`{_instead(data, name)}")
    if isinstance(value, str):
        raise DataError(f'{place}: `{name}` must be a list of strings, found {json_type(value)}: write ["…"]')
    if not isinstance(value, list):
        raise DataError(f"{place}: `{name}` must be a list of strings, found {json_type(value)}")
    for at, text in enumerate(value):
        if not isinstance(text, str):
            raise DataError(f"{place}: `{name}[{at}]` must be a string, found {json_type(text)}")
    return tuple(value)


def _scores(data: Mapping[str, Any], side: str, texts: int, place: str) -> tuple[float, ...] | None:
    name = f"{side}_scores"
    value = data.get(name)
    if value is None:
        return None
    if not isinstance(value, list):
        raise DataError(f"{place}: `{name}` must be a list of numbers, found {json_type(value)}")
    for at, score in enumerate(value):
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not _finite(score):
            raise DataError(f"{place}: `{name}[{at}]` must be a finite number, found {json_type(score)}")
    if len(value) != texts:
        raise DataError(f"{place}: `{name}` has length {len(value)}, `{side}` has {texts}: one score per text is due")
    return tuple(float(score) for score in value)


def _finite(score: float) -> bool:
    try:
        return math.isfinite(score)
    except OverflowError:  # an integer of more digits than any float
        return False


def _prompt(data: Mapping[str, Any], place: str) -> str | None:
    value = data.get("prompt")
    if value is not None and not isinstance(value, str):
        raise DataError(f"{place}: `prompt` must be a string, found {json_type(value)}")
    return value


def _type(data: Mapping[str, Any], place: str) -> RowType:
    value = data.get("type")
    if value is None:
        return "normal"
    if not isinstance(value, str):
        raise DataError(f"{place}: `type` must be a string, found {json_type(value)}")
    if value not in get_args(RowType):
        raise DataError(f"{place}: unknown `type` {value!r}: {did_you_mean(value, get_args(RowType))}")
    return cast("RowType", value)


def _keys(data: Mapping[str, Any], positives: int) -> tuple[str, ...] | None:
    """External ids of the positives, where ``doc_id`` has one for each; else it is somebody's own column."""
    value = data.get("doc_id")
    keys = value if isinstance(value, list) else [value]
    if len(keys) != positives or any(isinstance(key, bool) or not isinstance(key, (str, int)) for key in keys):
        return None
    return tuple(str(key) for key in keys)
