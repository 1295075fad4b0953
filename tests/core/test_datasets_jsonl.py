"""JSON objects by index, and one line with file and line number for all that can be wrong with a file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embed_core.datasets.sources.jsonl import JsonlFile
from embed_core.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@given(st.lists(st.dictionaries(TEXT, TEXT | st.none() | st.lists(st.integers())), min_size=1), st.booleans())
def test_lines_come_back_as_written(tmp_path_factory, rows, ascii_only):
    path = tmp_path_factory.mktemp("jsonl") / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows), "utf-8", newline="\n")
    assert list(JsonlFile(path)) == rows


@given(
    st.lists(st.dictionaries(TEXT, TEXT | st.lists(st.integers())), min_size=1),
    st.sampled_from([None, 1, 3]),
    st.booleans(),
    st.booleans(),
)
def test_an_array_comes_back_as_written(tmp_path_factory, rows, indent, ascii_only, bom):
    path = tmp_path_factory.mktemp("json") / "rows.json"
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    path.write_bytes(text.encode("utf-8-sig" if bom else "utf-8"))
    assert list(JsonlFile(path)) == rows


def test_an_array_knows_its_lines(tmp_path):
    file = JsonlFile(write(tmp_path / "rows.json", '[\n {"a": "é"},\n\n {"a":\n 2}, {"a": 3}\n]\n'.encode()))
    assert [row["a"] for row in file] == ["é", 2, 3]
    assert [file.place(n).rsplit(":")[-1] for n in range(3)] == ["2", "4", "5"]


def test_blank_lines_bom_crlf_and_a_missing_last_newline_are_no_rows(tmp_path):
    file = JsonlFile(write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}'))
    assert [row["a"] for row in file] == [1, 2]
    assert [file.place(n) for n in range(2)] == [f"{tmp_path}/a.jsonl:1", f"{tmp_path}/a.jsonl:4"]


def test_json_lines_in_a_json_file_are_read_as_lines(tmp_path):
    assert len(JsonlFile(write(tmp_path / "a.json", b'{"a": 1}\n{"a": 2}\n'))) == 2


def test_the_digest_is_of_the_content(tmp_path):
    one = JsonlFile(write(tmp_path / "a.jsonl", b'{"a": 1}\n')).digest()
    assert JsonlFile(write(tmp_path / "b.jsonl", b'{"a": 1}\n')).digest() == one
    assert JsonlFile(write(tmp_path / "c.jsonl", b'{"a": 2}\n')).digest() != one


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": }\n', ":2: malformed JSON: Expecting value at column 7"),
        (b'{"a": 1}\n\n{"a": 1} x\n', ":3: malformed JSON: Extra data at column 10"),
        (b'{"a": 1}\n[1]\n', ":2: expected a JSON object like {...}, found a list"),
        (b'{"a": 1}\n"text"\n', ":2: expected a JSON object like {...}, found the string 'text'"),
        (b'{"a": 1}\nnull\n', ":2: expected a JSON object like {...}, found null"),
        (b'{"a": 1}\n{"a": "\xe9"}\n', ":2: byte 0xe9 at position 8 is not UTF-8: save the file as UTF-8"),
        ('{"a": 1}\n'.encode("utf-16"), ":1: byte 0xff at position 1 is not UTF-8: save the file as UTF-8"),
        (b'{"a": 1}\n{"a": "\\ud83d"}\n', r":2: \ud83d is half of a surrogate pair and no character: remove it"),
        (b'{"a":' + b"[" * 100000 + b"\n", ":1: malformed JSON: "),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, message):
    file = JsonlFile(write(tmp_path / "bad.jsonl", content))
    with pytest.raises(DataError) as caught:
        list(file)
    assert str(caught.value).startswith(f"{tmp_path}/bad.jsonl{message}")
    assert "\n" not in str(caught.value)


def test_a_whole_surrogate_pair_is_a_character(tmp_path):
    assert JsonlFile(write(tmp_path / "a.jsonl", b'{"a": "\\ud83d\\ude00"}'))[0] == {"a": "😀"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": the file is empty: it must hold one JSON object per line"),
        (b"\n \n", ": the file is empty: it must hold one JSON object per line"),
        (b"[]", ": the file is empty: it must hold one JSON object per line"),
        (b'[{"a": 1},\n {"a": }]', ":2: malformed JSON: Expecting value at column 8"),
        (b'[{"a": 1}\n {"a": 2}]', ":2: malformed JSON: expected ',' or ']' after an element of the array"),
        (b'[{"a": 1},\n {"a": "\xe9"}]', ":2: byte 0xe9 is not UTF-8: save the file as UTF-8"),
    ],
)
def test_a_bad_file_is_named(tmp_path, content, message):
    with pytest.raises(DataError) as caught:
        JsonlFile(write(tmp_path / "bad.json", content))
    assert str(caught.value) == f"{tmp_path}/bad.json{message}"


def test_a_missing_file_names_its_sibling(tmp_path):
    write(tmp_path / "train.jsonl", b"{}")
    with pytest.raises(DataError) as caught:
        JsonlFile(tmp_path / "trian.jsonl")
    assert str(caught.value) == f"{tmp_path}/trian.jsonl: no such file or folder: did you mean 'train.jsonl'?"


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError) as caught:
        JsonlFile(tmp_path / "no" / "train.jsonl")
    assert (
        str(caught.value) == f"{tmp_path}/no/train.jsonl: no such file or folder: {tmp_path}/no does not exist either"
    )


def test_many_siblings_are_not_all_listed(tmp_path):
    for n in range(50):
        write(tmp_path / f"part{n:02}.jsonl", b"{}")
    with pytest.raises(DataError, match=r"has part00.jsonl, .*, part09.jsonl, … \(50 in all\)$"):
        JsonlFile(tmp_path / "zzz")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(DataError, match=r": cannot be read: Is a directory$"):
        JsonlFile(tmp_path)
