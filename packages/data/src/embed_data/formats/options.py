"""Options of reading a file, shared by the kinds `auto` and `file`, the sources of a `mix`, and the commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from embed_core.config.component import Section
from embed_core.errors import ConfigError, did_you_mean

Format = Literal["auto", "jsonl", "json", "csv", "tsv", "parquet", "arrow", "beir", "datasets"]
ROLES = ("query", "pos", "neg", "pos_scores", "neg_scores", "score", "prompt", "type", "doc_id", "masked")
"""What a column may stand for. `pos` and `neg` may be several columns; the others are one."""
SEVERAL = ("pos", "neg")


class FileFields(Section):
    """Where rows are and how they are read."""

    format: Format = "auto"
    """`auto` recognises it by suffix and content; gzip and zstd are recognised under any format."""
    columns: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)
    """Role → the file's own column(s): `{query: question, pos: answer, neg: [wrong_1, wrong_2]}`; `a.b` goes into a
    nested object. Roles: query, pos, neg, pos_scores, neg_scores, score, prompt, type, doc_id, masked. Roles left
    out are recognised by the usual names."""
    header: bool = True
    """Whether the first line of a CSV or TSV file names its columns; without, they are `1`, `2`, …"""
    split: str | None = None
    """Split of a BEIR folder or of a Hugging Face dataset; None = the only one, or `train`."""
    subset: str | None = None
    """Configuration of a Hugging Face dataset of the hub; None = its default."""
    on_bad_row: Literal["error", "skip"] = "error"
    """`error` stops at the first row that cannot be used, with file, line and reason; `skip` leaves such rows out,
    counts them and lists them in a file. (The files of a BEIR folder name each other's ids: there it is an error.)"""
    min_score: float | None = None
    """Rows of (text, text, score) below it are left out, on the data's own scale; None = all are kept."""

    @field_validator("columns")
    @classmethod
    def _roles_exist(cls, columns: dict[str, str | tuple[str, ...]]) -> dict[str, str | tuple[str, ...]]:
        for role, names in columns.items():
            if role not in ROLES:
                raise ValueError(f"columns: unknown role {role!r}: {did_you_mean(role, ROLES)}")
            if not isinstance(names, str) and (role not in SEVERAL or not names):
                raise ValueError(
                    f"columns.{role}: one column is needed, got {list(names)}: only pos and neg take several"
                )
        return columns


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
