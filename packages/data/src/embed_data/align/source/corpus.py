"""The first stage: documents, cut into chunks, and their questions are written to disk; later stages join by id."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from embed_core.datasets.sources import beir
from embed_core.datasets.sources.jsonl import JsonlFile
from embed_core.errors import DataError
from embed_data.align.source.chunking import Span, chunk
from embed_data.align.source.source import Part, Question, beir_parts, read_questions
from embed_data.align.source.store import Stage, to_line, write_whole
from embed_data.mining.rank.tokens import has_no_spaces, terms
from embed_data.mining.select.screen import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from embed_data.align.request import ChunkChoice

    Offsets = Callable[[str], list[tuple[int, int]]]

DOCUMENTS, QUESTIONS = "documents.jsonl", "questions.jsonl"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document."""

    key: str
    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a document, and which of its chunks hold the answer."""

    key: str
    text: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    """Numbers of the chunks of its document that hold the answer: by the data's own offsets or judgements, else to the
    letter (:func:`~embed_data.mining.select.screen.plain`)."""


class ChunkedCorpus:
    """Documents and questions by number, read on access; only a few numbers per document are in memory."""

    def __init__(self, folder: Path) -> None:
        self._documents, self._questions = JsonlFile(folder / DOCUMENTS), JsonlFile(folder / QUESTIONS)
        self.chunk_counts = [len(row["chunks"]) for row in self._documents]
        self.questions_of: list[list[int]] = [[] for _ in self.chunk_counts]
        """Question numbers by document."""
        for number, row in enumerate(self._questions):
            self.questions_of[row["document"]].append(number)

    @property
    def pairs(self) -> int:
        """The number of (question, chunk) pairs to be scored."""
        return sum(n * len(asked) for n, asked in zip(self.chunk_counts, self.questions_of, strict=True))

    @property
    def questions(self) -> int:
        """The number of questions, including those without answers."""
        return len(self._questions)

    def key(self, document: int) -> str:
        """The document's id."""
        return str(self._documents[document]["doc_id"])

    def chunks(self, document: int) -> list[Chunk]:
        """The chunks of a document, in order."""
        return [Chunk(one["id"], one["text"], one["tokens"]) for one in self._documents[document]["chunks"]]

    def asked(self, number: int) -> Asked:
        """A question by number."""
        row = self._questions[number]
        return Asked(row["id"], row["query"], tuple(row["answers"]), tuple(row["gold"]))


def build_corpus(
    path: Path, split: str | None, group_by: str | None, choice: ChunkChoice, offsets: Offsets | None, stage: Stage
) -> None:
    """Write the stage's two files; existing ones are kept. Raises DataError for data that cannot be used."""
    if (stage.folder / QUESTIONS).exists():
        return
    stage.start()
    builder = _Builder(choice, offsets)
    asked = read_questions(path, split, group_by)
    write_whole(stage.folder / DOCUMENTS, builder.documents(asked, _whole_corpus(path, group_by)))
    if not builder.asked:
        raise DataError(f"{path}: no question in it")
    write_whole(stage.folder / QUESTIONS, (to_line(row) for row in builder.asked))


def _whole_corpus(path: Path, group_by: str | None) -> Iterator[tuple[str | None, Part]]:
    """Every document of a BEIR corpus, whether or not a question is about it; nothing for other data."""
    return beir_parts(path, group_by) if beir.is_beir(path) else iter(())


class _Builder:
    """Writes documents of one context as they come; grouped ones must have been read to the end first."""

    def __init__(self, choice: ChunkChoice, offsets: Offsets | None) -> None:
        self._choice, self._offsets = choice, offsets
        self.asked: list[dict[str, Any]] = []
        self._seen: set[str] = set()
        self._numbers: dict[str, int] = {}
        self._spans: list[list[Span]] = []

    def documents(self, asked: Iterator[Question], corpus: Iterator[tuple[str | None, Part]]) -> Iterator[str]:
        groups: dict[str, dict[str, Part]] = {}
        for group, part in corpus:
            groups.setdefault(group or "", {}).setdefault(part.text, part)
        waiting: list[Question] = []
        for question in asked:
            if question.key in self._seen:
                raise DataError(f"question id {question.key!r} occurs twice: ids join scores to questions; make it one")
            self._seen.add(question.key)
            if question.group is None:
                yield from self._take(_digest(question.parts), question.parts, question)
            else:
                own = groups.setdefault(question.group, {})
                for part in question.parts:
                    own.setdefault(part.text, part)
                waiting.append(question)
        for question in waiting:
            assert question.group is not None, "grouped"
            yield from self._take(question.group, tuple(groups[question.group].values()), question)

    def _take(self, key: str, parts: tuple[Part, ...], question: Question) -> Iterator[str]:
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._spans)
            spans = chunk([part.text for part in parts], self._choice, self._offsets)
            self._spans.append(spans)
            yield to_line({"doc_id": key, "chunks": list(self._chunks(key, parts, spans))})
        gold = _gold(question, parts, self._spans[number])
        row = {"id": question.key, "document": number, "query": question.text, "answers": list(question.answers)}
        self.asked.append({**row, "gold": gold})

    def _chunks(self, key: str, parts: Sequence[Part], spans: Sequence[Span]) -> Iterator[Mapping[str, Any]]:
        for number, span in enumerate(spans):
            part = parts[span.part]
            text = part.text[span.start : span.stop]
            name = f"{part.key or key}#{number}"
            if part.key is not None and text == part.text.strip():
                name = part.key
            tokens = len(self._offsets(text)) if self._offsets is not None else len(terms(text))
            yield {"id": name, "text": text, "tokens": tokens}


def _gold(question: Question, parts: Sequence[Part], spans: Sequence[Span]) -> list[int]:
    texts = {part.text for part in question.parts}
    own = [n for n, span in enumerate(spans) if parts[span.part].text in texts]
    if question.starts:
        return [n for n in own if any(spans[n].start <= start < spans[n].stop for start in question.starts)]
    holding = [n for n in own if _holds(parts[spans[n].part].text[spans[n].start : spans[n].stop], question.answers)]
    return holding or (own if question.judged else [])


def _holds(text: str, answers: Sequence[str]) -> bool:
    whole = plain(text)
    dense = whole.replace(" ", "")  # for scripts that write no blanks
    wanted = [answer for answer in map(plain, answers) if answer]
    return any(one in whole or (has_no_spaces(one) and one.replace(" ", "") in dense) for one in wanted)


def _digest(parts: Sequence[Part]) -> str:
    """The id of a document that has none: documents with equal contexts are one."""
    return blake2b("\0".join(part.text for part in parts).encode(), digest_size=8).hexdigest()
