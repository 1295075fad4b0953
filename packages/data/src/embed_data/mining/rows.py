"""The rows that get negatives: training rows with their answers, and all else that is written back."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol

from embed_core.datasets import beir
from embed_core.datasets.jsonl import SUFFIXES, JsonlFile, checked_path, json_type
from embed_core.datasets.rows import Row, parse_row
from embed_core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class MiningRow:
    """A row as training reads it, its answers, and the object it was."""

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


def open_rows(path: Path, split: str | None) -> Rows:
    """The rows at ``path``. Raises DataError where there are none, ConfigError for a split of what has none."""
    checked_path(path)
    if beir.is_beir(path):
        return BeirRows(path, split)
    if split is not None:
        raise ConfigError(f"--split {split!r}: {path} is no BEIR folder and has no splits: leave it out")
    if not path.is_dir():
        if path.suffix not in SUFFIXES:
            raise DataError(f"{path}: rows are read from .jsonl or .json, not {path.suffix!r}: convert the file")
        return JsonlRows([path])
    files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
    if not files:
        raise DataError(f"{path}: no .jsonl file and no BEIR folder (corpus.jsonl, queries.jsonl, qrels/) in it")
    return JsonlRows(files)


class JsonlRows:
    """FlagEmbedding rows of one file or several, one after another."""

    def __init__(self, paths: list[Path]) -> None:
        self._files = [JsonlFile(path) for path in paths]
        self._starts = [0]
        for file in self._files:
            self._starts.append(self._starts[-1] + len(file))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> MiningRow:
        at = bisect_right(self._starts, index) - 1
        file, own = self._files[at], index - self._starts[at]
        data, place = file[own], file.place(own)
        return MiningRow(parse_row(data, place), answers_of(data, place), data)

    def digest(self) -> str:
        """Of the files' bytes."""
        return blake2b("".join(file.digest() for file in self._files).encode(), digest_size=16).hexdigest()


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
