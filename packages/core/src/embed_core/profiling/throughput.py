"""Measures a model that is ready to run, for `embed plan`: its activations, the largest chunk that fits, its speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from embed_core.batch.chunks import ChunkRule
from embed_core.config.run import EngineConfig
from embed_core.distributed.process_group import Ranks
from embed_core.profiling.activation_memory import ActivationFit, ChunkProbe, Sample, fit_activations, largest
from embed_core.profiling.model_state_memory import HALF
from embed_core.types import Encoded
from embed_core.zero.engine import Trainable, apply_engine_options


@dataclass(frozen=True, slots=True)
class Shape:
    """A chunk of ``texts`` texts padded to ``length`` tokens, which is their average length where chunks are packed."""

    texts: int
    length: float

    @property
    def padded_tokens(self) -> int:
        """Tokens that the hardware sees, padding included."""
        return round(self.texts * self.length)


@dataclass(frozen=True, slots=True)
class LargestChunk:
    """The largest chunk that the cached strategy has room for."""

    tokens: int
    """Tokens of the chunk, padding included; 0 where not even one text has room."""
    text_tokens: int
    """Tokens of the longest text; the chunk is made of such texts."""
    whole_share: bool
    """Whether the chunk is a rank's whole share of a batch, so that there may be room for more."""
    tried: bool
    """Whether the chunk ran on the device, rather than being predicted from smaller chunks."""


WATCHED_TOKENS = 128
"""Tokens of the longest text in a chunk that is traced on a CPU: large models take seconds for it."""
TIMED_CHUNKS, TIMED_SECONDS = 6, 10.0
FUSED = "embed_planned"
"""Name of :func:`_fused` among transformers' attention implementations."""
DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "bf16-weights": torch.bfloat16, "fp16": torch.float16}
"""dtype of the weights for each precision."""


def ready(model: Any, engine: EngineConfig, ranks: Ranks, *, here: bool) -> ChunkProbe:
    """Prepare ``model`` as a run on this machine does; unless ``here``, with the options that a run on a GPU has."""
    module, meant = Trainable(model, None), ranks
    if not here:
        meant = replace(ranks, device="cuda:0")
        if engine.attention != "eager":
            _register_fused()
            engine = engine.model_copy(update={"attention": FUSED})
    apply_engine_options(module, engine.model_copy(update={"compile": False}), meant)
    # CPUs lack half of fp16's operations; bf16 takes as many bytes.
    module.to(ranks.device, torch.bfloat16 if engine.precision in HALF and not here else DTYPES[engine.precision])
    module.train()
    return ChunkProbe(module, ranks.device)


def _register_fused() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(FUSED, _fused)
    AttentionMaskInterface.register(FUSED, sdpa_mask)


def _fused(module: nn.Module, *tensors: Tensor, dropout: float = 0.0, **options: Any) -> tuple[Tensor, None]:
    """PyTorch's attention without dropout: with it a CPU would keep the matrix of weights, which no GPU does."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    result: tuple[Tensor, None] = sdpa_attention_forward(module, *tensors, dropout=0.0, **options)
    return result


def activations(probe: ChunkProbe, encoded: Sequence[Encoded], budget: int) -> ActivationFit:
    """Fit the bytes of chunks by texts and length to a few chunks that run: tiny ones on a CPU, real ones on a GPU."""
    if probe.device == "cpu":
        short, long = _two_lengths(encoded, WATCHED_TOKENS)
        return fit_activations([_sample(probe, one, texts) for texts, one in ((2, short), (3, short), (2, long))])
    short, long = _two_lengths(encoded, budget)
    texts = max(2, largest(lambda n: n * long.length <= budget and probe.fits([long] * n), budget // long.length))
    probe.run([long])  # what libraries allocate at their first call is not the chunk's
    return fit_activations(
        [_sample(probe, one, n) for n, one in ((texts, long), (max(1, texts // 2), long), (texts, short))]
    )


def _sample(probe: ChunkProbe, one: Encoded, texts: int) -> Sample:
    return texts, probe.padded(one.length), probe.trace([one] * texts)


def _two_lengths(encoded: Sequence[Encoded], limit: int) -> tuple[Encoded, Encoded]:
    """The longest text up to ``limit`` tokens (the shortest of all, where there is none) and one about half as long."""
    by_length = sorted(encoded, key=lambda one: one.length)
    long = max((one for one in by_length if one.length <= limit), key=lambda one: one.length, default=by_length[0])
    return min(by_length, key=lambda one: abs(one.length - long.length / 2)), long


def largest_chunk(
    fitted: ActivationFit, longest: Encoded, share: Sequence[Shape], room: float, probe: ChunkProbe, held: float
) -> LargestChunk:
    """Find the largest chunk of texts like ``longest`` whose activations take at most ``room`` bytes.

    On a GPU chunks really run, in ``room`` bytes beside the ``held`` ones of the probe's weights and gradients.
    """
    length = probe.padded(longest.length)
    limit = -(-sum(shape.padded_tokens for shape in share) // length)
    tried = probe.device != "cpu"
    if tried:
        with _only(room + held, probe.device):
            texts = largest(lambda n: probe.fits([longest] * n), limit)
    else:
        texts = largest(lambda n: fitted.trace(n, length).peak <= room, limit)
    return LargestChunk(texts * length, length, texts >= limit, tried)


@contextmanager
def _only(count: float, device: str) -> Iterator[None]:
    """Limit what the allocator gives this process to ``count`` bytes."""
    _, total = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, count / total)), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def tokens_per_second(probe: ChunkProbe, encoded: Sequence[Encoded], budget: int, *, twice: bool) -> float:
    """Time some chunks of a share, forward and backward, in real tokens per second; ``twice`` adds a first forward."""
    cutting = ChunkRule.of(probe.model, budget)
    chunks = cutting.cut(cutting.lengths(encoded))
    # Spread over the lengths, and the longest once beforehand: first calls take longer.
    picked = [chunks[i * (len(chunks) - 1) // max(1, TIMED_CHUNKS - 1)] for i in range(TIMED_CHUNKS)]
    each = [[encoded[i] for i in chunk] for chunk in (picked if len(chunks) > 1 else picked[:1])]
    probe.run(each[-1])
    tokens, seconds = 0, 0.0
    for texts in each:
        seconds += _seconds(lambda texts=texts: probe.run_forward(texts)) if twice else 0.0  # type: ignore[misc]
        seconds += _seconds(lambda texts=texts: probe.run(texts))  # type: ignore[misc]
        tokens += sum(one.length for one in texts)
        if seconds > TIMED_SECONDS:
            break
    return tokens / seconds


def _seconds(function: Callable[[], None]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def counted_flops(probe: ChunkProbe, encoded: Sequence[Encoded]) -> tuple[float, float]:
    """FLOPs per token of a forward and of a backward, as torch counts the matrix products of one chunk."""
    from torch.utils.flop_counter import FlopCounterMode

    tokens = sum(one.length for one in encoded)
    with FlopCounterMode(display=False) as forward:
        probe.run_forward(encoded)
    with FlopCounterMode(display=False) as both:
        probe.run(encoded)
    once = forward.get_total_flops()
    return once / tokens, (both.get_total_flops() - once) / tokens
