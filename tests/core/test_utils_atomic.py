"""Files that are there whole or not at all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from embed_core.utils.atomic import beside, check_writable, replacing


def test_replaced_when_it_ended_well(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_left_as_it_was_when_it_did_not(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")

    def half_written() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise ValueError("full")

    with pytest.raises(ValueError, match="full"):
        half_written()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_names_are_hidden_beside_and_nobody_elses(tmp_path: Path) -> None:
    names = {beside(tmp_path / "a.json") for _ in range(100)}
    assert len(names) == 100
    assert all(name.parent == tmp_path and name.name.startswith(".a.json.") for name in names)


def test_writable_for_many_at_once(tmp_path: Path) -> None:
    """Ranks that share a process id, as threads and machines on one disk can, do not take each other's probe."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: check_writable(tmp_path), range(2000)))
    assert not list(tmp_path.iterdir())


def test_not_writable(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        check_writable(tmp_path / "nowhere")
