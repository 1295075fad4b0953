"""Where rows come from: a JSONL file or a BEIR folder, both read on access."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Protocol

from embed_core.datasets import beir
from embed_core.datasets.jsonl import SUFFIXES, JsonlFile, checked_path
from embed_core.datasets.rows import ROW_VERSION, Row, parse_row
from embed_core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class RowSource(Protocol):
    """Rows of one source, random access."""

    name: str
    format: str
    """How its format is called, for the user."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row:
        """The row, validated anew. Raises DataError."""
        ...

    def digest(self) -> str:
        """Hex digest of its content."""
        ...


class JsonlRows:
    """FlagEmbedding rows of one file; the source is named by the file's stem."""

    def __init__(self, path: Path, format: str = "FlagEmbedding JSONL", cache: Path | None = None) -> None:
        self.name = path.stem
        self.format = format
        self._file = JsonlFile(path, cache)

    def __len__(self) -> int:
        return len(self._file)

    def row(self, index: int) -> Row:
        """Raises DataError with ``file:line``."""
        return parse_row(self._file[index], self._file.place(index))

    def rows(self) -> Iterator[Row]:
        """All rows in order, with few reads. Raises DataError like :meth:`row`."""
        return (parse_row(data, self._file.place(index)) for index, data in enumerate(self._file))

    def digest(self) -> str:
        """Of the file's bytes."""
        return self._file.digest()

    def table_key(self) -> str:
        """The content and the way it is read."""
        return f"flagembedding|{ROW_VERSION}|{self.digest()}"


class BeirRows:
    """The judged queries of a BEIR folder: relevant documents are positives, those judged 0 or less hard negatives.

    Document ids are the passages' external ids. Queries without a relevant document give no row.
    Raises DataError like :func:`embed_core.datasets.beir.read_beir`.
    """

    def __init__(self, folder: Path, split: str | None, cache: Path | None = None) -> None:
        self.name = folder.name
        self._qrels_path = beir.qrels_file(folder, split, prefer="train")
        self.format = f"BEIR folder, split {self._qrels_path.stem}"
        self._queries = JsonlFile(folder / "queries.jsonl", cache)
        self._corpus = JsonlFile(folder / "corpus.jsonl", cache)
        query_index = {key: index for key, index, _ in beir.rows_by_id(self._queries, beir.query_text)}
        self._document_index = {key: index for key, index, _ in beir.rows_by_id(self._corpus, beir.document_text)}
        qrels = beir.read_qrels(self._qrels_path, query_index, self._document_index)
        self._rows = [
            (query_index[query], judged) for query, judged in qrels.items() if any(s > 0 for s in judged.values())
        ]
        if not self._rows:
            raise DataError(f"{self._qrels_path}: no query has a relevant document (a score above 0)")

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Row:
        """The query with all its judged documents."""
        query, judged = self._rows[index]
        place = self._queries.place(query)
        pos = tuple(key for key, score in judged.items() if score > 0)
        neg = tuple(key for key, score in judged.items() if score <= 0)
        return Row(
            beir.query_text(self._queries[query], place), self._texts(pos), self._texts(neg),
            pos_keys=pos, neg_keys=neg, place=place,
        )  # fmt: skip

    def digest(self) -> str:
        """Of the three files' bytes."""
        hasher = blake2b(digest_size=16)
        hasher.update(self._queries.digest().encode() + self._corpus.digest().encode() + self._qrels_path.read_bytes())
        return hasher.hexdigest()

    def _texts(self, keys: tuple[str, ...]) -> tuple[str, ...]:
        places = [self._document_index[key] for key in keys]
        return tuple(beir.document_text(self._corpus[at], self._corpus.place(at)) for at in places)


def open_sources(path: Path, split: str | None, cache: Path | None = None) -> list[RowSource]:
    """The sources at ``path``: a file, a folder of files (each one a source), or a BEIR folder.

    ``cache`` keeps the indices of large files; None is the cache of the user. Raises DataError where nothing of that
    is there, ConfigError for a ``split`` of what has none.
    """
    checked_path(path)
    if beir.is_beir(path):
        return [BeirRows(path, split, cache)]
    if split is not None:
        raise ConfigError(f"split {split!r}: {path} is no BEIR folder and has no splits: remove `split`")
    if not path.is_dir():
        if path.suffix not in SUFFIXES:
            raise DataError(
                f"{path}: a data file is .jsonl or .json, not {path.suffix!r}: convert it, one row per line"
            )
        return [JsonlRows(path, cache=cache)]
    if (path / "corpus.jsonl").exists() and (path / "queries.jsonl").exists():
        beir.qrels_file(path, None, prefer="train")  # says what is missing
    files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
    if not files:
        raise DataError(
            f"{path}: no .jsonl file and no BEIR folder (corpus.jsonl, queries.jsonl, qrels/): it has {_listing(path)}"
        )
    return [JsonlRows(file, cache=cache) for file in files]


def _listing(path: Path) -> str:
    names = sorted(p.name for p in path.iterdir())
    if not names:
        return "nothing"
    return ", ".join(names[:10]) + (f", … ({len(names)} in all)" if len(names) > 10 else "")
