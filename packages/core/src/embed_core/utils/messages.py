"""Texts of other libraries' errors, made to fit a one-line message."""

from __future__ import annotations


def one_line(error: object, limit: int | None = None) -> str:
    """The text of ``error`` with every run of white space as one space, cut to ``limit`` characters where given."""
    return " ".join(str(error).split())[:limit]


def kind_and_text(error: BaseException, limit: int | None = None) -> str:
    """The class of ``error`` and its :func:`one_line`; the class alone if there is no text."""
    text = one_line(error, limit)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
