"""What users get wrong: one clear line with the place and the fix, exit code 2, no traceback, nothing overwritten."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from embed_cli.main import main

Fails = Callable[..., str]
GOOD_ROW = json.dumps({"query": "what is a list", "pos": ["A mutable sequence."], "neg": ["A mapping."]})


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Fails:
    """Runs ``embed run …`` in an empty directory, asserts that it is a user error, and gives the message."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["embed", "run", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        output = capfd.readouterr()
        assert stopped.value.code == 2, output
        assert "Traceback" not in output.out + output.err
        lines = [line for line in output.err.splitlines() if line]
        assert len(lines) == 1, output.err
        assert lines[0].startswith("error: ")
        return lines[0].removeprefix("error: ")

    return run


def hello(*settings: str) -> list[str]:
    return ["--plugin", "hello", "--max-steps", "2", *(part for s in settings for part in ("--set", s))]


def test_unknown_plugin(fails: Fails) -> None:
    message = fails("--plugin", "helo")
    assert "plugin 'helo' is not installed: did you mean 'hello'?" in message


def test_no_plugin(fails: Fails) -> None:
    assert "which plugin? Add --plugin NAME (installed: " in fails()


def test_plugin_without_a_recipe(fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "site" / "embed_bare-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: embed-bare\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[embed]\nbare = plugin_without_a_recipe\n")
    (info.parent / "plugin_without_a_recipe.py").write_text("")
    monkeypatch.syspath_prepend(str(info.parent))
    assert fails("--plugin", "bare") == "plugin 'bare' has no default recipe: give --config FILE"


def test_missing_data_file(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(GOOD_ROW)
    message = fails(*hello("data.path=trian.jsonl"))
    assert "trian.jsonl" in message
    assert "train.jsonl" in message.replace("trian.jsonl", "")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"query": "q", "pos": ["a"]', "JSON"),
        ('{"query": "q", "pos": "one text"}', "list"),
        ('{"query": "q"}', "pos"),
        ('{"query": "q", "pos": [1]}', "pos"),
    ],
)
def test_a_bad_row_is_named_with_its_line(fails: Fails, tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "train.jsonl").write_text(f"{GOOD_ROW}\n{line}\n{GOOD_ROW}\n")
    message = fails(*hello("data.path=train.jsonl"))
    assert message.startswith("train.jsonl:2: ") or "train.jsonl:2: " in message
    assert reason in message
    assert not (tmp_path / "runs").exists()


