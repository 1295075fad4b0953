"""Measures a training file: format, columns, lengths, duplicates, empty and over-long texts, leaks."""

from __future__ import annotations

import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from embed_core.datasets.sources import beir
from embed_core.datasets.sources.jsonl import JsonlFile
from embed_core.datasets.split import text_id
from embed_data.formats.convert import TableRows
from embed_data.formats.detect import find
from embed_data.formats.open import open_source

if TYPE_CHECKING:
    from pathlib import Path

    from embed_core.config.context import BuildContext
    from embed_core.datasets.row import Row
    from embed_core.datasets.sources.base import RowSource
    from embed_data.formats.detect import Source
    from embed_data.formats.options import FileFields

SHOWN = 3
"""Examples shown per fault."""
PARTS = ("query", "pos", "neg")
TOKENIZED_AT_ONCE = 1000


@dataclass(frozen=True)
class Lengths:
    """Lengths of the texts of one column."""

    texts: int
    mean: float
    median: int
    p95: int
    longest: int


@dataclass
class Inspection:
    """The measures of one source."""

    name: str
    place: str
    format: str
    columns: list[str]
    read: int
    usable: int
    bad: dict[str, int]
    """Reason → number of rows."""
    bad_examples: list[str]
    skipped_file: str | None
    characters: dict[str, Lengths] = field(default_factory=dict)
    tokens: dict[str, Lengths] = field(default_factory=dict)
    too_long: dict[str, int] = field(default_factory=dict)
    """Column → number of texts over the maximum length, where a tokenizer and a length were given."""
    counts: dict[str, int] = field(default_factory=dict)
    """Numbers of rows with negatives, with scores, …"""
    duplicates: dict[str, int] = field(default_factory=dict)
    """What → number of texts or rows that occurred before."""
    leaks: dict[str, list[str]] = field(default_factory=dict)
    """Evaluation set → examples; see ``leak_counts``."""
    leak_counts: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Measure:
    """How texts are measured besides in characters."""

    tokenizer: Any = None
    """A ``tokenizers.Tokenizer``."""
    max_length: int | None = None


def inspect(
    path: str, how: FileFields, evaluation: Sequence[str], measure: Measure, context: BuildContext
) -> list[Inspection]:
    """Every source at ``path``, read with bad rows skipped. Raises DataError where nothing can be read."""
    how = how.model_copy(update={"on_bad_row": "skip"})
    sets = {name: _evaluation_texts(name, context) for name in evaluation}
    return [_inspected(source, open_source(source, how, context), measure, sets) for source in find(path, how)]


def _inspected(
    source: Source, rows: RowSource, measure: Measure, sets: dict[str, dict[str, dict[bytes, bytes]]]
) -> Inspection:
    skipped = rows if isinstance(rows, TableRows) and rows.facts.skipped else None
    found = Inspection(
        name=source.name,
        place=source.place,
        format=rows.format,
        columns=_columns(source),
        read=len(rows) + sum(rows.left_out.values()),
        usable=len(rows),
        bad={} if skipped is None else dict(sorted(skipped.facts.reasons.items(), key=lambda item: -item[1])),
        bad_examples=[] if skipped is None else _bad_examples(skipped.skipped_file),
        skipped_file=None if skipped is None else str(skipped.skipped_file),
    )
    sizes, seen, leaks = _Sizes(measure), _Repeats(), _Leaks(sets, source)
    counts = dict.fromkeys(
        ("with negatives", "negatives", "with scores", "with a prompt", "empty negatives",
         "a negative equals a positive", "query equals positive"), 0,
    )  # fmt: skip
    for row in rows.rows():
        sizes.add(row)
        seen.add(row)
        leaks.add(row)
        _count(row, counts)
    sizes.finish()
    found.characters, found.tokens, found.too_long = sizes.characters(), sizes.tokens(), sizes.too_long
    found.counts, found.duplicates = counts, seen.counts()
    found.leak_counts, found.leaks = leaks.counts, leaks.examples
    return found


def _count(row: Row, counts: dict[str, int]) -> None:
    counts["with negatives"] += bool(row.neg)
    counts["negatives"] += len(row.neg)
    counts["with scores"] += row.pos_scores is not None
    counts["with a prompt"] += row.prompt is not None
    counts["empty negatives"] += sum(not text.strip() for text in row.neg)
    counts["a negative equals a positive"] += not set(row.pos).isdisjoint(row.neg)
    counts["query equals positive"] += row.query in row.pos


def _columns(source: Source) -> list[str]:
    if source.records is None:
        return ["queries.jsonl", "corpus.jsonl", "qrels"]
    first = next((record.value for record in source.records() if record.fault is None), None)
    return list(first) if isinstance(first, dict) else []


def _bad_examples(skipped: Path) -> list[str]:
    import json

    with skipped.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in islice(file, SHOWN)]
    return [f"{row['place']}: {row['reason']}" for row in rows]


