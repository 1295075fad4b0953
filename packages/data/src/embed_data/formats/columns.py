"""Which column of a record holds the query, the positives and so on: by the usual names, or as the config says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from embed_core.errors import DataError

QUERY_NAMES = ("query", "anchor", "question", "sentence1", "sentence_1", "sentence_A", "text1", "text_1", "input")
POS_NAMES = (
    "pos", "positive", "positives", "answer", "answers", "passage", "document", "response",
    "sentence2", "sentence_2", "sentence_B", "text2", "text_2",
)  # fmt: skip
NEGATIVE = re.compile(r"(?:hard[_-]?)?neg(?:ative)?s?(?:[_-]?\d+)?")
"""`neg`, `negative`, `negatives`, `negative_1`, `hard_negative_2`, …"""
SCORE_NAMES = ("score", "similarity_score", "similarity", "label")
EXTRAS = ("pos_scores", "neg_scores", "prompt", "type", "doc_id", "masked")
"""Fields of FlagEmbedding rows: recognised there only, as other data means other things by these names."""

FLAGEMBEDDING = "FlagEmbedding rows"
"""How rows of these fields are called, for the user."""

Columns = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class Plan:
    """Which columns the parts of a row come from."""

    shape: str
    """How such rows are called, for the user."""
    query: str
    pos: tuple[str, ...]
    neg: tuple[str, ...] = ()
    score: str | None = None
    """The column with the one score of query and positive."""
    extras: Mapping[str, str] | None = None
    """FlagEmbedding field → column."""

    @cached_property
    def used(self) -> frozenset[str]:
        """Every column that is part of a row."""
        score = (self.score,) if self.score is not None else ()
        return frozenset((self.query, *self.pos, *self.neg, *score, *(self.extras or {}).values()))


def plan(names: Sequence[str], columns: Columns) -> Plan:
    """The plan for records with these columns. Raises DataError (without a place) where a role has no column.

    ``columns`` says it for some roles or all; the rest is recognised by name.
    """
    top = set(names)
    query = _one(columns, "query", top) or _first(QUERY_NAMES, names)
    pos = _several(columns, "pos", top) or tuple(filter(None, [_first(POS_NAMES, names)]))
    if not query or not pos:
        lacking = "query" if not query else "pos"
        what = "query" if not query else "positive"
        raise DataError(f"which column is the {what}? The row has {_listed(names)}: set `columns: {{{lacking}: NAME}}`")
    taken = {query, *pos}
    neg = _several(columns, "neg", top) or tuple(n for n in names if NEGATIVE.fullmatch(n) and n not in taken)
    flag = query == "query" and pos == ("pos",)
    extras = {role: name for role in EXTRAS if (name := _one(columns, role, top) or (role if flag else None)) in top}
    # A `label` beside negatives is no similarity of the pair.
    score = _one(columns, "score", top) or (None if neg or flag else _first(SCORE_NAMES, names))
    return Plan(_shape(flag, neg, score), query, pos, neg, score, extras)


def _shape(flag: bool, neg: tuple[str, ...], score: str | None) -> str:
    if flag:
        return FLAGEMBEDDING
    if score is not None:
        return "(text, text, score)"
    return "(anchor, positive, negatives)" if neg else "(anchor, positive) pairs"


def _one(columns: Columns, role: str, top: set[str]) -> str | None:
    name = columns.get(role)
    if name is None:
        return None
    assert isinstance(name, str), "the config allows several columns for pos and neg only"
    _check(name, role, top)
    return name


def _several(columns: Columns, role: str, top: set[str]) -> tuple[str, ...]:
    names = columns.get(role, ())
    names = (names,) if isinstance(names, str) else tuple(names)
    if role == "pos":
        for name in names:
            _check(name, role, top)
    return names  # a row may lack any of its negatives


def _check(name: str, role: str, top: set[str]) -> None:
    if role in ("query", "pos") and name not in top and name.split(".")[0] not in top:
        raise DataError(f"no column {name!r}, which `columns.{role}` names: the row has {_listed(sorted(top))}")


def _first(wanted: Sequence[str], names: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in names), None)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:12])
    return (shown + (f", … ({len(names)} in all)" if len(names) > 12 else "")) or "no columns"
