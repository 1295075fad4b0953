"""The store of vectors on disk: what is put is got, by any process, whatever is killed or damaged."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embed_core.errors import DataError
from embed_distill.store import complete
from embed_distill.store.codec import decoded, encoded
from embed_distill.store.compact import compact, readable
from embed_distill.store.inventory import collect, kept
from embed_distill.store.keys import digest, keys_array, salt_of, sorted_once
from embed_distill.store.segment import HEADER_BYTES, Segment, write_segment
from embed_distill.store.store import VectorStore
from embed_distill.store.verify import verify

WIDTH = 12


def keys(*texts: str) -> Any:
    return keys_array(digest(text, salt_of("query: ", 64)) for text in texts)


def numbered(start: int, stop: int) -> Any:
    return keys(*(f"text {n}" for n in range(start, stop)))


def unit(count: int, seed: int = 0, width: int = WIDTH) -> Any:
    vectors = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def flip(path: Path, byte: int, bit: int = 3) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


Open = Callable[..., VectorStore]


@pytest.fixture
def opened(tmp_path: Path, lines: list[str]) -> Open:
    """``opened("fp16")``: the store of one teacher."""

    def store(dtype: Any = "fp16", name: str = "one") -> VectorStore:
        return VectorStore(
            tmp_path / "store" / name, dtype, {"teacher": f"teachers/{name}", "stored": dtype}, lines.append
        )

    return store


def test_a_key_is_of_the_text_and_of_how_it_is_asked() -> None:
    plain = digest("a", salt_of("", 64))
    assert len(plain) == 16
    assert plain == digest("a", salt_of("", 64))
    others = [digest("b", salt_of("", 64)), digest("a", salt_of("query: ", 64)), digest("a", salt_of("", 32))]
    assert len({plain, *others, digest(b"a", salt_of("", 64))}) == 5

    class Picture:
        identity = b"content"

    assert digest(Picture(), salt_of()) == digest(Picture(), salt_of())


def test_distinct_keys_in_their_order() -> None:
    some = keys("b", "a", "b", "c", "a")
    first = sorted_once(some)
    assert sorted(first.tolist()) == [0, 1, 3]
    found = [tuple(some[at]) for at in first]
    assert found == sorted(found)


@pytest.mark.parametrize(("dtype", "error"), [("fp16", 1e-3), ("int8", 1 / 127)])
def test_vectors_survive_their_encoding(dtype: Any, error: float) -> None:
    vectors = unit(50, width=256)
    back = decoded(encoded(numbered(0, 50), vectors, dtype))
    assert back.dtype == np.float32
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    assert (np.abs(back - vectors) <= error * largest / (2 if dtype == "int8" else 1) + 1e-7).all()
    cosines = (back * vectors).sum(axis=1) / np.linalg.norm(back, axis=1)
    assert cosines.min() > (0.9999 if dtype == "int8" else 0.999999)
    assert not decoded(encoded(numbered(0, 1), np.zeros((1, 4), dtype=np.float32), dtype)).any()


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_what_is_put_is_got_in_the_order_asked(opened: Open, dtype: Any) -> None:
    vectors = unit(30)
    kept_as = opened(dtype).put(numbered(0, 30), vectors)
    store = opened(dtype)  # as another process sees it
    found, here = store.get(keys("text 7", "never seen", "text 29", "text 7"))
    assert here.tolist() == [True, False, True, True]
    np.testing.assert_array_equal(found[[0, 2, 3]], kept_as[[7, 29, 7]])
    np.testing.assert_allclose(found[0], vectors[7], atol=5e-3)
    assert not found[1].any()
    assert store.has(numbered(25, 35)).tolist() == [True] * 5 + [False] * 5
    nothing, none = store.get(keys("never seen"))
    assert nothing is None
    assert not none.any()


def test_a_store_is_seen_by_those_who_have_it_open(opened: Open) -> None:
    first, second = opened(), opened()
    assert not first.has(keys("text 0")).any()
    second.put(numbered(0, 3), unit(3))
    assert first.has(numbered(0, 3)).all()
    assert len(first) == 3


def test_the_same_vectors_are_the_same_file_in_whatever_order(opened: Open) -> None:
    vectors, order = unit(20), np.random.default_rng(1).permutation(20)
    one, two = opened(name="one"), opened(name="two")
    one.put(numbered(0, 20), vectors)
    two.put(numbered(0, 20)[order], vectors[order])
    (first,), (second,) = (list(store.folder.glob("*.vec")) for store in (one, two))
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("part", ["vector", "checksum", "first half of the key", "second half of the key"])
def test_a_flipped_bit_costs_its_entry_and_no_other(opened: Open, lines: list[str], part: str) -> None:
    store, n = opened(), 25
    store.put(numbered(0, n), unit(n))
    (path,) = store.folder.glob("*.vec")
    records = HEADER_BYTES + 16 * n
    record = (path.stat().st_size - records) // n
    place = {
        "vector": records + 11 * record + 3,
        "checksum": records + 12 * record - 2,
        "first half of the key": HEADER_BYTES + 8 * 11,
        "second half of the key": HEADER_BYTES + 8 * n + 8 * 11,
    }[part]
    flip(path, place)
    again = opened()
    _, here = again.get(numbered(0, n))
    assert n - 1 - here.sum() <= 0
    assert not here.all(), "a damaged vector was taken for a good one"
    found = verify(store.folder)
    assert (found.entries, found.damaged, found.right) == (n, 1, False)
    if part in ("vector", "checksum"):
        assert again.damaged == 1
        assert lines == [f"teacher store: {path}: 1 vector has a wrong checksum: it is computed again"]
    missing = np.flatnonzero(~here)
    again.put(numbered(0, n)[missing], unit(n)[missing])
    healed, all_here = opened().get(numbered(0, n))
    assert all_here.all()
    np.testing.assert_allclose(healed, unit(n), atol=1e-3)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: flip(path, 2), "it does not begin as a file of teacher vectors"),
        (lambda path: flip(path, 17), "its header has a wrong checksum"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, 1,"),
        (lambda path: path.write_bytes(b""), "it does not begin as a file of teacher vectors"),
    ],
)
def test_a_damaged_file_is_passed_over_and_said(
    opened: Open, lines: list[str], damage: Callable[[Path], object], reason: str
) -> None:
    opened().put(numbered(0, 25), unit(25))
    opened().put(numbered(25, 27), unit(2))
    path = max(opened().folder.glob("*.vec"), key=lambda path: path.stat().st_size)
    damage(path)
    store = opened()
    assert store.has(numbered(0, 27)).sum() == 2
    (line,) = lines
    assert line.startswith(f"teacher store: {path}: damaged (")
    assert reason in line
    assert "`embed teacher verify --repair` removes the file" in line
    assert verify(store.folder).files == [f"{path}: {line.split('damaged (')[1].split('):')[0]}"]


def test_repair_drops_what_is_damaged_and_what_was_said_of_it(opened: Open) -> None:
    store = opened()
    store.put(numbered(0, 25), unit(25))
    store.put(numbered(25, 30), unit(5))
    complete.note(store.folder, "dataset", 30)
    large, small = sorted(store.folder.glob("*.vec"), key=lambda path: -path.stat().st_size)
    flip(large, large.stat().st_size - 20)
    flip(small, 1)
    assert not verify(store.folder).right
    assert complete.noted(store.folder, "dataset") == 30, "looking changes nothing"
    assert not verify(store.folder, repair=True).right
    after = verify(store.folder)
    assert (after.entries, after.right) == (24, True)
    assert complete.noted(store.folder, "dataset") is None


def test_keys_that_have_changed_places_are_found_out(opened: Open) -> None:
    """Each has the checksum of its own vector, and none would ever be found."""
    store = opened()
    path = store.put(numbered(0, 9), unit(9)) is not None and next(store.folder.glob("*.vec"))
    assert path
    one = Segment(path)
    swapped = np.r_[1, 0, 2:9]
    body = one.keys(swapped), one.records(swapped)[0]
    head = path.read_bytes()[:HEADER_BYTES]
    path.write_bytes(head + body[0][:, 0].tobytes() + body[0][:, 1].tobytes() + body[1].tobytes())
    assert verify(store.folder).files == [f"{path}: its keys have a wrong checksum"]


def test_small_files_become_one_and_nothing_is_lost(opened: Open) -> None:
    store = opened()
    for n in range(20):
        store.put(numbered(10 * n, 10 * n + 10), unit(10, seed=n))
    before, _ = store.get(numbered(0, 200))
    reader = opened()
    assert reader.has(numbered(0, 200)).all()
    assert compact(store.folder) == 20
    assert len(list(store.folder.glob("*.vec"))) == 1
    for one in (store, reader, opened()):
        after, here = one.get(numbered(0, 200))
        assert here.all()
        np.testing.assert_array_equal(after, before)
    assert compact(store.folder) == 0


def test_a_run_that_adds_and_adds_does_not_leave_a_thousand_files(opened: Open) -> None:
    store = opened()
    for n in range(150):
        store.put(numbered(n, n + 1), unit(1, seed=n))
    assert len(list(store.folder.glob("*.vec"))) < 80
    assert store.has(numbered(0, 150)).all()


def test_a_join_that_was_killed_before_it_removed_ends_as_one_that_was_not(opened: Open) -> None:
    whole, killed = opened(name="whole"), opened(name="killed")
    for store in (whole, killed):
        for n in range(20):
            store.put(numbered(10 * n, 10 * n + 10), unit(10, seed=n))
    left = {path.name: path.read_bytes() for path in sorted(killed.folder.glob("*.vec"))[7:]}
    compact(whole.folder)
    compact(killed.folder)
    for name, content in left.items():
        (killed.folder / name).write_bytes(content)
    compact(killed.folder)
    assert content_of(killed.folder) == content_of(whole.folder)


def test_an_entry_that_was_computed_again_is_not_taken_for_a_copy(opened: Open) -> None:
    """Its damaged one is in a larger file, which has all keys of its own."""
    store = opened()
    store.put(numbered(0, 30), unit(30))
    (path,) = store.folder.glob("*.vec")
    flip(path, path.stat().st_size - 20)
    again = opened()
    missing = np.flatnonzero(~again.get(numbered(0, 30))[1])
    again.put(numbered(0, 30)[missing], unit(30)[missing])
    compact(store.folder, more_than=0, large=path.stat().st_size)
    assert opened().get(numbered(0, 30))[1].all()


def test_only_one_process_joins_at_a_time(opened: Open) -> None:
    from embed_distill.store.lock import rearranging

    store = opened()
    for n in range(20):
        store.put(numbered(n, n + 1), unit(1, seed=n))
    with rearranging(store.folder, wait=True) as alone:
        assert alone
        assert compact(store.folder) == 0
    assert compact(store.folder) == 20


def _puts(folder: str, process: int) -> None:
    store = VectorStore(Path(folder), "fp16", {}, print)
    for n in range(40):
        start = (process * 7 + n) % 50 * 4
        store.put(numbered(start, start + 6), unit(206)[start : start + 6])
        store.get(numbered(0, 206))


def test_several_processes_add_and_join_at_once(opened: Open) -> None:
    """They write the same entries too, and join each other's files."""
    folder = opened().folder
    several = multiprocessing.get_context("fork")
    processes = [several.Process(target=_puts, args=(str(folder), n)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    found, here = opened().get(numbered(0, 200))
    assert here.all()
    np.testing.assert_allclose(found, unit(206)[:200], atol=1e-3)
    assert verify(folder).right
    assert not list(folder.glob(".*.tmp"))


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"teacher store '.*file/x' cannot be written \(.*\): name another `store`"):
        VectorStore(tmp_path / "file" / "x", "fp16", {}, print)


def test_a_full_disk_is_said_in_one_line(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened()
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(
        DataError, match=r"cannot be written \(.*No space left.*\): free space, or name another `store`"
    ):
        store.put(numbered(0, 2), unit(2))
    assert not list(store.folder.glob("*.vec"))
    assert not list(store.folder.glob(".*.tmp"))


def test_what_is_kept_and_what_may_go(opened: Open, tmp_path: Path) -> None:
    one, two = opened(name="one"), opened("int8", name="two")
    one.put(numbered(0, 30), unit(30))
    two.put(numbered(0, 5), unit(5))
    two.put(numbered(5, 7), unit(2))
    root = tmp_path / "store"
    listed = kept(root)
    assert [(k.name, k.teacher, k.dtype, k.width, k.vectors, k.files) for k in listed] == [
        ("one", "teachers/one", "fp16", WIDTH, 30, 1),
        ("two", "teachers/two", "int8", WIDTH, 7, 2),
    ]
    assert listed[0].bytes == next(one.folder.glob("*.vec")).stat().st_size
    assert [k.name for k in kept(root, ["teachers/two"])] == ["two"]
    with pytest.raises(DataError, match=r"--teacher 'tow': the store '.*' has no such teacher: did you mean 'two'\?"):
        kept(root, ["tow"])
    with pytest.raises(DataError, match="no such teacher"):
        collect(root, unused_days=None, keep=["tow"])
    assert [k.teacher for k in collect(root, unused_days=None, keep=["one"], dry_run=True)] == ["teachers/two"]
    assert two.folder.exists()
    assert [k.teacher for k in collect(root, unused_days=None, keep=["one"])] == ["teachers/two"]
    assert not two.folder.exists()
    assert one.folder.exists()


def test_what_no_run_has_read_goes_and_what_one_has_stays(opened: Open, tmp_path: Path) -> None:
    store = opened()
    store.put(numbered(0, 30), unit(30))
    store.put(numbered(30, 50), unit(20))
    complete.note(store.folder, "dataset", 50)
    old = time.time() - 40 * 24 * 3600
    for path in store.folder.glob("*.vec"):
        os.utime(path, (old, old))
    opened().get(numbered(3, 4))  # reading notes the use
    assert collect(tmp_path / "store", unused_days=50, keep=()) == []
    (gone,) = collect(tmp_path / "store", unused_days=30, keep=())
    assert (gone.files, gone.reason) == (1, "not used for 30 days")
    assert opened().has(numbered(0, 50)).tolist() == [True] * 30 + [False] * 20
    assert complete.noted(store.folder, "dataset") is None
    for path in store.folder.glob("*.vec"):
        os.utime(path, (old, old))
    collect(tmp_path / "store", unused_days=30, keep=())
    assert not store.folder.exists(), "a teacher of which nothing is left"
    store.put(numbered(0, 1), unit(1))  # a run that has it open goes on
    assert store.has(numbered(0, 1)).all()


def test_a_segment_is_read_where_it_lies(tmp_path: Path) -> None:
    """100,000 vectors are not loaded to find one."""
    count = 100_000
    made = np.random.default_rng(0).integers(0, 1 << 63, size=(count, 2)).astype(np.uint64)
    path = write_segment(tmp_path, made, encoded(made, np.ones((count, 4), dtype=np.float32), "fp16"), "fp16")
    segment = Segment(path)
    assert isinstance(segment._records, np.memmap)
    assert (segment.find(made[::1000]) >= 0).all()
    assert (segment.find(made[::1000] + np.uint64(1)) == -1).all()
    assert segment.find(np.array([[2**64 - 1, 0], [0, 0]], dtype=np.uint64)).tolist() == [-1, -1]


def content_of(folder: Path) -> dict[str, bytes]:
    return {one.name: one.path.read_bytes() for one in readable(folder)}
