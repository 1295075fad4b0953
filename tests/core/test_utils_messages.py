"""Texts of errors in one line."""

from __future__ import annotations

from embed_core.utils.messages import one_line


def test_a_text_of_many_lines_becomes_one_and_is_cut_where_asked() -> None:
    error = ValueError("  first\n\tsecond  third\n")
    assert one_line(error) == "first second third"
    assert one_line(error, 12) == "first second"
    assert one_line(ValueError()) == ""
