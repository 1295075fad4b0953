"""The rows that get negatives: training rows with their answers, and all else that is written back."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol

from embed_core.datasets.row import Row, parse_row
from embed_core.datasets.sources import beir
from embed_core.datasets.sources.jsonl import SUFFIXES, JsonlFile, checked_path
from embed_core.errors import ConfigError, DataError, json_type
from embed_data.formats.config import FileFields
from embed_data.formats.detect import existing, find
from embed_data.mining.objects import InPlace, Objects, open_objects
from embed_data.mining.shape import Shape

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
    if how.format != "datasets":  # which may be a name of the hub
        existing(path)
    if split is not None and path.is_file():
        raise ConfigError(f"--split {split!r}: {path} is no BEIR folder and has no splits: leave it out")
    found = find(str(path), how)
    _check_options(path, how, {source.format for source in found})
    if found[0].folder is not None:
        return BeirRows(found[0].folder, split)
    return FileRows([open_objects(source, how.header, announce) for source in found], how.columns)


def rows_in_place(path: Path) -> Rows:
    """The same of what is read without a copy: ``.jsonl`` and ``.json`` files and BEIR folders. Raises DataError."""
    checked_path(path)
    if beir.is_beir(path):
        return BeirRows(path, None)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [file for file in files if file.suffix in SUFFIXES and file.is_file()]
    if not files:
        raise DataError(f"{path}: no .jsonl or .json file and no BEIR folder")
    return JsonlRows(files)


def _check_options(path: Path, how: FileFields, formats: set[str]) -> None:
    if "beir" in formats and how.columns:
        raise ConfigError(f"--column: {path} is a BEIR folder, whose files have fixed names: leave it out")
    if not how.header and not formats & {"csv", "tsv"}:
        raise ConfigError(f"--no-header is for CSV and TSV, and {path} is {', '.join(sorted(formats))}: leave it out")


class FileRows:
    """Rows of one file or several, one after another, of any shape."""

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
        """Of the files."""
        return blake2b("".join(file.digest() for file in self._files).encode(), digest_size=16).hexdigest()


class JsonlRows(FileRows):
    """Rows of JSONL and JSON files, read where they are."""

    def __init__(self, paths: list[Path]) -> None:
        super().__init__([InPlace(path) for path in paths], {})


class BeirRows:
    """The judged queries of a BEIR folder that have a relevant document; a query may carry its ``answers``."""

    def __init__(self, folder: Path, split: str | None) -> None:
        self._qrels_path = beir.qrels_file(folder, split, prefer="train")
        self._queries, self._corpus = JsonlFile(folder / "queries.jsonl"), JsonlFile(folder / "corpus.jsonl")
        queries = {key: index for key, index, _ in beir.rows_by_id(self._queries, beir.query_text)}
        self._documents = {key: index for key, index, _ in beir.rows_by_id(self._corpus, beir.document_text)}
        qrels = beir.read_qrels(self._qrels_path, queries, self._documents)
        relevant = {query: [key for key, score in judged.items() if score > 0] for query, judged in qrels.items()}
        self._rows = [(query, queries[query], keys) for query, keys in relevant.items() if keys]
        if not self._rows:
            raise DataError(f"{self._qrels_path}: no query has a relevant document (a score above 0)")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> MiningRow:
        key, at, documents = self._rows[index]
        place, raw = self._queries.place(at), self._queries[at]
        answers = answers_of(raw, place)
        texts = [self._text(document) for document in documents]
        data = {"query_id": key, "query": beir.query_text(raw, place), "pos": texts, "doc_id": documents}
        if answers:
            data["answers"] = list(answers)
        return MiningRow(parse_row(data, place), answers, data)

    def digest(self) -> str:
        """Of the three files' bytes."""
        digests = self._queries.digest() + self._corpus.digest()
        return blake2b(digests.encode() + self._qrels_path.read_bytes(), digest_size=16).hexdigest()

    def _text(self, key: str) -> str:
        at = self._documents[key]
        return beir.document_text(self._corpus[at], self._corpus.place(at))


def answers_of(data: dict[str, Any], place: str) -> tuple[str, ...]:
    """``answers`` (a string, a list of strings, or SQuAD's ``{"text": [...]}``) or ``answer``; blank ones left out.

    Raises DataError: an answer that is not understood would not be kept out of the negatives.
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
