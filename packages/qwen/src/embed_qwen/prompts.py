"""The official form of Qwen3-Embedding's instructions (arXiv 2506.05176): queries have one, documents have none."""

from __future__ import annotations

from dataclasses import dataclass

from embed_core.text.prompts import Prompt

QUERY_FORMAT = "Instruct: {}\nQuery:{}"
"""No space after the colon: it would give other tokens than those that the model was trained with."""
WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
"""The instruction that Qwen's own directories carry."""
_BEFORE, _AFTER = "Instruct: ", "\nQuery:"


@dataclass(frozen=True, slots=True)
class QueryPrompt(Prompt):
    """An instruction before a query, put only once: ms-swift's rows have it in the user's text or a system message."""

    format: str = QUERY_FORMAT

    def apply(self, text: str, instruction: str | None = None) -> str:
        """``text`` with the instruction, which may be in the official form itself; a text in that form is kept."""
        if text.startswith(_BEFORE) and _AFTER in text:
            return text
        chosen = self.instruction if instruction is None else instruction
        return Prompt(bare(chosen), self.format).apply(text) if chosen else text


def bare(instruction: str) -> str:
    """The task of an instruction in the official form; any other instruction is returned as it is."""
    task = instruction_of(instruction.rstrip())
    return task or instruction


def instruction_of(prefix: str) -> str | None:
    """The instruction in a prefix of the official form, ``""`` of an empty one; ``None`` where it has another form."""
    if not prefix:
        return ""
    if not prefix.startswith(_BEFORE) or not prefix.endswith(_AFTER) or len(prefix) <= len(_BEFORE + _AFTER):
        return None
    return prefix[len(_BEFORE) : -len(_AFTER)]
