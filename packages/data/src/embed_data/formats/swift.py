"""ms-swift's embedding rows: ``messages``, ``positive_messages``, ``negative_messages``, ``label``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embed_core.errors import DataError, json_type

SHAPE = "ms-swift rows"
COLUMNS = frozenset(("messages", "positive_messages", "negative_messages"))
"""The columns of a row, besides a pair's ``label``."""
_MEDIA = ("images", "videos", "audios")


def is_swift(value: Mapping[str, Any]) -> bool:
    """Whether a record is such a row, complete or not."""
    return "messages" in value


def swift_row(value: Mapping[str, Any]) -> dict[str, Any]:
    """The same as a FlagEmbedding row; a query's system message is its prompt. Raises DataError without a place.

    The texts of a conversation's messages are joined by line breaks. A ``label`` that is a number is the score of the
    pair of a row without negatives.
    """
    for name in _MEDIA:
        if value.get(name):
            raise DataError(f"`{name}`: only texts can be read here")
    prompt, query = _conversation(value.get("messages"), "messages")
    positives = _conversations(value, "positive_messages")
    negatives = _conversations(value, "negative_messages")
    row: dict[str, Any] = {"query": query, "pos": positives, "neg": negatives}
    if prompt is not None:
        row["prompt"] = prompt
    label = value.get("label")
    if label is not None and not negatives:
        row["score"] = label
    return row


def _conversations(value: Mapping[str, Any], name: str) -> list[str]:
    """The texts of a list of conversations, or of one conversation that is not in a list."""
    given = value.get(name)
    if given is None:
        return []
    if not isinstance(given, list):
        raise DataError(f"`{name}` must be a list of lists of messages, found {json_type(given)}")
    if given and all(isinstance(one, Mapping) for one in given):
        given = [given]
    return [_conversation(one, f"{name}[{number}]")[1] for number, one in enumerate(given)]


def _conversation(messages: Any, name: str) -> tuple[str | None, str]:
    """The system message, if there is one, and the text of the others."""
    if not isinstance(messages, list) or not messages:
        found = "an empty list" if isinstance(messages, list) else json_type(messages)
        raise DataError(f"`{name}` must be a list of messages like {{role, content}}, found {found}")
    system: str | None = None
    texts: list[str] = []
    for number, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(message, Mapping) or not isinstance(content, str):
            found = json_type(content) if isinstance(message, Mapping) else json_type(message)
            raise DataError(f"`{name}[{number}]` must be a message with a text as `content`, found {found}")
        if message.get("role") == "system":
            system = content
        else:
            texts.append(content)
    if not texts:
        raise DataError(f"`{name}` has a system message only")
    return system, "\n".join(texts)
