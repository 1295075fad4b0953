"""Reads questions with answers and the documents they are about, in any of the forms such data comes in.

``{input, answers, context}`` (ARK, LongBench), SQuAD as flat rows ``{question, answers: {text, answer_start}, context,
title, id}`` or as published (``data`` → ``paragraphs`` → ``qas``), and BEIR folders with ``answers`` on the queries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embed_core.datasets.sources import beir
from embed_core.datasets.sources.jsonl import SUFFIXES, JsonlFile, checked_path
from embed_core.errors import ConfigError, DataError, did_you_mean, json_type
from embed_data.mining.corpus.rows import answers_of

if TYPE_CHECKING:
    from pathlib import Path

QUESTION = ("input", "question", "query")
IDS = ("id", "_id", "query_id")


@dataclass(frozen=True, slots=True)
class Part:
    """One context: a text, or one of the paragraphs of a document."""

    text: str
    key: str | None = None
    """External id; None where it has none."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one document, as read."""

    key: str
    text: str
    answers: tuple[str, ...]
    """Distinct answers in their order; empty where the question cannot be answered."""
    parts: tuple[Part, ...]
    """The context it came with; for a BEIR query, the documents judged relevant."""
    group: str | None
    """Value of the key that documents are grouped by."""
    starts: tuple[int, ...] = ()
    """Where the answers begin in the only part, in characters, if the data gives that."""
    judged: bool = False
    """Whether ``parts`` are the relevant ones of a larger document (BEIR)."""


def read_questions(path: Path, split: str | None, group_by: str | None) -> Iterator[Question]:
    """Every question at ``path``. Raises DataError (``file:line``), ConfigError for a split of data that has none."""
    checked_path(path)
    if beir.is_beir(path):
        yield from _beir_questions(path, split, group_by)
        return
    if split is not None:
        raise ConfigError(f"--split {split!r}: {path} is no BEIR folder and has no splits: leave it out")
    if path.is_dir() or path.suffix not in SUFFIXES:
        kind = "is a folder without qrels/" if path.is_dir() else f"ends in {path.suffix!r}"
        raise DataError(f"{path}: {kind}: a .jsonl or .json file, or a BEIR folder, is needed")
    published = _published(path)
    if published is not None:
        if group_by not in (None, "title"):
            raise ConfigError(f"--group-by {group_by!r}: {path} has articles, which are its documents: leave it out")
        yield from published
        return
    file = JsonlFile(path)
    for number, row in enumerate(file):
        yield _question(row, file.place(number), f"row-{number:07}", group_by)


def beir_parts(path: Path, group_by: str | None) -> Iterator[tuple[str | None, Part]]:
    """Every document of a BEIR corpus with its group; the title is not part of the text."""
    file = JsonlFile(path / "corpus.jsonl")
    for key, index, _ in beir.rows_by_id(file, beir.document_text):
        row = file[index]
        yield _group(row, file.place(index), group_by), Part(str(row["text"]), key)


def _question(row: Mapping[str, Any], place: str, default: str, group_by: str | None) -> Question:
    data = dict(row)
    name = next((one for one in QUESTION if data.get(one) is not None), None)
    if name is None:
        raise DataError(f"{place}: no `input` (nor `question`, `query`): {_found(data)}")
    text = _text(data[name], name, place)
    answers = _distinct(answers_of(data, place))
    given = data.get("id", data.get("_id", data.get("query_id")))
    if isinstance(given, bool) or not isinstance(given, (str, int, type(None))):
        raise DataError(f"{place}: `id` must be a string or a number, found {json_type(given)}")
    parts = _parts(data.get("context"), data, place)
    key = default if given is None else str(given)
    return Question(key, text, answers, parts, _group(data, place, group_by), _starts(data, len(parts)))


def _parts(context: Any, data: Mapping[str, Any], place: str) -> tuple[Part, ...]:
    if context is None:
        raise DataError(f"{place}: no `context`: {_found(data)}")
    if isinstance(context, str):
        return (Part(_text(context, "context", place)),)
    if not isinstance(context, list) or not context:
        found = "an empty list" if isinstance(context, list) else json_type(context)
        raise DataError(f"{place}: `context` must be a text or a list of paragraphs, found {found}")
    return tuple(Part(_text(one, f"context[{at}]", place)) for at, one in enumerate(context))


def _starts(data: Mapping[str, Any], parts: int) -> tuple[int, ...]:
    answers = data.get("answers")
    starts = answers.get("answer_start") if isinstance(answers, dict) else None
    if parts != 1 or not isinstance(starts, list):
        return ()
    return tuple(dict.fromkeys(start for start in starts if isinstance(start, int) and start >= 0))


