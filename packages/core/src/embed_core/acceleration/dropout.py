"""Dropout for CPUs, at a fifth of the cost of PyTorch's.

PyTorch draws one number of a Mersenne Twister for every value, which takes longer than the softmax or the product that
the value belongs to. Here 16 bits of a small fast generator (SFC64, Doty-Humphrey's) decide about each value, seeded
by one draw of PyTorch's own: whoever restores PyTorch's random state draws the same masks again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LEVELS = 1 << 16
"""A rate is a multiple of 1 / LEVELS."""


def keep_mask(like: Tensor, rate: float) -> tuple[Tensor, float]:
    """Draw a mask of shape and dtype of ``like``, 1 where the value stays and 0 in a share ``rate``. Also returns the
    factor that keeps the expected value (0 where nothing stays)."""
    dropped = min(round(rate * LEVELS), LEVELS)
    scale = LEVELS / (LEVELS - dropped) if dropped < LEVELS else 0.0
    mask = torch.empty_like(like, memory_format=torch.contiguous_format)
    if torch.compiler.is_compiling():
        return mask.bernoulli_(1 - dropped / LEVELS), scale
    seed = int(torch.empty((), dtype=torch.int64).random_())
    words = np.random.Generator(np.random.SFC64(seed)).integers(
        -(1 << 63), (1 << 63) - 1, endpoint=True, dtype=np.int64, size=-(-like.numel() // 4)
    )
    bits = torch.from_numpy(words).view(torch.int16)[: like.numel()].view(like.shape)
    if dropped == LEVELS:
        return mask.zero_(), scale
    # The least 16-bit integer is -LEVELS / 2. Compared straight into the mask: a conversion would cost as much again.
    return torch.ge(bits, dropped - LEVELS // 2, out=mask), scale


class FastDropout(nn.Dropout):
    """``nn.Dropout`` with masks from :func:`keep_mask`."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply dropout to a floating-point tensor of any shape."""
        if not self.training or self.p == 0 or not input.is_floating_point():
            return super().forward(input)
        result: Tensor = _Dropped.apply(input, self.p)
        return result


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rate: float) -> Tensor:
        mask, ctx.scale = keep_mask(values, rate)
        ctx.save_for_backward(mask)
        return values.mul(mask).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return gradients[0].mul(mask).mul_(ctx.scale), None


def set_dropout(model: nn.Module) -> None:
    """Put :class:`FastDropout` in the place of every ``nn.Dropout`` of ``model``."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:  # not a subclass: that does something else
                faster = FastDropout(child.p)  # in place or not, the values are the same
                setattr(parent, name, faster.train(child.training))
