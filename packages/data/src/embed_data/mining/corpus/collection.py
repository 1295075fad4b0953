"""The documents that are ranked: the corpus, followed by the positives that it lacks. Texts stay on disk."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed_core.datasets.sources import beir
from embed_core.errors import DataError, json_type
from embed_core.utils.hashing import identity
from embed_data.formats.detect import existing, find, known_format
from embed_data.formats.options import FileFields
from embed_data.mining.corpus.objects import open_objects

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from embed_core.protocols import Announce
    from embed_data.mining.corpus.rows import MiningRow, Rows

TEXTS_IN_MEMORY = 4096


@dataclass(frozen=True, slots=True)
class Document:
    """One text of the collection."""

    key: str | None
    """External id; None where the document has none."""
    text: str
    """The text as a model reads it: title, a space, text."""
    start: int = 0
    """Where the text begins after the title, which passages of one page share."""


class Collection:
    """Documents by number: those below :attr:`minable` may become negatives, the others are only texts of rows.

    ``texts_of_rows`` adds the rows' own negatives, which an audit scores.
    Raises DataError (``file:line``) for a corpus or row that cannot be read.
    """

    def __init__(self, rows: Rows, corpus: Path | CorpusFile | None, *, texts_of_rows: bool = False) -> None:
        self._rows = rows
        self._corpus = CorpusFile(corpus) if isinstance(corpus, Path) else corpus
        self._row_of, self._part_of = array("q"), array("q")
        self._numbers: dict[int, int] = {}
        self._keys: dict[str, int] = {}
        self._positives, self._negatives = _Lists(), _Lists()
        self._queries: dict[int, list[int]] = {}
        self.document = lru_cache(TEXTS_IN_MEMORY)(self._read)
        self._take_corpus()
        for number in range(len(rows)):
            self._take_row(number, rows[number], texts_of_rows=texts_of_rows)
        # Without a corpus, the positives of all rows serve as each other's negatives.
        self.minable = len(self._corpus) if self._corpus is not None else len(self)

    def __len__(self) -> int:
        return (len(self._corpus) if self._corpus is not None else 0) + len(self._row_of)

    def texts(self) -> Iterator[str]:
        """All texts, in the order of their numbers."""
        return (self._read(number).text for number in range(len(self)))

    def positives(self, row: int) -> Sequence[int]:
        """Document numbers of a row's positives, in their order."""
        return self._positives[row]

    def negatives(self, row: int) -> Sequence[int]:
        """Document numbers of a row's own negatives, where ``texts_of_rows`` was asked for."""
        return self._negatives[row]

    def known(self, row: int, query: str) -> frozenset[int]:
        """Positives of every row whose query is exactly ``query``."""
        return frozenset(n for other in self._queries[identity(query)] for n in self._positives[other])

    def digest(self) -> str:
        """Digest of the corpus; the rows have their own digest."""
        return self._corpus.digest() if self._corpus is not None else "rows"

    def _take_corpus(self) -> None:
        if self._corpus is None:
            return
        for number, document in enumerate(self._corpus):
            self._numbers.setdefault(identity(document.text), number)
            if document.key is not None:
                if document.key in self._keys:
                    raise DataError(f"{self._corpus.place(number)}: `_id` {document.key!r} occurs twice")
                self._keys[document.key] = number

    def _take_row(self, number: int, mined: MiningRow, *, texts_of_rows: bool) -> None:
        row = mined.row
        keys: Sequence[str | None] = row.pos_keys or [None] * len(row.pos)
        texts = zip(range(len(row.pos)), row.pos, keys, strict=True)
        self._positives.append([self._number(number, part, text, key) for part, text, key in texts])
        own = range(len(row.pos), len(row.pos) + len(row.neg)) if texts_of_rows else ()
        self._negatives.append([self._number(number, part, row.neg[part - len(row.pos)], None) for part in own])
        self._queries.setdefault(identity(row.query), []).append(number)

    def _number(self, row: int, part: int, text: str, key: str | None) -> int:
        """A positive's place in the corpus by its id, else by its text, else a new number after the corpus."""
        if key is not None and key in self._keys:
            return self._keys[key]
        mark = identity(text)
        if mark not in self._numbers:
            self._numbers[mark] = len(self)
            self._row_of.append(row)
            self._part_of.append(part)
        return self._numbers[mark]

    def _read(self, number: int) -> Document:
        if self._corpus is not None:
            if number < len(self._corpus):
                return self._corpus[number]
            number -= len(self._corpus)
        row, part = self._rows[self._row_of[number]].row, self._part_of[number]
        if part >= len(row.pos):
            return Document(None, row.neg[part - len(row.pos)])
        return Document(row.pos_keys[part] if row.pos_keys else None, row.pos[part])


class CorpusFile:
    """Documents of a file of any format (``text``, optional ``title``, ``_id`` or ``id``) or of a BEIR folder."""

    def __init__(self, path: Path, announce: Announce = lambda line: None) -> None:
        existing(path)
        if path.is_dir():
            if not (path / "corpus.jsonl").is_file():
                raise DataError(f"{path}: no corpus.jsonl: give a file of texts, or a BEIR folder")
            path = path / "corpus.jsonl"
        # A file whose name shows no format is read as JSON Lines.
        how = FileFields(format="jsonl" if known_format(path) is None else "auto")
        self._file = open_objects(find(str(path), how)[0], how.header, announce)

    def __len__(self) -> int:
        return len(self._file)

    def __getitem__(self, index: int) -> Document:
        data, place = self._file.read(index)
        if not isinstance(data, dict):
            raise DataError(f"{place}: a document is an object with `text`, found {json_type(data)}")
        text = beir.document_text(data, place)
        if not text.strip():
            raise DataError(f"{place}: an empty document: remove it")
        return Document(_key(data, place), text, len(text) - len(str(data["text"])))

    def __iter__(self) -> Iterator[Document]:
        return (self[index] for index in range(len(self)))

    def place(self, index: int) -> str:
        """``file:line`` of a document."""
        return self._file.read(index)[1]

    def digest(self) -> str:
        """Digest of the file's bytes."""
        return self._file.digest()


class _Lists:
    """Many short lists of integers in two flat arrays: 8 bytes per number, and no objects."""

    def __init__(self) -> None:
        self._flat, self._ends = array("q"), array("q", [0])

    def append(self, values: Sequence[int]) -> None:
        self._flat.extend(values)
        self._ends.append(len(self._flat))

    def __getitem__(self, index: int) -> Sequence[int]:
        return self._flat[self._ends[index] : self._ends[index + 1]]


def _key(data: dict[str, Any], place: str) -> str | None:
    value = data.get("_id", data.get("id"))
    if isinstance(value, bool) or not isinstance(value, (str, int, type(None))):
        raise DataError(f"{place}: `_id` must be a string or a number, found {json_type(value)}")
    return None if value is None else str(value)
