"""Reads what ``embed align`` wrote: documents with their chunks and aligned questions."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby
from typing import TYPE_CHECKING, Any

from embed_core.datasets.sources.jsonl import JsonlFile
from embed_core.errors import DataError
from embed_data.align.source.corpus import Asked, Chunk

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class AlignedQuestion:
    """A question with its positives, by number in the document."""

    asked: Asked
    positives: tuple[int, ...]
    unknown: frozenset[int]
    """Chunks whose score failed, which are neither positive nor negative."""
    forward: Mapping[int, float]
    """Forward scores in nats, for the chunks that have one."""


@dataclass(frozen=True, slots=True)
class AlignedDocument:
    """One document and the questions about it that have positives."""

    key: str
    chunks: list[Chunk]
    questions: list[AlignedQuestion]


class Aligned:
    """Documents that have questions, by number, read on access. Raises DataError for an unfinished folder."""

    def __init__(self, folder: Path) -> None:
        names = ("report.json", "scored.jsonl", "chunks.jsonl")  # the report is written last
        lacking = next((name for name in names if not (folder / name).is_file()), None)
        if lacking is not None:
            raise DataError(f"{folder}: no {lacking}: give the folder of a finished `embed align`")
        self._scored, self._chunks = JsonlFile(folder / "scored.jsonl"), JsonlFile(folder / "chunks.jsonl")
        self._chunk_rows = self._ranges(self._chunks)
        self._question_rows = list(self._ranges(self._scored).items())

    def __len__(self) -> int:
        return len(self._question_rows)

    def __getitem__(self, number: int) -> AlignedDocument:
        key, rows = self._question_rows[number]
        if key not in self._chunk_rows:
            raise DataError(f"{self._scored.place(rows[0])}: document {key!r} is not in {self._chunks.path}")
        listed = [self._chunks[n] for n in self._chunk_rows[key]]
        chunks = [Chunk(one["_id"], one["text"], one["tokens"]) for one in listed]
        numbers = {chunk.key: at for at, chunk in enumerate(chunks)}
        questions = [self._question(n, numbers) for n in rows if self._scored[n]["positives"]]
        return AlignedDocument(key, chunks, questions)

    def digest(self) -> str:
        """Digest of both files."""
        return blake2b((self._scored.digest() + self._chunks.digest()).encode(), digest_size=16).hexdigest()

    def _question(self, number: int, numbers: Mapping[str, int]) -> AlignedQuestion:
        row, place = self._scored[number], self._scored.place(number)
        scored = {self._number(one["id"], numbers, place): one for one in row["chunks"]}
        known = {at for at, one in scored.items() if one["score"] is not None}
        gold = tuple(self._number(key, numbers, place) for key in row["gold"])
        return AlignedQuestion(
            Asked(row["id"], row["query"], tuple(row["answers"]), gold),
            tuple(self._number(key, numbers, place) for key in row["positives"]),
            frozenset(range(len(numbers))) - known,
            {at: one["forward"] for at, one in scored.items() if one.get("forward") is not None},
        )

    @staticmethod
    def _number(key: Any, numbers: Mapping[str, int], place: str) -> int:
        if key not in numbers:
            raise DataError(f"{place}: chunk {key!r} is not in chunks.jsonl: the files are of different alignments")
        return numbers[key]

    @staticmethod
    def _ranges(file: JsonlFile) -> dict[str, list[int]]:
        """Document id → numbers of its rows."""
        pairs = ((str(row.get("doc_id")), number) for number, row in enumerate(file))
        found: dict[str, list[int]] = {}
        for key, group in groupby(pairs, key=lambda pair: pair[0]):
            found.setdefault(key, []).extend(number for _, number in group)
        return found
