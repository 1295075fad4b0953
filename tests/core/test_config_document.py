"""YAML and `--set` as plain data whose keys know their places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from embed_core.config.document import lay_over, overrides, parse, read
from embed_core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E3", 1000.0),
        (".5e1", 5.0),
        ("-2e-3", -2e-3),
        ("3", 3),
        ("0.25", 0.25),
        ("true", True),
        ("null", None),
        ("", None),
        ("[1, 2e-3, a]", [1, 2e-3, "a"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        ("'1e-5'", "1e-5"),
        ('"null"', "null"),
        ("a=b", "a=b"),
        ("2024-01-02", "2024-01-02"),
        ("[unclosed", "[unclosed"),
        ("!!python/name:os.system", "!!python/name:os.system"),
        ("BAAI/bge-m3", "BAAI/bge-m3"),
        ("v1e5x", "v1e5x"),
    ],
)
def test_values_of_set(text: str, value: Any) -> None:
    found = overrides([f"a.b={text}"]).data["a"]["b"]
    assert found == value
    assert type(found) is type(value)


def test_later_overrides_win_and_know_their_place() -> None:
    document = overrides(["a.b=1", "a.c=2", "a.b=3", "list.1.x=y"])
    assert document.data == {"a": {"b": 3, "c": 2}, "list": {1: {"x": "y"}}}
    assert document.place(("a", "b")) == "--set a.b"
    assert document.place(("list", 1, "x", "deeper")) == "--set list.1.x"
    assert document.place(("nowhere",)) == ""
    assert overrides(["a=1", "a.b=2"]).data == {"a": {"b": 2}}


@pytest.mark.parametrize("pair", ["a", "=1", " =1", ""])
def test_an_override_needs_a_key_and_a_value(pair: str) -> None:
    with pytest.raises(ConfigError, match=r"write it as key=value, for instance --set train\.max_steps=100"):
        overrides([pair])


def test_places_are_lines_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("# comment\na:\n  b: 1e-5\n  list:\n    - x: 1\n    - 2\ndate: 2024-01-02\n")
    document = read(path)
    assert document.data == {"a": {"b": 1e-5, "list": [{"x": 1}, 2]}, "date": "2024-01-02"}
    assert document.place(("a", "b")) == f"{path}:3"
    assert document.place(("a", "list", 0, "x")) == f"{path}:5"
    assert document.place(("a", "list", 1)) == f"{path}:6"
    assert document.place(("a", "list", 0, "unwritten")) == f"{path}:5"
    assert document.place(("a", "unwritten")) == f"{path}:2"


def test_json_is_read_too_and_an_empty_file_is_empty() -> None:
    assert parse('{"a": [1, null, true], "b": {"c": "d"}}', "x.json").data == {"a": [1, None, True], "b": {"c": "d"}}
    assert parse("# nothing\n", "x").data == {}


def test_anchors_and_merges() -> None:
    document = parse("base: &b {x: 1, y: 2}\nmine:\n  <<: *b\n  z: 3\n", "f")
    assert document.data["mine"] == {"x": 1, "y": 2, "z": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b: c", "f:1: not valid YAML: "),
        ("a: 1\n\tb: 2", "f:2: not valid YAML: "),
        ("a: !!python/object:os.system x", "f:1: could not determine a constructor"),
        ("a:\n  b: 1\n  b: 2", "f:3: the key a.b is written twice"),
        ("a: {1: x}", "f:1: the key 1 is not text"),
    ],
)
def test_faults_name_file_and_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(text, "f")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match=r"bytes\.yaml' cannot be read: "):
        read(tmp_path / "bytes.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read: .*directory"):
        read(tmp_path)
    with pytest.raises(ConfigError, match=r"does not exist: did you mean 'bytes\.yaml'"):
        read(tmp_path / "byte.yaml")
    with pytest.raises(ConfigError, match="does not exist: there is no config in "):
        read(tmp_path / "empty" / "a.yaml")


@pytest.mark.parametrize(
    ("base", "top", "wanted"),
    [
        ({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}}, {"a": 1, "b": {"c": 2, "d": 3}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"x": 1}}, {"a": None}, {"a": None}),
        ({"m": {"kind": "a", "x": 1}}, {"m": {"kind": "b"}}, {"m": {"kind": "b"}}),
        ({"m": {"kind": "a", "x": 1}}, {"m": {"kind": "a", "y": 2}}, {"m": {"kind": "a", "x": 1, "y": 2}}),
        ({"m": {"kind": "a", "x": 1}}, {"m": {"x": 2}}, {"m": {"kind": "a", "x": 2}}),
        ({"l": [{"x": 1}, {"y": 2}]}, {"l": {1: {"y": 3}}}, {"l": [{"x": 1}, {"y": 3}]}),
        ({"l": ({"x": 1},)}, {"l": {0: {"z": 3}}}, {"l": [{"x": 1, "z": 3}]}),
    ],
)
def test_laying_over(base: Any, top: Any, wanted: Any) -> None:
    before = repr(base)
    assert lay_over(base, top) == wanted
    assert repr(base) == before, "the lower layer is left as it was"


def test_an_element_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"a\.evaluation\.2: there is no element 2 in a list of 1: count from 0"):
        lay_over({"a": {"evaluation": [{}]}}, {"a": {"evaluation": {2: {"x": 1}}}})