def test_empty_dataset(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("")
    message = fails(*hello("data.path=train.jsonl"))
    assert "train.jsonl" in message
    assert "empty" in message or "no row" in message


def test_unknown_key_of_the_recipe_or_the_run(fails: Fails) -> None:
    message = fails(*hello("learning_rat=1"))
    assert message.startswith("--set learning_rat: 'learning_rat' is no key of recipe 'hello' or of a run")


def test_unknown_nested_key(fails: Fails) -> None:
    message = fails(*hello("train.max_step=5"))
    assert message == "--set train.max_step: train.max_step: unknown key 'max_step': did you mean 'max_steps'?"


def test_wrong_value_of_a_choice(fails: Fails) -> None:
    message = fails(*hello("engine.precision=bf61"))
    assert "--set engine.precision: engine.precision" in message
    assert "'fp32', 'bf16', 'bf16-weights' or 'fp16'" in message
    assert "'bf61'" in message


def test_unknown_kind(fails: Fails) -> None:
    message = fails(*hello("sampler.kind=shufled"))
    assert "--set sampler.kind: sampler: unknown sampler kind 'shufled': did you mean 'shuffled'?" in message


def test_file_errors_name_file_and_line(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("train:\n  epochs: 1\n  max_stepz: 3\n")
    message = fails("--plugin", "hello", "--config", "run.yaml")
    assert message == "run.yaml:3: train.max_stepz: unknown key 'max_stepz': did you mean 'max_steps'?"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("train: [1\n", "run.yaml:2: not valid YAML"),
        ("- a\n", "run.yaml:1: a config is a mapping of keys to values"),
        ("seed: 1\nseed: 2\n", "run.yaml:2: the key seed is written twice"),
        ("1: 2\n", "run.yaml:1: the key 1 is not text"),
        ("plugins: hello\n", "run.yaml:1: plugins: a list of names is needed, got 'hello'"),
    ],
)
def test_malformed_config_files(fails: Fails, tmp_path: Path, text: str, wanted: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    names = () if text.startswith("plugins") else ("--plugin", "hello")
    assert fails(*names, "--config", "run.yaml").startswith(wanted)


def test_missing_config_file(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("seed: 1\n")
    message = fails("--plugin", "hello", "--config", "trian.yaml")
    assert message == "config file 'trian.yaml' does not exist: did you mean 'train.yaml'?"


def test_malformed_override(fails: Fails) -> None:
    assert fails(*hello("seed")).startswith("--set 'seed': write it as key=value")


@pytest.mark.parametrize("place", ["a-file/run", "/proc/nowhere/run"])
def test_output_directory_that_cannot_be_written(fails: Fails, tmp_path: Path, place: str) -> None:
    (tmp_path / "a-file").write_text("mine")
    message = fails(*hello(), "--output-dir", place)
    assert f"output directory '{place}' cannot be written" in message
    assert "--output-dir" in message
    assert (tmp_path / "a-file").read_text() == "mine"


def test_output_directory_that_is_a_file(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("mine")
    assert "is a file: choose another with --output-dir" in fails(*hello(), "--output-dir", "a-file")


def test_a_folder_of_other_files_is_never_written(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter-1.tex").write_text("mine")
    for flags in ((), ("--overwrite",)):
        message = fails(*hello(), "--output-dir", "thesis", *flags)
        assert "holds files that are not a run's: choose another with --output-dir" in message
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter-1.tex"]


@pytest.mark.parametrize("status", ["finished", "running", "failed"])
def test_a_former_run_is_not_overwritten(fails: Fails, tmp_path: Path, status: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"status": status}))
    (run / "metrics.jsonl").write_text("kept")
    message = fails(*hello(), "--output-dir", "run")
    assert "--overwrite replaces it" in message
    assert ("--resume continues it" in message) == (status != "finished")
    assert (run / "metrics.jsonl").read_text() == "kept"


def test_a_failing_run_does_not_replace_the_former_one(fails: Fails, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"status": "finished"}))
    (run / "metrics.jsonl").write_text("kept")
    fails(*hello("data.path=nowhere.jsonl"), "--output-dir", "run", "--overwrite")
    assert (run / "metrics.jsonl").read_text() == "kept"


def test_damaged_status_file(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{")
    assert "run.json: damaged (not JSON)" in fails(*hello(), "--output-dir", "run")


def test_resume_needs_a_run(fails: Fails) -> None:
    assert fails(*hello(), "--resume") == "--resume needs to know which run: add --output-dir DIR"
    assert "does not exist: nothing to resume" in fails(*hello(), "--resume", "--output-dir", "nowhere")
    assert "give one of them" in fails(*hello(), "--resume", "--overwrite", "--output-dir", "nowhere")


def test_nproc_under_another_launcher(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    assert "--nproc 2 under another launcher" in fails(*hello(), "--nproc", "2")


def test_fp16_and_cuda_need_a_gpu(fails: Fails) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    assert fails(*hello("engine.precision=fp16")) == (
        "engine.precision: 'fp16' needs CUDA: use bf16 or fp32 on this machine"
    )
    assert fails(*hello("engine.device=cuda")).startswith("engine.device: 'cuda' was asked for and no CUDA device")


def test_model_directory_without_weights(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "xlm-roberta"}))
    rows = [json.dumps({"query": f"question {n}", "pos": [f"answer {n}"]}) for n in range(20)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    message = fails("--plugin", "bge", "--set", "model.name_or_path=model", "--set", "data.path=train.jsonl")
    assert "'model'" in message
    assert "safetensors" in message or "weights" in message


def test_more_rows_than_there_are(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(f"{GOOD_ROW}\n")
    message = fails(*hello("data.path=train.jsonl", "data.held_out_rows=0", "evaluation=[]"))
    assert "batch_size" in message
