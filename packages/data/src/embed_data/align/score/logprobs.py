"""Per-token log-probabilities of continuations, by a causal LM that runs here."""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any, Protocol

import torch

from embed_core.errors import CheckpointError, ConfigError
from embed_core.models.hub import model_directory
from embed_core.utils.logging import quiet_transformers
from embed_core.utils.messages import one_line
from embed_data.align.score.prompts import Prompt
from embed_data.mining.rank.model import weights_digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from embed_core.protocols import Announce
    from embed_data.align.request import LanguageModelChoice

LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
AGREE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Nats within which cached and whole forwards must agree; else the cache is not used."""


class LogProbs(Protocol):
    """Scores continuations token by token."""

    max_length: int
    """Tokens of a prompt and its continuation, at most."""
    digest: str
    """Digest of everything that its numbers depend on."""

    def score(self, prompts: Sequence[Prompt]) -> list[list[float] | str]:
        """For each prompt ``log p`` (nats) of every token of its target, or a string that says why there is none."""
        ...


class LocalLogProbs:
    """A transformers causal LM. A prefix that prompts share runs once, and its keys and values serve all of them.

    Other prompts are batched left-padded, so that continuations end together and only their logits are computed.
    The numbers of a call depend on its prompts alone, not on what was scored before.
    """

    def __init__(self, choice: LanguageModelChoice, tokenizer: Any, device: str, announce: Announce) -> None:
        assert choice.path is not None, "a local model has a directory"
        self._dtype = _dtype(choice.precision, device)
        self._model = _load(choice.path, self._dtype).to(device).eval()
        _check_vocabulary(self._model, tokenizer, choice.path)
        self._device, self._budget = device, choice.batch_tokens
        self._takes = set(inspect.signature(self._model.forward).parameters)
        self._pad = next(one for one in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if one is not None)
        self.max_length = _max_length(self._model.config, choice)
        self.digest = f"{weights_digest(self._model, choice.precision)}-{choice.batch_tokens}"
        self._shares = self._agrees()
        if not self._shares:
            announce("the language model gives other numbers from cached prefixes: every prompt is run whole, slower")

    def score(self, prompts: Sequence[Prompt]) -> list[list[float] | str]:
        """See :class:`LogProbs`. Raises ConfigError where the device's memory is not enough."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, prompt in enumerate(prompts):
            groups.setdefault(prompt.prefix, []).append(number)
        found: dict[int, list[float]] = {}
        alone: list[int] = []
        try:
            with torch.inference_mode():
                for prefix, members in groups.items():
                    if len(members) > 1 and self._shares:
                        self._shared(prefix, members, prompts, found)
                    else:
                        alone += members
                self._whole(alone, prompts, found)
        except torch.OutOfMemoryError:
            raise ConfigError(
                f"--batch-tokens {self._budget}: the device's memory does not do for it: lower it; what is finished is "
                "kept"
            ) from None
        return [_checked(found[number]) for number in range(len(prompts))]

    def _shared(
        self, prefix: tuple[int, ...], members: list[int], prompts: Sequence[Prompt], found: dict[int, list[float]]
    ) -> None:
        first = self._run(torch.tensor([prefix]), torch.ones(1, len(prefix), dtype=torch.int64), keep=1, cache=True)
        for batch, width in self._batches(members, prompts, len(prefix)):
            rows = [prompts[n].middle + prompts[n].target for n in batch]
            ids_BL = torch.tensor([[*row, *[self._pad] * (width - len(row))] for row in rows])
            mask_BL = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
            mask_BL = torch.cat([torch.ones(len(rows), len(prefix), dtype=torch.int64), mask_BL], dim=1)
            past = copy.deepcopy(first.past_key_values)
            past.batch_repeat_interleave(len(rows))
            logits_BLV = self._run(ids_BL, mask_BL, past=past).logits
            for n, logits_LV in zip(batch, logits_BLV, strict=True):
                start = len(prompts[n].middle) - 1
                found[n] = _taken(logits_LV[start : start + len(prompts[n].target)], prompts[n].target)

    def _whole(self, members: list[int], prompts: Sequence[Prompt], found: dict[int, list[float]]) -> None:
        for batch, width in self._batches(members, prompts, 0):
            rows = [prompts[n].ids for n in batch]
            ids_BL = torch.tensor([[*[self._pad] * (width - len(row)), *row] for row in rows])
            mask_BL = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
            keep = max(len(prompts[n].target) for n in batch) + 1
            logits_BLV = self._run(ids_BL, mask_BL, keep=keep).logits
            for n, logits_LV in zip(batch, logits_BLV, strict=True):
                found[n] = _taken(logits_LV[-len(prompts[n].target) - 1 : -1], prompts[n].target)

    def _batches(self, members: list[int], prompts: Sequence[Prompt], prefix: int) -> Iterator[tuple[list[int], int]]:
        """Batches of prompts of about the same length, each with that length, the prefix not counted."""

        def length(number: int) -> int:
            return len(prompts[number].ids) - prefix

        ordered = sorted(members, key=lambda n: (-length(n), n))
        while ordered:
            width = length(ordered[0])
            count = max(1, self._budget // (prefix + width))
            yield ordered[:count], width
            ordered = ordered[count:]

    def _run(self, ids_BL: Tensor, mask_BL: Tensor, keep: int = 0, cache: bool = False, past: Any = None) -> Any:
        """One forward. ``mask_BL`` covers cached tokens too; ``keep`` limits logits to the last positions (0 = all)."""
        positions_BL = (mask_BL.cumsum(dim=1) - 1).clamp(min=0)[:, -ids_BL.shape[1] :]
        arguments: dict[str, Any] = {"input_ids": ids_BL, "attention_mask": mask_BL}
        if "position_ids" in self._takes:
            arguments["position_ids"] = positions_BL
        arguments = {name: value.to(self._device) for name, value in arguments.items()}
        if keep and "logits_to_keep" in self._takes:
            arguments["logits_to_keep"] = keep
        if past is not None:
            arguments["past_key_values"] = past
        return self._model(**arguments, use_cache=cache or past is not None)

    def _agrees(self) -> bool:
        """Whether this architecture's cache can be shared. It is tried on made-up prompts, never on the data, so that a
        resumed run decides as the first did."""
        size = self._model.get_input_embeddings().weight.shape[0]
        ids = [(7 * n + 3) % size for n in range(24)]
        prefix = tuple(ids[: min(12, self.max_length // 2)])
        room = min(12, self.max_length - len(prefix))
        prompts = [Prompt(prefix, tuple(ids[12 : 11 + room - cut]), tuple(ids[:1])) for cut in range(min(3, room - 1))]
        shared: dict[int, list[float]] = {}
        whole: dict[int, list[float]] = {}
        members = list(range(len(prompts)))
        try:
            with torch.inference_mode():
                self._shared(prefix, members, prompts, shared)
        except (AttributeError, TypeError, ValueError, NotImplementedError):
            return False  # no cache, or one that cannot be repeated over a batch
        with torch.inference_mode():
            self._whole(members, prompts, whole)
        return all(abs(shared[n][0] - whole[n][0]) <= AGREE[self._dtype] for n in members)


def _taken(logits_LV: Tensor, target: Sequence[int]) -> list[float]:
    logp_LV = logits_LV.float().log_softmax(dim=-1)
    taken_L = logp_LV.gather(1, torch.tensor(target, device=logp_LV.device)[:, None])[:, 0]
    return [float(value) for value in taken_L.cpu()]


def _checked(values: list[float]) -> list[float] | str:
    if all(value == value and abs(value) != float("inf") for value in values):
        return values
    return "the language model gave a log-probability that is not finite"


def _load(path: str, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    directory = model_directory(path)
    try:
        with quiet_transformers():
            model, report = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, output_loading_info=True)
    except Exception as error:  # OSError, ValueError, SafetensorError, KeyError …
        reason = one_line(error, 200)
        raise CheckpointError(f"--lm {path!r} cannot be loaded as a causal language model: {reason}") from error
    tied = {name for name in report["missing_keys"] if "lm_head" in name and model.config.tie_word_embeddings}
    missing = sorted(set(report["missing_keys"]) - tied)
    if missing:
        raise CheckpointError(
            f"--lm {path!r} lacks {len(missing)} weights of {type(model).__name__}, {missing[0]!r} first: it is no "
            "causal language model, or an incomplete one"
        )
    return model


def _check_vocabulary(model: Any, tokenizer: Any, path: str) -> None:
    size = model.get_input_embeddings().weight.shape[0]
    highest = max(tokenizer.get_vocab().values())
    if highest >= size:
        raise CheckpointError(
            f"--lm {path!r} knows {size} tokens and the tokenizer's ids go up to {highest}: they do not belong "
            "together; give the model's own with --tokenizer"
        )


def _max_length(config: Any, choice: LanguageModelChoice) -> int:
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    known = next((int(n) for name in LENGTHS if (n := getattr(inner, name, None))), None)
    if known is None and choice.max_length is None:
        raise ConfigError(f"--lm {choice.path!r}: its config says no maximum length: give --max-length")
    if known is not None and choice.max_length is not None and choice.max_length > known:
        raise ConfigError(f"--max-length {choice.max_length}: {choice.path!r} takes {known} tokens at most")
    return choice.max_length or known or 0


def _dtype(precision: str, device: str) -> torch.dtype:
    if precision == "auto":
        precision = "bf16" if device.startswith("cuda") else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
