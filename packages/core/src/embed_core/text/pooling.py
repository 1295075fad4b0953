"""Pools the token states of a text into one vector.

A new method is added here: its name, its name in the files of sentence-transformers, and its two implementations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:  # configs name the methods, and do not load torch
    from torch import Tensor

Pooling = Literal["cls", "mean", "last_token"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
SENTENCE_TRANSFORMERS_NAMES: Mapping[Pooling, str] = {
    "cls": "cls_token",
    "mean": "mean_tokens",
    "last_token": "lasttoken",
}
"""The names after ``pooling_mode_`` in the config of sentence-transformers' Pooling module."""


def pool(states_NLD: Tensor, mask_NL: Tensor, method: Pooling) -> Tensor:
    """[N,L,D] token states → [N,D].

    ``cls`` takes the first real token, ``last_token`` the last one, ``mean`` their average; ``mask_NL`` is 1 on real
    tokens. Padding on either side has no influence. Every text has at least one real token.
    """
    if method == "mean":
        weights_NL1 = mask_NL.unsqueeze(-1).to(states_NLD.dtype)
        # Padded states are finite, so a product with 0 is enough.
        return (states_NLD * weights_NL1).sum(1) / weights_NL1.sum(1)
    import torch

    rows_N = torch.arange(states_NLD.shape[0], device=states_NLD.device)
    if method == "cls":
        return states_NLD[rows_N, mask_NL.long().argmax(1)]
    last_N = mask_NL.shape[1] - 1 - mask_NL.long().flip(1).argmax(1)
    return states_NLD[rows_N, last_N]


def pool_packed(states_TD: Tensor, offsets_N1: Tensor, method: Pooling) -> Tensor:
    """Pool packed texts, [T,D] → [N,D]: text n has the rows ``offsets_N1[n]:offsets_N1[n+1]``."""
    if method == "cls":
        return states_TD[offsets_N1[:-1]]
    if method == "last_token":
        return states_TD[offsets_N1[1:] - 1]
    import torch

    # Half precisions are summed in fp32. The offsets are not checked, since a check would wait for the GPU.
    means_ND = torch.segment_reduce(at_least_float32(states_TD), "mean", offsets=offsets_N1.long(), axis=0, unsafe=True)
    return means_ND.to(states_TD.dtype)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Widen half precisions to fp32: normalising in bf16 leaves vectors 0.4 % off unit length."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor
