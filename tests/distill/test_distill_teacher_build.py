"""Builds ahead of a run: killed and resumed, by several ranks, and as commands."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import pytest
from typer.testing import CliRunner

from embed_core.config.context import BuildContext
from embed_core.distributed.process_group import leave
from embed_core.errors import ConfigError, DataError
from embed_core.testing.datasets import tiny_dataset
from embed_distill.build_command import BuildRequest, TextFile
from embed_distill.commands import app
from embed_distill.store import complete
from embed_distill.teacher import precompute as filling
from embed_distill.teacher.cached import Source, Sources
from embed_distill.teacher.config import TeacherConfig
from embed_distill.teacher.precompute import fill, is_complete
from processes import Popen

Built = Callable[..., Source]


@pytest.fixture
def source(tiny: Path, context: BuildContext) -> Built:
    """``source("store")``: the tiny teacher's vectors in that folder."""

    def build(store: str, here: BuildContext = context) -> Source:
        config = TeacherConfig(name_or_path=str(tiny / "teacher"), dtype="fp32")
        (one,) = Sources.of([config], str(context.cache_dir / store), "fp16", here).each
        return one

    return build


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


@pytest.fixture
def blocks_of_8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "BLOCK", 8)


@pytest.mark.usefixtures("blocks_of_8")
def test_a_build_that_stopped_anywhere_ends_as_one_that_did_not(source: Built, context: BuildContext) -> None:
    whole = source("whole")
    assert fill(tiny_dataset(), whole, context) == (72, 72)
    for stopped_after in (0, 1, 4):
        stopped = source(f"stopped-{stopped_after}")
        compute, done = stopped.compute, []

        def killed(asked: Any, compute: Any = compute, done: Any = done, most: int = stopped_after) -> None:
            if len(done) == most:
                raise KeyboardInterrupt
            done.append(asked)
            compute(asked)

        stopped.compute = killed  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            fill(tiny_dataset(), stopped, context)
        assert complete.noted(stopped.folder, tiny_dataset().fingerprint()) is None
        resumed = source(f"stopped-{stopped_after}")
        assert fill(tiny_dataset(), resumed, context) == (72, 72 - 8 * stopped_after)
        assert resumed.computed == 72 - 8 * stopped_after
        assert content_of(resumed.folder) == content_of(whole.folder)


@pytest.mark.usefixtures("blocks_of_8")
def test_any_number_of_ranks_leaves_the_same_store(source: Built, context: BuildContext) -> None:
    whole = source("whole")
    fill(tiny_dataset(), whole, context)
    computed = []
    for rank in (2, 1, 0):  # one after another, the last first
        here = replace(context, rank=rank, world_size=3)
        mine = source("shared", here)
        fill(tiny_dataset(), mine, here)
        computed.append(mine.computed)
    assert computed == [24, 24, 24]
    assert content_of(mine.folder) == content_of(whole.folder)


@pytest.mark.usefixtures("blocks_of_8")
def test_what_is_there_of_another_dataset_is_not_computed_again(source: Built, context: BuildContext) -> None:
    first = source("store")
    fill(tiny_dataset(held_out_rows=20), first, context)
    second = source("store")
    assert not is_complete(tiny_dataset(), second)
    texts, missing = fill(tiny_dataset(), second, context)
    assert (texts, second.computed) == (72, missing)
    assert missing == 72 - first.computed > 0
    assert is_complete(tiny_dataset(held_out_rows=20), second)


def test_a_store_that_is_complete_is_noted_without_a_build(source: Built, context: BuildContext) -> None:
    one = source("store")
    fill(tiny_dataset(), one, context)
    complete.forget(one.folder)
    assert is_complete(tiny_dataset(), one)
    (note,) = one.folder.glob("*.complete.json")
    assert json.loads(note.read_text())["vectors"] == 72


@pytest.mark.usefixtures("blocks_of_8")
def test_progress_is_announced(source: Built, context: BuildContext, lines: list[str]) -> None:
    ticks: Iterator[float] = iter(range(0, 1000, 7))
    one = source("store")
    fill(tiny_dataset(), one, context, clock=lambda: next(ticks))
    assert lines[0].startswith("teacher: 72 of 72 vectors are to be computed by ")
    assert next(line for line in lines if " blocks of 8 texts are done, " in line).startswith("teacher: 2 of 9 blocks")
    assert lines[-1] == f"teacher: 0 vectors from the store, 72 computed: {one.config.label}"


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def texts_file(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"text number {n} of a long file\n" for n in range(3_000)), encoding="utf-8")
    return path


PROGRAM = "from embed_distill.teacher import precompute as p; p.BLOCK = 256; from embed_cli.main import main; main()"
"""The command, with a block of which a tiny teacher computes a dozen in some time."""


def test_a_killed_process_costs_a_block(
    texts_file: Path, tiny: Path, tmp_path: Path, context: BuildContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real process, killed in the middle; the same command goes on and leaves what an undisturbed one leaves."""
    store = tmp_path / "killed"
    command = [sys.executable, "-c", PROGRAM, "teacher", "build", "--texts", str(texts_file)]
    command += ["--teacher", str(tiny / "teacher"), "--store", str(store)]
    process = Popen(command, stdout=DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while len(list(store.glob("*/*.vec"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert process.poll() is None, "it was over before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list(store.glob("*/*.vec")))
    assert 2 <= done < 12
    monkeypatch.setattr(filling, "BLOCK", 256)
    dataset = TextFile(texts_file, "passage")
    teacher = TeacherConfig(name_or_path=str(tiny / "teacher"))
    (resumed,) = Sources.of([teacher], str(store), "fp16", context).each
    assert fill(dataset, resumed, context) == (3_000, 3_000 - done * 256)
    (whole,) = Sources.of([teacher], str(tmp_path / "whole"), "fp16", context).each
    fill(dataset, whole, context)
    after = content_of(resumed.folder)
    assert {name: content for name, content in after.items() if not name.startswith(".")} == content_of(whole.folder)


def test_the_commands(texts_file: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBED_CACHE", str(tmp_path / "cache"))
    texts_file.write_text("one\n\ntwo\nthree\none\n")
    missing = run("stats")
    assert isinstance(missing.exception, DataError)
    assert "there is no such folder" in str(missing.exception)
    teacher = str(tiny / "teacher")
    arguments = ("build", "--texts", str(texts_file), "--teacher", teacher, "--dtype", "int8", "--device", "cpu")
    assert f"teacher: 0 vectors from the store, 3 computed: {teacher}" in run(*arguments).output
    assert f"teacher: 3 vectors from the store, 0 computed: {teacher}" in run(*arguments).output
    asked = run(*arguments, "--role", "query")
    assert "0 vectors from the store, 3 computed" in asked.output, "with its prompt for queries"
    table = run("stats").output.splitlines()
    assert table[0].split() == ["teacher", "folder", "kept", "as", "width", "vectors", "files", "MB", "last", "used"]
    assert table[1].split()[0] == teacher
    assert table[1].split()[2:6] == ["int8", "24", "6", "2"]
    (facts,) = json.loads(run("stats", "--json").output)
    assert (facts["teacher"], facts["vectors"]) == (teacher, 6)
    assert run("verify").output.splitlines()[-1] == "every checksum is right"
    path = next((tmp_path / "cache/teachers").glob("*/*.vec"))
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    found = run("verify")
    assert "6 vectors, 1 damaged" in found.output
    assert isinstance(found.exception, DataError)
    assert str(found.exception).startswith("1 damaged entries or files: `embed teacher verify --repair` drops them")
    assert run("verify", "--repair").output.splitlines()[-1] == "dropped what was damaged"
    assert run("verify").exception is None
    again = run(*arguments).output + run(*arguments, "--role", "query").output
    assert again.count("2 vectors from the store, 1 computed") == 1
    assert again.count("3 vectors from the store, 0 computed") == 1
    undecided = run("gc")
    assert isinstance(undecided.exception, ConfigError)
    assert "say what may go, with --unused-days DAYS or --keep TEACHER" in str(undecided.exception)
    assert "would be freed" in run("gc", "--unused-days", "0", "--dry-run").output
    assert path.parent.exists()
    assert "freed" in run("gc", "--unused-days", "0").output
    assert run("stats").output.strip() == f"{tmp_path / 'cache/teachers'}: no teacher has vectors here"
    leave()


def test_a_run_s_texts_are_built_by_its_own_options(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBED_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"query": f"q {n}", "pos": [f"p {n}"]}) + "\n" for n in range(30)))
    teacher = str(tiny / "teacher")
    run_options = ("build", "--plugin", "mrl", "--set", f"train_data={rows}", "--set", "held_out_rows=0")
    without = run(*run_options)
    assert isinstance(without.exception, ConfigError)
    assert "the run has no teacher: set teacher_model_name or data.kind with-teacher" in str(without.exception)
    own = run(*run_options, "--set", f"teacher_model_name={teacher}")
    assert f"0 vectors from the store, 60 computed: {teacher}" in own.output
    named = run(*run_options, "--teacher", teacher)
    assert f"60 vectors from the store, 0 computed: {teacher}" in named.output
    leave()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "whose texts? Give --plugin or --config, or --texts FILE, one of them"),
        ({"plugins": ("bge",), "texts": Path("x")}, "one of them"),
        ({"texts": Path("x")}, "embed teacher build --texts: name the model with --teacher NAME"),
        ({"texts": Path("nowhere"), "teachers": ("t",)}, "--texts 'nowhere': there is no such file"),
        ({"plugins": ("bge",), "role": "querry"}, "--role 'querry': did you mean 'query'?"),
        ({"plugins": ("bge",), "dtype": "fp8"}, "--dtype 'fp8': one of: fp16, int8"),
        ({"plugins": ("bge",), "device": "tpu"}, "--device 'tpu': did you mean 'cpu'?"),
    ],
)
def test_options_that_contradict_themselves_are_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        BuildRequest(**options).check()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", r"2: not valid JSON \(.*\): one object or string a line"),
        ('{"txt": "a"}', r"2: no `text`: did you mean 'txt'\?; a line is a string or has that key"),
        ("7", r"2: no `text`: none is available; a line is a string or has that key"),
    ],
)
def test_a_line_that_is_no_text_is_said(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "one"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        list(TextFile(path, "passage").texts())


def test_a_file_of_texts_in_both_formats(tmp_path: Path) -> None:
    plain, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    plain.write_text("one\ntwo\n")
    lines.write_text('"one"\n{"text": "two", "id": 7}\n')
    assert list(TextFile(plain, "passage").texts()) == list(TextFile(lines, "passage").texts()) == ["one", "two"]
    asked = TextFile(plain, "query")
    assert (len(asked), list(asked.texts())) == (2, [])
    assert asked.fingerprint() != TextFile(plain, "passage").fingerprint()