class _Sizes:
    """Lengths of all texts, 4 bytes each."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._characters = {part: array("I") for part in PARTS}
        self._tokens = {part: array("I") for part in PARTS}
        self._waiting: dict[str, list[str]] = {part: [] for part in PARTS}
        self.too_long: dict[str, int] = {}
        if measure.tokenizer is not None and measure.max_length is not None:
            self.too_long = dict.fromkeys(PARTS, 0)

    def add(self, row: Row) -> None:
        for part, texts in zip(PARTS, ((row.query,), row.pos, row.neg), strict=True):
            self._characters[part].extend(map(len, texts))
            if self._measure.tokenizer is not None:
                self._waiting[part].extend(texts)
                if len(self._waiting[part]) >= TOKENIZED_AT_ONCE:
                    self._tokenize(part)

    def finish(self) -> None:
        """Measure the texts that are still waiting."""
        for part in PARTS:
            self._tokenize(part)

    def characters(self) -> dict[str, Lengths]:
        return _lengths(self._characters)

    def tokens(self) -> dict[str, Lengths]:
        return _lengths(self._tokens)

    def _tokenize(self, part: str) -> None:
        texts, self._waiting[part] = self._waiting[part], []
        if texts:
            encodings = self._measure.tokenizer.encode_batch_fast(texts)
            lengths = [len(encoding.ids) for encoding in encodings]
            self._tokens[part].extend(lengths)
            if self._measure.max_length is not None:
                self.too_long[part] += sum(length > self._measure.max_length for length in lengths)


def _lengths(by_part: dict[str, array[int]]) -> dict[str, Lengths]:
    found = {}
    for part, values in by_part.items():
        if len(values):
            sizes = np.frombuffer(values, dtype=np.uint32)
            median, p95 = np.percentile(sizes, [50, 95])
            found[part] = Lengths(len(sizes), float(sizes.mean()), int(median), int(p95), int(sizes.max()))
    return found


class _Repeats:
    """Identities of queries, positives and whole rows, 8 bytes each."""

    def __init__(self) -> None:
        self._ids: dict[str, bytearray] = {"queries": bytearray(), "positives": bytearray(), "rows": bytearray()}

    def add(self, row: Row) -> None:
        self._ids["queries"] += text_id(row.query)
        for text in row.pos:
            self._ids["positives"] += text_id(text)
        self._ids["rows"] += text_id(repr((row.query, row.pos, row.neg)))

    def counts(self) -> dict[str, int]:
        return {
            name: len(ids) // 8 - len(np.unique(np.frombuffer(ids, dtype=np.uint64))) for name, ids in self._ids.items()
        }


def _evaluation_texts(path: str, context: BuildContext) -> dict[str, dict[bytes, bytes]]:
    """``query`` and ``pos`` → the key of each text of the evaluation set, equal for the same text elsewhere → which
    text it is. A document that has a title is also known without it."""
    from embed_data.formats.options import FileFields

    how = FileFields(on_bad_row="skip")
    texts: dict[str, dict[bytes, bytes]] = {"query": {}, "pos": {}}
    for source in find(path, how):
        for row in open_source(source, how, context).rows():
            for part, found in (("query", (row.query,)), ("pos", row.pos)):
                texts[part].update((key, key) for key in map(_alike, found))
        for whole, bare in _titled(source):
            if whole in texts["pos"]:
                texts["pos"].setdefault(bare, whole)
    return texts


def _titled(source: Source) -> Iterator[tuple[bytes, bytes]]:
    """Keys of a BEIR folder's documents that have a title: with it, as they are read, and without."""
    if source.folder is None:
        return
    file = JsonlFile(source.folder / "corpus.jsonl")
    for number, row in enumerate(file):
        if row.get("title"):
            yield _alike(beir.document_text(row, file.place(number))), _alike(row["text"])


class _Leaks:
    """Finds texts of evaluation sets in the training rows, whatever their case, width, spaces and titles."""

    def __init__(self, sets: dict[str, dict[str, dict[bytes, bytes]]], source: Source) -> None:
        self._sets = sets
        self._hit: dict[str, dict[str, set[bytes]]] = {name: {"query": set(), "pos": set()} for name in sets}
        self.examples: dict[str, list[str]] = {name: [] for name in sets}
        wanted = {key for known in sets.values() for key in known["pos"]}
        self._bare = {whole: bare for whole, bare in _titled(source) if bare in wanted} if sets else {}
        """For the rows' own documents with a title: the key with it → the key without."""

    def add(self, row: Row) -> None:
        if self._sets:
            for part, texts in (("query", (row.query,)), ("pos", row.pos)):
                self._look(part, texts, row.place)

    def _look(self, part: str, texts: Iterable[str], place: str) -> None:
        for text in texts:
            key = _alike(text)
            for name, known in self._sets.items():
                found = known[part].get(key)
                if found is None and part == "pos":
                    found = known[part].get(self._bare.get(key, key))
                if found is not None and found not in self._hit[name][part]:
                    self._hit[name][part].add(found)
                    if len(self.examples[name]) < SHOWN:
                        self.examples[name].append(f"{place}: {part}: {text[:80]!r}")

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        return {
            name: {
                "queries": len(hit["query"]),
                "of queries": len(set(self._sets[name]["query"].values())),
                "positives": len(hit["pos"]),
                "of positives": len(set(self._sets[name]["pos"].values())),
            }
            for name, hit in self._hit.items()
        }


def _alike(text: str) -> bytes:
    return text_id(" ".join(unicodedata.normalize("NFKC", text).casefold().split()))
