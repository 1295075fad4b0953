"""Rephrases a question with entities around its answer: written by a model, or put together offline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embed_data.align.curriculum.entities import json_in, whole_words
from embed_data.align.score.endpoint import RefusedError
from embed_data.mining.select.screen import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embed_data.align.curriculum.chat import Chat

VERSION = 1
"""Version of the wording, part of the name of what is kept on disk."""
WIDTH = 3
"""Entities that an offline query adds to the question."""
_ASK = (
    "Write {count} different questions in the language of the given one. Each has the same answer, is worded otherwise "
    "and leans on some of the entities. None contains the answer. Reply with a JSON list of strings and nothing else."
)


def augmented_offline(question: str, answers: Sequence[str], entities: Sequence[str], count: int) -> list[str]:
    """The question with ``WIDTH`` entities each, evenly from the nearest to the farthest. Entities that give away the
    answer are left out; without any entity there is no query."""
    kept = [name for name in entities if not _tells(name, answers) and plain(name) not in plain(question)]
    if not kept:
        return []
    last = max(0, len(kept) - WIDTH)
    starts = [round(n * last / max(1, count - 1)) for n in range(count)]
    return list(dict.fromkeys(" ".join([question.strip(), *kept[start : start + WIDTH]]) for start in starts))


def augmented_by_model(
    question: str, answers: Sequence[str], entities: Sequence[str], count: int, chat: Chat
) -> list[str]:
    """What the model wrote, without what repeats the question or gives away the answer; empty if it cannot be used."""
    text = f"Question: {question}\nAnswer: {answers[0]}\nEntities: {'; '.join(entities)}"
    try:
        listed = json_in(chat.ask(_ASK.format(count=count), text))
    except RefusedError:
        return []
    if isinstance(listed, dict):  # {"questions": [...]} is what many models say
        listed = next((value for value in listed.values() if isinstance(value, list)), None)
    found = [one.strip() for one in listed if isinstance(one, str)] if isinstance(listed, list) else []
    kept = [one for one in found if one and plain(one) != plain(question) and not _tells(one, answers)]
    return list(dict.fromkeys(kept))[:count]


def _tells(text: str, answers: Sequence[str]) -> bool:
    """Whether a text holds an answer, or is a part of one."""
    said = plain(text)
    return any(whole_words(wanted, said) or whole_words(said, wanted) for wanted in map(plain, answers))
