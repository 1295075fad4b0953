"""The official form of Qwen3-Embedding's instructions (arXiv 2506.05176): queries have one, documents are bare."""

from __future__ import annotations

QUERY_FORMAT = "Instruct: {}\nQuery:{}"
"""No space after the colon: with one, the tokens are others than those that the model was trained with."""
WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
"""The instruction that Qwen's own directories carry."""
_BEFORE, _AFTER = "Instruct: ", "\nQuery:"


def instruction_of(prefix: str) -> str | None:
    """The instruction in a prefix of the official form, ``""`` of an empty one; ``None`` where it has another form."""
    if not prefix:
        return ""
    if not prefix.startswith(_BEFORE) or not prefix.endswith(_AFTER) or len(prefix) <= len(_BEFORE + _AFTER):
        return None
    return prefix[len(_BEFORE) : -len(_AFTER)]
