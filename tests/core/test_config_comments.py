"""JSON configs as people write them: comments and tabs, and the places of keys all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from embed_core.config import document
from embed_core.config.document import without_comments
from embed_core.errors import ConfigError

TEXT = """{
  // the whole line
  "a": "http://x//y", // "b": 1,
  "c": {"d": "say \\"no\\" // here", /* "e": 1,
     over lines */ "f": 5e-5},
\t"g": [1, 2], // the end
}
"""


def test_comments_go_and_strings_stay(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(TEXT, encoding="utf-8")
    found = document.read(path)
    assert found.data == {"a": "http://x//y", "c": {"d": 'say "no" // here', "f": 5e-5}, "g": [1, 2]}
    assert found.place(("c", "f")) == f"{path}:5"
    assert found.place(("g",)) == f"{path}:6"


def test_lines_and_columns_stay() -> None:
    stripped = without_comments(TEXT)
    assert [len(line) for line in stripped.split("\n")] == [len(line) for line in TEXT.split("\n")]
    assert "whole" not in stripped
    assert "over lines" not in stripped


def test_faults_behind_a_comment_are_placed(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{\n  // one\n  "a": 1,\n  "a": 2\n}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config.json:4: the key a is written twice"):
        document.read(path)


def test_yaml_keeps_its_slashes(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("a: //server/share\nb: x # y\n", encoding="utf-8")
    assert document.read(path).data == {"a": "//server/share", "b": "x"}
