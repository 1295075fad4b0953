"""Turns a record of any shape into the FlagEmbedding row that is written back, with all its other columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from embed_core.errors import DataError
from embed_data.formats.columns import FLAGEMBEDDING
from embed_data.formats.normalize import Normaliser, is_flagembedding

if TYPE_CHECKING:
    from embed_data.formats.columns import Columns

READ_BY_TRAINING = frozenset(
    ("query", "pos", "neg", "pos_scores", "neg_scores", "prompt", "type", "doc_id", "masked", "neg_id")
)
"""Keys of a FlagEmbedding row. In a row of another shape a column of such a name holds something else."""
_SET = re.compile(r"set `columns: \{(\w+): NAME\}`")


class Shape:
    """Maps the columns of rows to FlagEmbedding's keys: by their usual names, or as ``columns`` says."""

    def __init__(self, columns: Columns) -> None:
        self._columns, self._normaliser = columns, Normaliser(columns)

    def written(self, value: Any, place: str) -> dict[str, Any]:
        """A FlagEmbedding row as it is; any other with its texts under our keys and its other columns beside them.

        Raises DataError for a record that is no row, and for a scored pair.
        """
        if not self._columns and is_flagembedding(value):
            own: dict[str, Any] = value
            return own
        try:
            shape, fields, used = self._normaliser.fields(value)
        except DataError as error:
            raise DataError(f"{place}: {_SET.sub(_as_option, str(error))}") from None
        if fields.get("score") is not None:
            raise DataError(
                f"{place}: a (text, text, score) row says how alike two texts are, not that one answers the other: "
                "mine the pairs that do, without the score"
            )
        data = {name: one for name, one in fields.items() if one is not None and name != "score"}
        if not data["neg"]:
            del data["neg"]
        for name, one in value.items() if isinstance(value, Mapping) else ():
            if name not in used:
                data[_free(name, data, foreign=shape != FLAGEMBEDDING)] = one
        return data


def _free(name: str, data: Mapping[str, Any], *, foreign: bool) -> str:
    """The name under which a column is kept, so that training does not read it as one of its own keys."""
    while name in data or (foreign and name in READ_BY_TRAINING):
        name = f"{name}_"
    return name


def _as_option(found: re.Match[str]) -> str:
    return f"add --column {found[1]}=NAME"
