"""Builds prompts as token ids, in pieces, so that the scored tokens are known exactly: nothing is tokenised twice.

The wording follows the task that ARK (arXiv 2511.16326) describes: no chat template, teacher forcing.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION = 1
"""Version of the wording, part of the name of what is kept on disk."""
FORWARD_TASK = (
    "Answer the question in one phrase or one sentence, by the context alone. "
    'Say "unanswerable" if the context does not support an answer.\n\nContext: '
)
BACKWARD_TASK = (
    "Infer the question, understandable on its own, that the context supports best and that has the given answer."
    "\n\nContext: "
)


class Prompt(NamedTuple):
    """What the model reads, and the continuation whose tokens are scored."""

    prefix: tuple[int, ...]
    """Task and chunk, shared by all questions about the chunk."""
    middle: tuple[int, ...]
    """Question and ``Answer:``, or answer and ``Question:``."""
    target: tuple[int, ...]
    """The answer, or the question."""
    trimmed: int = 0
    """Tokens removed from the chunk's end to make room."""

    @property
    def ids(self) -> tuple[int, ...]:
        """All tokens of the prompt."""
        return self.prefix + self.middle + self.target


class Prompts:
    """Builds both prompts. A prompt never exceeds ``max_length``: the chunk is cut, never question or answer."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self._tokenizer, self._max_length = tokenizer, max_length
        # SentencePiece tokenizers put a blank before every text by themselves, byte-level ones do not.
        first = tokenizer.convert_ids_to_tokens(self._cut("a"))[0]
        self._space = "" if first.startswith("▁") else " "
        self._start = _opening(tokenizer)
        self._ids = lru_cache(8192)(self._cut)
        self._tasks = {task: (*self._start, *self._cut(task)) for task in (FORWARD_TASK, BACKWARD_TASK)}

    def forward(self, chunk: str, question: str, answer: str) -> Prompt | str:
        """``log p(answer | chunk, question)``; a string says why there is no prompt."""
        return self._prompt(FORWARD_TASK, chunk, f"\n\nQuestion: {question}\n\nAnswer:", answer)

    def backward(self, chunk: str, question: str, answer: str) -> Prompt | str:
        """``log p(question | chunk, answer)``; a string says why there is no prompt."""
        return self._prompt(BACKWARD_TASK, chunk, f"\n\nAnswer: {answer}\n\nQuestion:", question)

    def _prompt(self, task: str, chunk: str, middle: str, target: str) -> Prompt | str:
        head, context = self._tasks[task], self._ids(chunk)
        asked, wanted = self._ids(middle), self._ids(self._space + target.strip())
        if not wanted:
            return f"the tokenizer gives no token for {target.strip()[:40]!r}"
        room = self._max_length - len(head) - len(asked) - len(wanted)
        if room < 1:
            return (
                f"task, question and answer alone have {self._max_length - room} tokens, the limit is "
                f"{self._max_length}, and the chunk needs one at least"
            )
        return Prompt((*head, *context[:room]), asked, wanted, max(0, len(context) - room))

    def _cut(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _opening(tokenizer: Any) -> Sequence[int]:
    """The special tokens that the tokenizer puts before a text (BOS), and none that it puts after."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return tuple(whole[:start])
    return ()
