"""Computes the bytes that a rank holds between and in steps: weights, gradients, master weights, moments, buffers.

The layout is DeepSpeed 0.19's (``runtime/zero/stage_1_and_2.py``, ``stage3.py``), checked in the tests against the
tensors of real engines. W is the number of ranks:

    ====================  ============  ===========  ===========  ===========
    bytes per parameter   stage 0       stage 1      stage 2      stage 3
    ====================  ============  ===========  ===========  ===========
    weights               4             w            w            w / W
    gradients             4             w            w / W        w / W
    master weights        the weights   4 / W        4 / W        4 / W
    Adam's two moments    8             8 / W        8 / W        8 / W
    ====================  ============  ===========  ===========  ===========

with w = 2 where the weights themselves are in half precision (stage 1 at least), and else 4: fp32, where stages 1 to 3
keep master weights as well, and bf16 by autocast. Frozen parameters have weights only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from embed_core.zero.engine import BUCKET_ELEMENTS

HALF = ("bf16-weights", "fp16")
"""Precisions that keep weights and gradients in 2 bytes; `bf16` only converts them for matrix products."""
LIVE_ELEMENTS = 1_000_000_000
"""DeepSpeed's default of ``stage3_max_live_parameters``."""


@dataclass(frozen=True, slots=True)
class StateMemory:
    """Bytes that one rank holds."""

    weights: float
    gradients: float
    master: float
    """fp32 copies of the weights that the optimizer updates."""
    moments: float
    """Adam's two moments, in fp32."""
    buckets: float
    """Buffers in which gradients are reduced during the backward; under ZeRO-3 also the layers that are gathered."""
    optimizer_step: float
    """fp32 gradients of the optimizer's step; by then the activations are gone."""

    @property
    def held(self) -> float:
        """Bytes held all the time."""
        return self.weights + self.gradients + self.master + self.moments


def state_memory(
    total: int, trainable: int, precision: str, ranks: int, zero: Mapping[str, Any], *, on_gpu: bool
) -> StateMemory:
    """Compute bytes for ``total`` parameters; ``zero`` is the ``zero_optimization`` section of DeepSpeed's config."""
    size = 2 if precision in HALF else 4
    stage = int(zero["stage"])
    own = trainable / ranks if stage else trainable
    return StateMemory(
        weights=size * total / (ranks if stage == 3 else 1),
        gradients=size * trainable / (ranks if stage >= 2 else 1),
        master=4.0 * own if stage else 0.0,
        moments=8.0 * own,
        buckets=float(size * (_reduced(trainable, zero, on_gpu=on_gpu) + _gathered(total, ranks, zero))),
        optimizer_step=4.0 * own if size == 2 else 0.0,
    )


def _reduced(trainable: int, zero: Mapping[str, Any], *, on_gpu: bool) -> int:
    """Elements of the buffers that gradients are reduced in; two where communication overlaps the backward."""
    if zero["stage"] == 0:
        return 0
    elements = int(zero.get("reduce_bucket_size", BUCKET_ELEMENTS))
    count = 2 if zero.get("overlap_comm") and zero["stage"] < 3 else 1
    # A GPU reserves the whole buffer; in main memory only the pages that are written to take space.
    return count * elements if on_gpu else min(count * elements, trainable)


def _gathered(total: int, ranks: int, zero: Mapping[str, Any]) -> int:
    """Elements of other ranks' weights that ZeRO-3 holds at a time."""
    if zero["stage"] < 3 or ranks == 1:
        return 0
    return min(total, int(zero.get("stage3_max_live_parameters", LIVE_ELEMENTS)))
