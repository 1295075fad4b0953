"""Asks a chat model behind an OpenAI-compatible server: one instruction, one text, one answer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from embed_data.align.score.endpoint import Endpoint, EndpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from embed_data.align.curriculum.request import LanguageServer

In = TypeVar("In")
Out = TypeVar("Out")


class Chat:
    """Greedy and seeded decoding, as far as the server follows it. Safe to call from several threads."""

    def __init__(self, server: LanguageServer, seed: int, endpoint: Endpoint | None = None) -> None:
        assert server.url is not None, "a server has an address"
        self._endpoint = endpoint or Endpoint(server.url)
        self._model, self._seed, self._concurrency = server.model, seed, server.concurrency

    def ask(self, instruction: str, text: str) -> str:
        """The answer. Raises RefusedError for a refused request, EndpointError for a server that cannot be used."""
        messages = [{"role": "system", "content": instruction}, {"role": "user", "content": text}]
        payload = {"model": self._model, "messages": messages, "temperature": 0, "seed": self._seed}
        answer = self._endpoint.post("chat/completions", payload)
        try:
            content = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise EndpointError(
                f"the server's answer has no `choices[0].message.content` ({str(answer)[:80]!r}): is it "
                "OpenAI-compatible?"
            ) from None
        return content if isinstance(content, str) else ""

    def each(self, function: Callable[[In], Out], things: Iterable[In]) -> list[Out]:
        """``function`` of every thing, computed several at a time, in order."""
        with ThreadPoolExecutor(self._concurrency) as pool:
            return list(pool.map(function, things))
