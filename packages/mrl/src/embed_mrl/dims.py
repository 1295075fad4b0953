"""Chooses the dimensions: those asked for, or by halving; always with the full one."""

from __future__ import annotations

from collections.abc import Sequence

from embed_core.errors import ConfigError

SMALLEST = 16
STEPS = 4
"""The most halvings."""


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


def checked_weights(
    weights: tuple[float, ...] | None, dims: tuple[int, ...] | None, prefix: str = ""
) -> tuple[float, ...] | None:
    """``weights`` if there is one above 0 for each of ``dims``; ``prefix`` is that of both keys. Raises ValueError."""
    if weights is None:
        return None
    if len(weights) != len(dims or ()):
        raise ValueError(
            f"{prefix}weights: {len(weights)} of them for {len(dims or ())} {prefix}dims: give one for each of "
            f"`{prefix}dims`"
        )
    if min(weights) <= 0:
        raise ValueError(
            f"{prefix}weights {list(weights)}: all must be above 0; leave a dimension out of `{prefix}dims`"
        )
    return weights


def checked_choice(dim: int | None, dims: tuple[int, ...] | None, prefix: str = "") -> int | None:
    """``truncate_dim`` if it is one of ``dims``, where these are given. Raises ValueError."""
    if dim is not None and dims is not None and dim not in dims:
        raise ValueError(f"truncate_dim {dim} is none of {prefix}dims {list(dims)}: choose one of them")
    return dim


def checked_count(count: int) -> int:
    """``n_dims_per_step`` if it trains something. Raises ValueError."""
    if count == 0:
        raise ValueError("n_dims_per_step 0 trains nothing: use -1 for all dimensions, or 1 and more")
    return count
