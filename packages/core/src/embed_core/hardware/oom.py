"""Tells which errors mean that memory did not suffice, on a device or on the host."""

from __future__ import annotations

import re

import torch

_MESSAGES = re.compile(
    r"can't allocate memory|not enough memory|out of memory|bad_alloc|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED", re.I
)


class OutOfMemoryError(Exception):
    """All ranks stand at the same point, none of them in a collective, and one or more had too little memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that an allocation failed, on a device or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and _MESSAGES.search(str(error)) is not None


def first_line(error: BaseException) -> str:
    """The first line of ``error``'s message, cut to 160 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
