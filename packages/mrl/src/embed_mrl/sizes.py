"""Bytes of a stored vector. Imports no torch, because the report of a run reads it."""

from __future__ import annotations


def bytes_per_vector(dim: int, precision: str) -> int:
    """Bytes of one vector of ``dim`` values; binary ones take whole bytes."""
    return {"fp32": 4 * dim, "int8": dim, "binary": -(-dim // 8)}[precision]