def _published(path: Path) -> Iterator[Question] | None:
    """Questions of SQuAD's own JSON, or None for any other file. The format is one object, so it is read whole."""
    if path.suffix != ".json":
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None  # the reader of rows reports the error
    if not isinstance(data, dict) or not isinstance(data.get("data"), list):
        return None
    return _articles(data["data"], path)


def _articles(articles: list[Any], path: Path) -> Iterator[Question]:
    for a, article in enumerate(articles):
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            raise DataError(f"{path}: data[{a}]: no list of `paragraphs` in it")
        parts = [_paragraph(one, f"{path}: data[{a}].paragraphs[{p}]") for p, one in enumerate(paragraphs)]
        for p, (paragraph, part) in enumerate(zip(paragraphs, parts, strict=True)):
            questions = paragraph.get("qas")
            if not isinstance(questions, list):
                raise DataError(f"{path}: data[{a}].paragraphs[{p}]: no list of `qas` in it")
            for q, asked in enumerate(questions):
                place = f"{path}: data[{a}].paragraphs[{p}].qas[{q}]"
                yield _asked(asked, part, place, str(article.get("title", a)))


def _paragraph(value: Any, place: str) -> Part:
    if not isinstance(value, dict):
        raise DataError(f"{place}: must be an object, found {json_type(value)}")
    return Part(_text(value.get("context"), "context", place))


def _asked(value: Any, part: Part, place: str, title: str) -> Question:
    if not isinstance(value, dict):
        raise DataError(f"{place}: must be an object, found {json_type(value)}")
    listed = value.get("answers") or []
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise DataError(f"{place}: `answers` must be a list of objects with `text`, found {json_type(listed)}")
    texts = [one.get("text") for one in listed]
    answers = _distinct(answers_of({"answers": texts}, place))
    starts = tuple(dict.fromkeys(one["answer_start"] for one in listed if isinstance(one.get("answer_start"), int)))
    key = value.get("id")
    if not isinstance(key, str):
        raise DataError(f"{place}: `id` must be a string, found {json_type(key)}")
    return Question(key, _text(value.get("question"), "question", place), answers, (part,), title, starts)


def _beir_questions(path: Path, split: str | None, group_by: str | None) -> Iterator[Question]:
    qrels_path = beir.qrels_file(path, split, prefer="train")
    queries = JsonlFile(path / "queries.jsonl")
    index = {key: at for key, at, _ in beir.rows_by_id(queries, beir.query_text)}
    corpus = {part.key: (group, part) for group, part in beir_parts(path, group_by)}
    for key, judged in beir.read_qrels(qrels_path, index, {k for k in corpus if k is not None}).items():
        row, place = queries[index[key]], queries.place(index[key])
        relevant = [corpus[document] for document, score in judged.items() if score > 0]
        for group in dict.fromkeys(group for group, _ in relevant):
            parts = tuple(part for other, part in relevant if other == group)
            name = key if len({group for group, _ in relevant}) == 1 else f"{key}@{group}"
            answers = _distinct(answers_of(row, place))
            yield Question(name, beir.query_text(row, place), answers, parts, group, judged=True)


def _group(row: Mapping[str, Any], place: str, group_by: str | None) -> str | None:
    if group_by is None:
        return str(row["_id"]) if "_id" in row and "text" in row else None
    value = row.get(group_by)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        found = "nothing" if value in (None, "") else json_type(value)
        raise DataError(
            f"{place}: `{group_by}` of --group-by must be a string or a number, found {found}: "
            f"{did_you_mean(group_by, row)}"
        )
    return str(value)


def _distinct(answers: tuple[str, ...]) -> tuple[str, ...]:
    """Answers without repetitions by annotators: ``the Nile`` and ``The Nile `` are one answer."""
    return tuple({" ".join(one.split()).casefold(): one.strip() for one in reversed(answers)}.values())[::-1]


def _text(value: Any, name: str, place: str) -> str:
    if not isinstance(value, str):
        found = "nothing" if value is None else json_type(value)
        raise DataError(f"{place}: `{name}` must be a string, found {found}")
    if not value.strip():
        raise DataError(f"{place}: `{name}` is empty: remove the row")
    return value


def _found(data: Mapping[str, Any]) -> str:
    return f"the row has {', '.join(map(repr, list(data)[:8]))}: rename its columns" if data else "the row is empty"
