"""Texts of other libraries' errors, made to fit a one-line message."""

from __future__ import annotations


def one_line(error: object, limit: int | None = None) -> str:
    """The text of ``error`` with every run of white space as one space, cut to ``limit`` characters where given."""
    return " ".join(str(error).split())[:limit]
