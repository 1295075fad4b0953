"""One vector from the token states of a text: the three ways that embedding models use."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Pooling = Literal["cls", "mean", "last_token"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


def pool(states_NLD: Tensor, mask_NL: Tensor, method: Pooling) -> Tensor:
    """[N,L,D] token states → [N,D].

    ``cls`` takes the first real token, ``last_token`` the last one, ``mean`` their average; ``mask_NL`` is 1 on real
    tokens. Padding on either side has no influence. Every text has at least one real token.
    """
    if method == "mean":
        weights_NL1 = mask_NL.unsqueeze(-1).to(states_NLD.dtype)
        # Padded states are finite, so a product with 0 is enough.
        return (states_NLD * weights_NL1).sum(1) / weights_NL1.sum(1)
    rows_N = torch.arange(states_NLD.shape[0], device=states_NLD.device)
    if method == "cls":
        return states_NLD[rows_N, mask_NL.long().argmax(1)]
    last_N = mask_NL.shape[1] - 1 - mask_NL.long().flip(1).argmax(1)
    return states_NLD[rows_N, last_N]


def pool_packed(states_TD: Tensor, offsets_N1: Tensor, method: Pooling) -> Tensor:
    """The same of texts one after another, [T,D] → [N,D]: text n has the rows ``offsets_N1[n]:offsets_N1[n+1]``."""
    if method == "cls":
        return states_TD[offsets_N1[:-1]]
    if method == "last_token":
        return states_TD[offsets_N1[1:] - 1]
    # Half precisions are summed in fp32. Offsets as they are: a check of them would wait for the GPU.
    means_ND = torch.segment_reduce(at_least_float32(states_TD), "mean", offsets=offsets_N1.long(), axis=0, unsafe=True)
    return means_ND.to(states_TD.dtype)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor, half precisions widened: normalising in bf16 leaves vectors 0.4 % off unit length."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
