"""Vectors in fewer bits, as sentence-transformers' ``quantize_embeddings`` makes them and its search undoes them.

Shape suffixes are those of :mod:`embed_core.types`; d counts the values of a cut vector.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

LEVELS = 255
"""Steps of an int8 value between the smallest and the largest."""


class Ranges(NamedTuple):
    """The smallest and the largest value of each dimension among the vectors that were calibrated on."""

    low_d: Tensor
    high_d: Tensor


def int8_values(vectors_Nd: Tensor, ranges: Ranges) -> Tensor:
    """The values that the int8 codes of ``vectors_Nd`` stand for, ``[N, d]``; beyond the ranges they are clipped."""
    step_d = (ranges.high_d - ranges.low_d) / LEVELS
    step_d = step_d.where(step_d != 0, 1)
    code_Nd = ((vectors_Nd - ranges.low_d) / step_d).floor().clamp(0, LEVELS)
    return code_Nd * step_d + ranges.low_d


def bits(vectors_Nd: Tensor) -> Tensor:
    """1 where a value is above 0, else 0, in the vectors' own dtype."""
    return (vectors_Nd > 0).to(vectors_Nd.dtype)


def hamming(bits_Nd: Tensor, bits_Md: Tensor) -> Tensor:
    """``[N, M]`` numbers of positions that differ, exact in fp32 up to 2²⁴ of them."""
    return bits_Nd.sum(-1, keepdim=True) + bits_Md.sum(-1) - 2 * (bits_Nd @ bits_Md.T)
