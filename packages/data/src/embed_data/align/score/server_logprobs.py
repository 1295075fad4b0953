"""Per-token log-probabilities from an OpenAI-compatible server (vLLM and similar), which echoes the prompt's own."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from embed_data.align.score.endpoint import Endpoint, EndpointError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embed_data.align.request import LanguageModelChoice
    from embed_data.align.score.prompts import Prompt


class ServerLogProbs:
    """A :class:`~embed_data.align.score.logprobs.LogProbs` over ``/completions`` with ``echo`` and ``logprobs``.

    Prompts go as token ids: the server tokenises nothing. Those with the same prefix go in a row, for its cache.
    """

    def __init__(self, choice: LanguageModelChoice, tokenizer: Any, endpoint: Endpoint | None = None) -> None:
        assert choice.url is not None, "a server has an address"
        assert choice.max_length is not None, "a server does not say it"
        self._endpoint = endpoint or Endpoint(choice.url)
        self._model, self._concurrency, self.max_length = choice.path, choice.concurrency, choice.max_length
        vocabulary = repr(sorted(tokenizer.get_vocab().items()))
        self.digest = f"{choice.path}-{blake2b(vocabulary.encode(), digest_size=8).hexdigest()}"

    def score(self, prompts: Sequence[Prompt]) -> list[list[float] | str]:
        """See :class:`~embed_data.align.score.logprobs.LogProbs`. Raises EndpointError where the server fails."""
        with ThreadPoolExecutor(self._concurrency) as pool:
            return list(pool.map(self._one, prompts))

    def _one(self, prompt: Prompt) -> list[float] | str:
        # Some servers refuse to generate nothing, so one token is asked for; it is not used.
        payload = {
            "model": self._model,
            "prompt": list(prompt.ids),
            "max_tokens": 1,
            "temperature": 0,
            "echo": True,
            "logprobs": 1,
        }
        try:
            answer = self._endpoint.post("completions", payload)
        except RefusedError as error:
            return f"the server refuses the prompt: {error}"
        return self._target(answer, prompt)

    def _target(self, answer: dict[str, Any], prompt: Prompt) -> list[float] | str:
        try:
            values = answer["choices"][0]["logprobs"]["token_logprobs"]
        except (KeyError, IndexError, TypeError):
            values = None
        length = len(prompt.ids)
        if not isinstance(values, list) or not length <= len(values) <= length + 1:
            found = len(values) if isinstance(values, list) else "none"
            raise EndpointError(
                f"the server gives {found} log-probabilities for a prompt of {length} tokens: it must support `echo` "
                "with `logprobs` and take token ids (vLLM does)"
            )
        target = values[length - len(prompt.target) : length]
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in target):
            return "the server gave a log-probability that is not finite"
        return [float(value) for value in target]
