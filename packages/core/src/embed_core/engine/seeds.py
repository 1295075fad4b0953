"""Seeds derived from numbers, so that no random state ever has to be saved."""

from __future__ import annotations

import numpy as np


def seed_of(*parts: int) -> int:
    """One 63-bit seed from several non-negative numbers; different numbers give unrelated seeds."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
