"""Allocates rows to the sources of a mix: exact counts, a function of the seed and the names alone."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def shares(ratios: Sequence[float], temperature: float = 1.0) -> list[Fraction]:
    """``ratios`` ** (1 / temperature), adding up to 1 exactly.

    Temperature 1 leaves the ratios as they are, a larger one draws them together (multilingual BERT's and XLM-R's
    exponential smoothing, α = 1 / temperature; Conneau et al. 2020, arXiv 1911.02116). A ratio is read as it is
    written: 0.7 is seven tenths, not the binary number nearest to them.
    """
    if temperature == 1:
        exact = [Fraction(repr(float(ratio))) for ratio in ratios]
    else:
        largest = max(ratios)  # relative ones: powers of counts of rows would leave the range of floats
        exact = [Fraction((ratio / largest) ** (1 / temperature)) if ratio else Fraction(0) for ratio in ratios]
    whole = sum(exact)
    assert whole > 0, "some ratio is above 0"
    return [part / whole for part in exact]


def allocate(total: int, parts: Sequence[Fraction]) -> list[int]:
    """``total`` split by ``parts`` (which add up to 1) into whole numbers that add up to it, by largest remainders."""
    quotas = [total * part for part in parts]
    counts = [int(quota) for quota in quotas]
    order = sorted(range(len(parts)), key=lambda at: (counts[at] - quotas[at], at))
    for at in order[: total - sum(counts)]:
        counts[at] += 1
    return counts


def draw(available: int, wanted: int, *, duplicates: bool, seed: int, name: str) -> NDArray[np.signedinteger]:
    """``wanted`` of ``available`` rows, as sorted numbers of the narrowest type.

    Enough of them: ``wanted`` different ones at random. Too few, with ``duplicates``: all of them as often as they go
    into ``wanted``, and the remainder at random; without: all of them once. What one source draws depends on no other.
    """
    import numpy as np

    from embed_core.samplers.epoch import row_type

    kind = row_type(available)
    stream = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
    rng = np.random.default_rng([seed, stream])
    if not available:
        return np.zeros(0, dtype=kind)
    rows = np.arange(available, dtype=kind)
    if not duplicates and wanted >= available:
        return rows
    whole, rest = divmod(wanted, available)
    times = np.full(available, whole, dtype=np.int32)
    times[rng.permutation(rows)[:rest]] += 1
    return np.repeat(rows, times)
