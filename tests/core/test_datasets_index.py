"""The index of a large file: found again, never trusted when damaged or old, the same rows as reading line by line."""

from __future__ import annotations

import json
import os
import time
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embed_core.datasets.index import columns, offsets, store
from embed_core.datasets.index.columns import Column, ColumnWriter, read_at
from embed_core.datasets.sources.jsonl import JsonlFile
from embed_core.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def every_file_is_large(monkeypatch):
    monkeypatch.setattr(offsets, "KEPT_FROM", 0)


def lines(path: Path, rows: list[str]) -> Path:
    path.write_bytes("\n".join(rows).encode())
    return path


def tables(cache: Path) -> list[Path]:
    return sorted(p for p in (cache / "rows").iterdir())


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(['{"a": "é"}', '{"a": 1}', "", " ", "\t\r", '{"a": "' + "x" * 50 + '"}']), max_size=30),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
)
def test_rows_and_lines_whatever_the_size_of_a_block(tmp_path_factory, rows, block, last_break, bom):
    path = tmp_path_factory.mktemp("blocks") / "a.jsonl"
    text = "\n".join(rows) + ("\n" if last_break else "")
    path.write_bytes(text.encode("utf-8-sig" if bom else "utf-8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offsets, "BLOCK", block)
        patch.setattr("embed_core.datasets.sources.jsonl.READ", block)
        wanted = [(number, json.loads(row)) for number, row in enumerate(rows, start=1) if row.strip()]
        if not wanted:
            with pytest.raises(DataError, match=r"a.jsonl: the file is empty"):
                JsonlFile(path)
            return
        file = JsonlFile(path)
        assert list(file) == [row for _, row in wanted]
        assert [file[n] for n in range(len(file))] == [row for _, row in wanted]
        assert file[-1] == wanted[-1][1]
        assert [int(file.place(n).rpartition(":")[2]) for n in range(len(file))] == [number for number, _ in wanted]
        size = path.stat().st_size
        assert file.digest() == blake2b(str(size).encode() + path.read_bytes(), digest_size=16).hexdigest()
        with pytest.raises(IndexError):
            file[len(wanted)]


@pytest.mark.usefixtures("every_file_is_large")
def test_an_index_is_made_once(tmp_path, monkeypatch):
    path, cache = lines(tmp_path / "a.jsonl", ['{"a": 1}', "", '{"a": 2}']), tmp_path / "cache"
    first = JsonlFile(path, cache)
    monkeypatch.setattr(offsets, "_fill", lambda *_: pytest.fail("indexed again"))
    again = JsonlFile(path, cache)
    assert list(again) == list(first) == [{"a": 1}, {"a": 2}]
    assert again.place(1) == f"{path}:3"
    assert again.digest() == first.digest()
    assert len(tables(cache)) == 1


@pytest.mark.usefixtures("every_file_is_large")
@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text('{"a": 7}\n{"a": 8}'),  # as long as before
        lambda path: path.replace(path.with_suffix(".old")) and lines(path, ['{"a": 7}', '{"a": 8}']),
    ],
)
def test_a_changed_file_is_indexed_anew(tmp_path, change):
    path, cache = lines(tmp_path / "a.jsonl", ['{"a": 1}', '{"a": 2}']), tmp_path / "cache"
    stamp = JsonlFile(path, cache).digest(), path.stat()
    time.sleep(0.02)  # the clock of a file system ticks a few hundred times a second
    change(path)
    os.utime(path, ns=(stamp[1].st_atime_ns, stamp[1].st_mtime_ns))  # even where somebody sets the old time
    now = JsonlFile(path, cache)
    assert list(now) == [{"a": 7}, {"a": 8}]
    assert now.digest() != stamp[0]


