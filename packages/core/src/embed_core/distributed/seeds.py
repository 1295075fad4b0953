"""Seeds derived from numbers, so that no random state ever has to be saved."""

from __future__ import annotations

import numpy as np


def seed_of(*parts: int) -> int:
    """One 63-bit seed from several non-negative numbers; different numbers give unrelated seeds."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_generators(seed: int, on_cuda: bool) -> None:
    """Seed the generators that a forward draws from.

    ``torch.manual_seed`` also seeds accelerators that are not there, with a formatted stack trace for each: half a
    millisecond per chunk.
    """
    import torch

    torch.default_generator.manual_seed(seed)
    if on_cuda:
        torch.cuda.manual_seed(seed)
