"""The rows that get negatives: training rows with their answers, and the original objects that are written back."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol

from embed_core.datasets.row import Row, parse_row
from embed_core.datasets.sources import beir
from embed_core.datasets.sources.jsonl import SUFFIXES, checked_path
from embed_core.errors import ConfigError, DataError, json_type
from embed_data.formats.detect import existing, find
from embed_data.formats.options import FileFields
from embed_data.mining.corpus.objects import InPlace, Objects, open_objects
from embed_data.mining.corpus.shape import Shape

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from embed_core.protocols import Announce
    from embed_data.formats.columns import Columns


@dataclass(frozen=True, slots=True)
class MiningRow:
    """A row as training reads it, its answers, and the object it is written as."""

    row: Row
    answers: tuple[str, ...]
    data: dict[str, Any]


class Rows(Protocol):
    """Rows, read on access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> MiningRow: ...

    def digest(self) -> str:
        """Hex digest of the content."""
        ...


def open_rows(
    path: Path, split: str | None, how: FileFields | None = None, announce: Announce = lambda line: None
) -> Rows:
    """The rows at ``path``, of any format that dataset kind `file` reads, read as ``how`` says.

    Raises DataError where there are none, ConfigError for options that do not apply to what is there.
    """
    how = (how or FileFields()).model_copy(update={"split": split})
    if how.format != "datasets":  # it may be a name on the hub
        existing(path)
    if split is not None and path.is_file():
        raise ConfigError(f"--split {split!r}: {path} is no BEIR folder and has no splits: leave it out")
    found = find(str(path), how)
    _check_options(path, how, {source.format for source in found})
    if found[0].folder is not None:
        return JudgedRows(found[0].folder, split)
    return FileRows([open_objects(source, how.header, announce) for source in found], how.columns)


def rows_in_place(path: Path) -> Rows:
    """As :func:`open_rows` for what needs no copy: ``.jsonl`` and ``.json`` files, BEIR folders. Raises DataError."""
    checked_path(path)
    if beir.is_beir(path):
        return JudgedRows(path, None)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [file for file in files if file.suffix in SUFFIXES and file.is_file()]
    if not files:
        raise DataError(f"{path}: no .jsonl or .json file and no BEIR folder")
    return FileRows([InPlace(file) for file in files], {})


def _check_options(path: Path, how: FileFields, formats: set[str]) -> None:
    if "beir" in formats and how.columns:
        raise ConfigError(f"--column: {path} is a BEIR folder, whose files have fixed names: leave it out")
    if not how.header and not formats & {"csv", "tsv"}:
        raise ConfigError(f"--no-header is for CSV and TSV, and {path} is {', '.join(sorted(formats))}: leave it out")


class FileRows:
    """Rows of one or several files of any shape, one file after another."""

    def __init__(self, files: Sequence[Objects], columns: Columns) -> None:
        self._files, self._shape = files, Shape(columns)
        self._starts = [0]
        for file in self._files:
            self._starts.append(self._starts[-1] + len(file))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> MiningRow:
        at = bisect_right(self._starts, index) - 1
        value, place = self._files[at].read(index - self._starts[at])
        data = self._shape.written(value, place)
        return MiningRow(parse_row(data, place), answers_of(data, place), data)

    def digest(self) -> str:
        """Digest of the files."""
        return blake2b("".join(file.digest() for file in self._files).encode(), digest_size=16).hexdigest()


class JudgedRows:
    """The judged queries of a BEIR folder that have a relevant document; a query may carry its ``answers``."""

    def __init__(self, folder: Path, split: str | None) -> None:
        self._rows = beir.BeirRows(folder, split)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> MiningRow:
        judged, (key, raw) = self._rows.row(index), self._rows.query(index)
        answers = answers_of(raw, judged.place)
        documents = list(judged.pos_keys or ())
        data = {"query_id": key, "query": judged.query, "pos": list(judged.pos), "doc_id": documents}
        if answers:
            data["answers"] = list(answers)
        return MiningRow(parse_row(data, judged.place), answers, data)

    def digest(self) -> str:
        """Digest of the three files' bytes."""
        return self._rows.digest()


def answers_of(data: dict[str, Any], place: str) -> tuple[str, ...]:
    """``answers`` (a string, a list of strings, or SQuAD's ``{"text": [...]}``) or ``answer``, without blank ones.

    Raises DataError for an answer that is not understood, because it could not be kept out of the negatives.
    """
    name = "answers" if data.get("answers") is not None else "answer"
    value = data.get(name)
    if isinstance(value, dict):
        value = value.get("text")
    found = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(found, list):
        raise DataError(f"{place}: `{name}` must be a string or a list of strings, found {json_type(value)}")
    for at, answer in enumerate(found):
        if not isinstance(answer, str):
            raise DataError(f"{place}: `{name}[{at}]` must be a string, found {json_type(answer)}")
    return tuple(answer for answer in found if answer.strip())