@pytest.mark.usefixtures("every_file_is_large")
@pytest.mark.parametrize("name", ["starts", store.MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_index_is_made_anew(tmp_path, name, damage):
    path, cache = lines(tmp_path / "a.jsonl", ['{"a": 1}', '{"a": 2}', '{"a": 3}']), tmp_path / "cache"
    JsonlFile(path, cache)
    victim = tables(cache)[0] / name
    content = victim.read_bytes()
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(content[:-5] if damage == "cut" else bytes([content[0] ^ 255]) + content[1:])
    assert [row["a"] for row in JsonlFile(path, cache)] == [1, 2, 3]
    assert victim.read_bytes() == content, "what was damaged is replaced"


@pytest.mark.usefixtures("every_file_is_large")
def test_an_index_that_is_deleted_meanwhile_is_still_read(tmp_path):
    path, cache = lines(tmp_path / "a.jsonl", ['{"a": 1}', '{"a": 2}']), tmp_path / "cache"
    file = JsonlFile(path, cache)
    for each in tables(cache)[0].iterdir():
        each.unlink()
    assert list(file) == [{"a": 1}, {"a": 2}]


@pytest.mark.usefixtures("every_file_is_large")
def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    path, cache = lines(tmp_path / "a.jsonl", ['{"a": 1}']), tmp_path / "cache"
    cache.write_text("a file is in the way")
    with pytest.raises(DataError) as caught:
        JsonlFile(path, cache)
    assert str(caught.value) == (
        f"{cache}/rows: the index of the data cannot be cached: Not a directory: "
        "set EMBED_CACHE to a writable folder with room"
    )


@pytest.mark.usefixtures("every_file_is_large")
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(columns.os, "write", full)
    path, cache = lines(tmp_path / "a.jsonl", ['{"a": 1}']), tmp_path / "cache"
    with pytest.raises(
        DataError, match=r"starts: the index of the data cannot be cached: No space left on device: set"
    ):
        JsonlFile(path, cache)
    assert tables(cache) == []


@pytest.mark.usefixtures("every_file_is_large")
def test_a_bad_array_leaves_nothing(tmp_path):
    path, cache = tmp_path / "a.json", tmp_path / "cache"
    path.write_text('[{"a": 1},\n {"a": }]')
    with pytest.raises(DataError, match=r"a.json:2: malformed JSON: Expecting value at column 8$"):
        JsonlFile(path, cache)
    assert tables(cache) == []


@pytest.mark.usefixtures("every_file_is_large")
def test_an_array_is_kept_too(tmp_path):
    path, cache = tmp_path / "a.json", tmp_path / "cache"
    path.write_text('[{"a": 1}, {"a":\n2},\n\n{"a": 3}]')
    for _ in range(2):
        file = JsonlFile(path, cache)
        assert list(file) == [{"a": 1}, {"a": 2}, {"a": 3}]
        assert [file.place(n)[-1] for n in range(3)] == ["1", "1", "4"]


@pytest.mark.usefixtures("every_file_is_large")
def test_what_no_run_has_used_for_a_month_is_removed(tmp_path):
    cache = tmp_path / "cache"
    JsonlFile(lines(tmp_path / "old.jsonl", ['{"a": 1}']), cache)
    (old,) = tables(cache)
    JsonlFile(lines(tmp_path / "used.jsonl", ['{"a": 2}']), cache)
    (used,) = set(tables(cache)) - {old}
    long_ago = time.time() - store.UNUSED_SECONDS - 60
    for folder in (old, used):
        os.utime(folder / store.MANIFEST, (long_ago, long_ago))
    JsonlFile(tmp_path / "used.jsonl", cache)
    JsonlFile(lines(tmp_path / "new.jsonl", ['{"a": 3}']), cache)
    assert old not in tables(cache)
    assert used in tables(cache)
    assert len(tables(cache)) == 2


def test_small_files_leave_the_cache_alone(tmp_path):
    JsonlFile(lines(tmp_path / "a.jsonl", ['{"a": 1}']), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9), max_size=9), st.booleans(), st.integers(1, 7))
def test_a_column_gives_back_what_was_written(tmp_path_factory, parts, on_disk, size):
    writer = ColumnWriter("int64", tmp_path_factory.mktemp("column") / "c" if on_disk else None)
    for part in parts:
        writer.extend(np.asarray(part, dtype=np.int64))
    column, flat = writer.finish(), [value for part in parts for value in part]
    assert isinstance(column, Column)
    assert len(column) == len(flat)
    assert [column[n] for n in range(len(flat))] == flat
    assert [value for block in column.blocks(size) for value in block.tolist()] == flat
    assert column.slice(1, 10**6).tolist() == flat[1:]
    for outside in (-1, len(flat)):
        with pytest.raises(IndexError):
            column[outside]


def test_reading_goes_on_where_the_kernel_stops_early(tmp_path, monkeypatch):
    path, real = tmp_path / "a", os.pread
    path.write_bytes(bytes(range(100)))
    monkeypatch.setattr(columns.os, "pread", lambda descriptor, size, at: real(descriptor, min(size, 7), at))
    with path.open("rb") as file:
        assert read_at(file.fileno(), 10, 50) == bytes(range(10, 60))
        assert read_at(file.fileno(), 90, 50) == bytes(range(90, 100))
        assert read_at(file.fileno(), 200, 5) == b""
