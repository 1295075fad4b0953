"""Finds entities and relations in chunks: with a language model if one is served, else by capitals and rare terms."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embed_data.align.score.endpoint import RefusedError
from embed_data.mining.rank.tokens import has_no_spaces, terms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embed_data.align.curriculum.chat import Chat

VERSION = 1
"""Version of the extraction and its wording, part of the name of what is kept on disk."""
FEW = 3
"""A chunk with fewer capitalised entities gets its rarest terms too: some scripts have no capitals."""
RARE = 8
_WORD = re.compile(r"[^\W_][\w'’\-]*")
_ASK = (
    "List the named entities and key terms of the text, and the relations between them that it states. Answer with one "
    'JSON object and nothing else: {"entities": [{"name": "...", "description": "..."}], '
    '"relations": [{"source": "...", "target": "...", "description": "..."}]}'
)


@dataclass(frozen=True, slots=True)
class Extracted:
    """Entities and relations of one chunk. Names are upper-cased."""

    entities: dict[str, str]
    """Name → description, empty if there is none."""
    relations: list[tuple[str, str]] = field(default_factory=list)
    """Empty if extracted offline: there, all entities of a chunk are related."""
    offline: bool = True


def extract_offline(texts: Sequence[str]) -> list[Extracted]:
    """From the chunks of one document: runs of capitalised words, numbers of three or more digits, and if these are few
    the terms that the chunk has and the others lack."""
    counted = [Counter(terms(text)) for text in texts]
    spread = Counter(term for one in counted for term in one)
    found = []
    for text, own in zip(texts, counted, strict=True):
        names = dict.fromkeys(_capitalised(text, spread), "")
        if len(names) < FEW:
            rare = sorted(own, key=lambda term: (-own[term] * math.log((len(texts) + 1) / spread[term]), term))
            names |= dict.fromkeys((term.upper() for term in rare[:RARE] if len(term) > 1), "")
        found.append(Extracted(names))
    return found


def extract_by_model(text: str, chat: Chat) -> Extracted | None:
    """Entities from the model's answer; None if it cannot be used, and the caller extracts offline."""
    try:
        data = json_in(chat.ask(_ASK, text))
    except RefusedError:
        return None
    entities = data.get("entities") if isinstance(data, dict) else None
    if not isinstance(entities, list):
        return None
    names = {
        name: str(one.get("description") or "")
        for one in entities
        if isinstance(one, dict) and (name := _name(one.get("name")))
    }
    listed = data.get("relations")
    pairs = [
        (source, target)
        for one in (listed if isinstance(listed, list) else [])
        if isinstance(one, dict) and (source := _name(one.get("source"))) and (target := _name(one.get("target")))
    ]
    for name in (name for pair in pairs for name in pair):
        names.setdefault(name, "")
    return Extracted(names, [pair for pair in pairs if pair[0] != pair[1]], offline=False) if names else None


def json_in(text: str) -> Any:
    """The first JSON value in a model's answer, without fences and talk around it; None if there is none."""
    decoder = json.JSONDecoder()
    for start in (found.start() for found in re.finditer(r"[\[{]", text)):
        try:
            return decoder.raw_decode(text, start)[0]
        except ValueError:
            continue
    return None


def whole_words(small: str, large: str) -> bool:
    """Whether ``small`` is in ``large`` as whole words, so that ``2`` is not in ``2015``; anywhere in scripts without
    blanks. Both are :func:`~embed_data.mining.select.screen.plain`."""
    if has_no_spaces(small):
        return small in large
    return bool(small) and re.search(rf"(?<!\w){re.escape(small)}(?!\w)", large) is not None


def _capitalised(text: str, spread: Counter[str]) -> list[str]:
    """Upper-cased runs of capitalised words. A word that opens a sentence counts unless it is a common one."""
    found: list[str] = []
    run: list[str] = []
    last = 0
    for word in _WORD.finditer(text):
        between, last = text[last : word.start()], word.end()
        if run and between.strip(" \u00a0"):
            found.append(" ".join(run))
            run = []
        opens = between.strip() != "" or word.start() == 0
        if word[0].isdigit() and len(word[0]) >= 3:
            found.append(word[0])
        if word[0][0].isupper() and not (opens and not run and _common(word[0], spread)):
            run.append(word[0])
        elif run:
            found.append(" ".join(run))
            run = []
    found.append(" ".join(run))
    return [one.upper() for one in found if len(one) > 1]


def _common(word: str, spread: Counter[str]) -> bool:
    """Whether a word that opens a sentence is a common one: it is short, or more than two chunks have it."""
    return len(word) <= 4 or spread[word.casefold()] > 2


def _name(value: Any) -> str:
    return " ".join(value.split()).upper() if isinstance(value, str) else ""
