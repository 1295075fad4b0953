"""BEIR folders (Thakur et al. 2021): ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/SPLIT.tsv``."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from embed_core.datasets.row import Row
from embed_core.datasets.sources.base import RowSource
from embed_core.datasets.sources.jsonl import JsonlFile, checked_path
from embed_core.errors import DataError, did_you_mean, json_type
from embed_core.types import RetrievalSet

if TYPE_CHECKING:
    from pathlib import Path

Qrels = dict[str, dict[str, int]]
"""query id → document id → relevance."""
ReadText = Callable[[dict[str, Any], str], str]


class Judgement(NamedTuple):
    """One line of a qrels file."""

    line: int
    query: str
    document: str
    score: int


def is_beir(folder: Path) -> bool:
    """Whether a folder has the BEIR layout, complete or not: the readers say what is missing."""
    return folder.is_dir() and (folder / "qrels").is_dir()


def read_beir(folder: Path, split: str | None = None) -> RetrievalSet:
    """Judged queries, the whole corpus and the judgements of one split, in memory.

    A document is its title, a space, and its text. Queries that the split does not judge are left out.
    ``split`` names ``qrels/SPLIT.tsv``; None means the only one, else ``test``.
    Raises DataError (``file:line``) for missing files, malformed lines, ids that occur twice and judgements of queries
    or documents that do not exist.
    """
    checked_path(folder)
    qrels_path = qrels_file(folder, split, prefer="test")
    corpus = {key: text for key, _, text in rows_by_id(JsonlFile(folder / "corpus.jsonl"), document_text)}
    queries = {key: text for key, _, text in rows_by_id(JsonlFile(folder / "queries.jsonl"), query_text)}
    qrels = read_qrels(qrels_path, queries, corpus)
    return RetrievalSet(folder.name, {key: queries[key] for key in qrels}, corpus, qrels)


def qrels_file(folder: Path, split: str | None, prefer: str) -> Path:
    """The qrels of ``split``; without one the only one there is, else ``prefer``. Raises DataError."""
    for name in ("corpus.jsonl", "queries.jsonl", "qrels"):
        if not (folder / name).exists():
            raise DataError(f"{folder}: no {name}: a BEIR folder has corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv")
    splits = {path.stem: path for path in sorted((folder / "qrels").glob("*.tsv"))}
    if not splits:
        raise DataError(f"{folder / 'qrels'}: no .tsv file: a BEIR folder has qrels/SPLIT.tsv")
    if split is not None:
        if split not in splits:
            raise DataError(f"{folder / 'qrels'}: no split {split!r}: {did_you_mean(split, splits)}")
        return splits[split]
    if len(splits) == 1:
        return next(iter(splits.values()))
    if prefer not in splits:
        raise DataError(f"{folder / 'qrels'}: several splits ({', '.join(splits)}): set `split` to one of them")
    return splits[prefer]


def read_qrels(path: Path, queries: Container[str], corpus: Container[str]) -> Qrels:
    """Judgements, all of whose ids are in ``queries`` and ``corpus``. Raises DataError."""
    qrels: Qrels = {}
    for line, query, document, score in _judgements(path):
        if query not in queries:
            raise DataError(f"{path}:{line}: query id {query!r} is not in {path.parent.parent / 'queries.jsonl'}")
        if document not in corpus:
            raise DataError(f"{path}:{line}: document id {document!r} is not in {path.parent.parent / 'corpus.jsonl'}")
        qrels.setdefault(query, {})[document] = score
    if not qrels:
        raise DataError(f"{path}: no judgement: each line is a query id, a document id and a score, by tabs")
    return qrels


def document_text(row: dict[str, Any], place: str) -> str:
    """Title, a space, and text of a corpus row. Raises DataError."""
    text = _text(row, "text", place)
    title = row.get("title") or ""
    if not isinstance(title, str):
        raise DataError(f"{place}: `title` must be a string, found {json_type(title)}")
    return f"{title} {text}" if title else text


def query_text(row: dict[str, Any], place: str) -> str:
    """Text of a queries row. Raises DataError."""
    text = _text(row, "text", place)
    if not text.strip():
        raise DataError(f"{place}: `text` of a query is empty")
    return text


def rows_by_id(file: JsonlFile, read: ReadText) -> Iterator[tuple[str, int, str]]:
    """Id, index and text of every row, the text by :func:`query_text` or :func:`document_text`. Raises DataError."""
    found: dict[str, int] = {}
    for index, row in enumerate(file):
        place = file.place(index)
        key = _id(row, place)
        if key in found:
            raise DataError(f"{place}: `_id` {key!r} occurs twice, the first time at {file.place(found[key])}")
        found[key] = index
        yield key, index, read(row, place)


class BeirRows(RowSource):
    """The judged queries of a BEIR folder: relevant documents are positives, those judged 0 or less hard negatives.

    Document ids are the passages' external ids. Queries without a relevant document give no row.
    Raises DataError like :func:`embed_core.datasets.sources.base.read_beir`.
    """

    def __init__(self, folder: Path, split: str | None, cache: Path | None = None) -> None:
        self.name = folder.name
        self._qrels_path = qrels_file(folder, split, prefer="train")
        self.format = f"BEIR folder, split {self._qrels_path.stem}"
        self._queries = JsonlFile(folder / "queries.jsonl", cache)
        self._corpus = JsonlFile(folder / "corpus.jsonl", cache)
        query_index = {key: index for key, index, _ in rows_by_id(self._queries, query_text)}
        self._document_index = {key: index for key, index, _ in rows_by_id(self._corpus, document_text)}
        qrels = read_qrels(self._qrels_path, query_index, self._document_index)
        self._rows = [
            (query, query_index[query], judged)
            for query, judged in qrels.items()
            if any(s > 0 for s in judged.values())
        ]
        if not self._rows:
            raise DataError(f"{self._qrels_path}: no query has a relevant document (a score above 0)")

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Row:
        """The query with all its judged documents."""
        _, query, judged = self._rows[index]
        place = self._queries.place(query)
        pos = tuple(key for key, score in judged.items() if score > 0)
        neg = tuple(key for key, score in judged.items() if score <= 0)
        return Row(
            query_text(self._queries[query], place), self._texts(pos), self._texts(neg),
            pos_keys=pos, neg_keys=neg, place=place,
        )  # fmt: skip

    def query(self, index: int) -> tuple[str, dict[str, Any]]:
        """Id and object of a row's query, as `queries.jsonl` has it."""
        key, query, _ = self._rows[index]
        return key, self._queries[query]

    def digest(self) -> str:
        """A digest of the three files' bytes."""
        hasher = blake2b(digest_size=16)
        hasher.update(self._queries.digest().encode() + self._corpus.digest().encode() + self._qrels_path.read_bytes())
        return hasher.hexdigest()

    def _texts(self, keys: tuple[str, ...]) -> tuple[str, ...]:
        places = [self._document_index[key] for key in keys]
        return tuple(document_text(self._corpus[at], self._corpus.place(at)) for at in places)


def _judgements(path: Path) -> Iterator[Judgement]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: byte 0x{error.object[error.start]:02x} is not UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        fields = raw.split("\t")
        if number == 1 and len(fields) == 3 and _score(fields[2]) is None:
            continue  # the header
        score = _score(fields[2]) if len(fields) == 3 else None
        if score is None:
            raise DataError(
                f"{path}:{number}: expected a query id, a document id and a whole number, by tabs; found {raw[:80]!r}"
            )
        yield Judgement(number, fields[0].strip(), fields[1].strip(), score)


def _score(text: str) -> int | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None


def _id(row: dict[str, Any], place: str) -> str:
    key = row.get("_id")
    if isinstance(key, int) and not isinstance(key, bool):
        return str(key)
    if not isinstance(key, str) or not key:
        found = "nothing" if key is None else json_type(key)
        raise DataError(f"{place}: `_id` must be a string, found {found}")
    return key


def _text(row: dict[str, Any], name: str, place: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        found = "nothing" if value is None else json_type(value)
        raise DataError(f"{place}: `{name}` must be a string, found {found}")
    return value
