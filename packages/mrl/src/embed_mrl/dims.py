"""Which dimensions: those asked for, or by halving; always with the full one."""

from __future__ import annotations

from collections.abc import Sequence

from embed_core.errors import ConfigError

SMALLEST = 16
STEPS = 4
"""Halvings at most."""


def halvings(width: int) -> tuple[int, ...]:
    """``width`` and its halves, at most four and none below 16: 768 → 768, 384, 192, 96, 48 (Kusupati et al. 2022)."""
    halves = [width >> step for step in range(1, STEPS + 1)]
    return (width, *(half for half in halves if half >= SMALLEST))


def resolved(dims: Sequence[int] | None, width: int, key: str) -> tuple[int, ...]:
    """``dims`` and the full ``width``, the largest first; None = by halving. ``key`` is named in the message.

    Raises ConfigError for a dimension that vectors of this width do not have.
    """
    if dims is None:
        return halvings(width)
    too_large = sorted(dim for dim in dims if dim > width)
    if too_large:
        fitting = [dim for dim in dims if dim <= width]
        raise ConfigError(
            f"{key}: {too_large[-1]} is more than the {width} dimensions of the model's vectors: "
            f"use {fitting or list(halvings(width))}"
        )
    return tuple(sorted({*dims, width}, reverse=True))


def checked(dims: tuple[int, ...] | None, name: str = "dims") -> tuple[int, ...] | None:
    """``dims`` if they are different positive numbers. Raises ValueError, for the validators of the configs."""
    if dims is None:
        return None
    if not dims or len(set(dims)) < len(dims) or min(dims) <= 0:
        raise ValueError(
            f"{name} {list(dims)}: different positive dimensions are needed, for instance [128, 64, 32]; "
            "without the key they are made by halving"
        )
    return dims
