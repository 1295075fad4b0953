"""The output directory: what is refused, what is replaced, and what a kill may leave behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embed_core.errors import CheckpointError
from embed_core.train.output_dir import LEFT_OVER, OURS, OutputDir, replace_directory, write_text


def folder(tmp_path: Path, content: object = None) -> OutputDir:
    path = tmp_path / "run"
    path.mkdir()
    if content is not None:
        (path / "run.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return OutputDir(path)


def test_check_writes_nothing_and_accepts_what_is_new_or_empty(tmp_path: Path) -> None:
    OutputDir(tmp_path / "a" / "b").check(resume=False, overwrite=False)
    assert list(tmp_path.iterdir()) == []
    outputs = folder(tmp_path)
    outputs.check(resume=False, overwrite=False)
    assert list(outputs.path.iterdir()) == []


@pytest.mark.parametrize("content", ["{", "[]", "\0"])
def test_a_damaged_status_is_named(tmp_path: Path, content: str) -> None:
    outputs = folder(tmp_path, content)
    with pytest.raises(CheckpointError, match=r"run\.json: damaged .*delete the file, or --output-dir elsewhere"):
        outputs.check(resume=True, overwrite=False)


def test_overwrite_removes_a_runs_files_and_nothing_else(tmp_path: Path) -> None:
    outputs = folder(tmp_path, {"status": "finished"})
    for name in OURS:
        if "." not in name:
            (outputs.path / name / "deep").mkdir(parents=True)
        else:
            (outputs.path / name).write_text("old")
    (outputs.path / "notes.txt").write_text("mine")
    outputs.create(overwrite=True)
    assert [path.name for path in outputs.path.iterdir()] == ["notes.txt"]


def test_what_a_kill_left_is_cleared_and_the_run_stays(tmp_path: Path) -> None:
    outputs = folder(tmp_path, {"status": "running"})
    (outputs.path / ".model.tmp").mkdir()
    (outputs.path / ".model.tmp" / "half.safetensors").write_text("half")
    (outputs.path / ".run.json.tmp").write_text("{")
    (outputs.path / "model").mkdir()
    assert {".model.tmp", ".run.json.tmp"} < set(LEFT_OVER)
    outputs.create(overwrite=False)
    assert sorted(path.name for path in outputs.path.iterdir()) == ["model", "run.json"]


def test_files_and_directories_are_replaced_in_one_piece(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "1")
    write_text(tmp_path / "a", "2")
    assert (tmp_path / "a").read_text() == "2"
    for content in ("first", "second"):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / content).touch()
        replace_directory(tmp_path / "new", tmp_path / "target")
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["second"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "target"]
