"""Every shipped config: found by name, valid as it is, and run in miniature with local models and rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from embed_core.config.presets import find_config, shipped_configs
from embed_core.export.layout import write_directory
from embed_core.models.from_scratch.config import EncoderShape
from embed_core.models.from_scratch.encoder import xlm_roberta
from embed_core.models.from_scratch.unigram import unigram_tokenizer
from embed_core.models.transformers_encoder.config import TransformersEncoderConfig
from embed_core.models.transformers_encoder.model import TransformersEncoder
from embed_distill.recipe.recipe import DistillRecipe

torch.set_num_threads(1)

NAMES = (
    "ablation_high_lr", "ablation_large_batch", "ablation_long_training", "default", "mrl", "phase2_only",
    "production", "prototype", "quick_test",
)  # fmt: skip
TEACHER_DIM, STUDENT_DIM = 32, 16
TOPICS = ("rivers", "engines", "gardens", "letters")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``teacher`` and ``student``: other widths, depths and tokenizers; ``rows.jsonl`` and ``other.csv`` beside."""
    out = tmp_path_factory.mktemp("models")
    rows = [
        {"query": f"what of {t} {i}", "pos": [f"{t} {i} are told of in part {i}"], "neg": ["no", f"never {t}"]}
        for t in TOPICS
        for i in range(12)
    ]
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pairs = "".join(f"where is {t} {i},{t} number {i} is here\n" for t in TOPICS for i in range(6))
    (out / "other.csv").write_text("query,positive\n" + pairs, encoding="utf-8")
    texts = [row["query"] + row["pos"][0] for row in rows]
    for name, vocabulary, width, layers in (("teacher", 150, TEACHER_DIM, 2), ("student", 110, STUDENT_DIM, 1)):
        tokenizer = unigram_tokenizer(texts, vocabulary, out, lambda line: None, max_length=64)
        shape = EncoderShape(vocab_size=vocabulary, hidden=width, layers=layers, heads=2)
        encoder = xlm_roberta(len(tokenizer), shape, max_length=64, seed=width)
        config = TransformersEncoderConfig(pooling="mean", query_max_length=64, passage_max_length=64)
        model = TransformersEncoder(config, encoder, tokenizer)
        (out / name).mkdir()
        write_directory(model, dict(model.named_parameters()) | dict(model.named_buffers()), out / name)
    return out


@pytest.fixture
def embed(command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable:
    """``embed("run", …)`` in an empty directory with a cache of its own → exit code, stdout, stderr."""
    monkeypatch.setenv("EMBED_CACHE", str(tmp_path / "cache"))
    return command


def local(models: Path) -> list[str]:
    """The overrides that put local models and rows into a shipped config."""
    settings = (
        f"model.teacher={models / 'teacher'}",
        f"model.student={models / 'student'}",
        f"model.teacher_dim={TEACHER_DIM}",
        f"model.student_dim={STUDENT_DIM}",
        f"phase1.datasets=[{models / 'rows.jsonl'}, {models / 'other.csv'}]",
        f"phase2.dataset={models / 'rows.jsonl'}",
        "phase2.held_out_rows=8",
        "tracking.report_to=[]",
        "engine.precision=fp32",
    )
    return [part for setting in settings for part in ("--set", setting)]


def test_these_come_with_the_recipe() -> None:
    assert tuple(shipped_configs(DistillRecipe)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_config_is_valid_as_it_is(embed: Callable[..., tuple[int, str, str]], name: str) -> None:
    """Found by its name, with or without suffix; phase 2 alone says at once what it needs."""
    code, out, err = embed("run", "--plugin", "distill", "--config", name, "--dry-run")
    if name == "phase2_only":
        assert code == 2
        assert "phase2_only.yaml" in err
        assert "skip_phase1: 'checkpoints/distilled-mpnet-3584d-phase2_only/phases/phase1/model' is not there" in err
        return
    assert (code, err) == (0, "")
    run = yaml.safe_load(out)
    assert run["name"] == f"distilled-mpnet-{768 if name == 'mrl' else 3584}d-{name}"
    assert embed("run", "--plugin", "distill", "--config", f"{name}.yaml", "--dry-run")[1] == out


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_config_runs_in_miniature(
    embed: Callable[..., tuple[int, str, str]], models: Path, tmp_path: Path, name: str
) -> None:
    from sentence_transformers import SentenceTransformer

    run = ["run", "--plugin", "distill", "--sanity", *local(models), "--max-steps", "2"]
    if name == "phase2_only":
        assert embed(*run, "--config", "default")[0] == 0
    code, out, err = embed(*run, "--config", name)
    assert code == 0, err
    width = STUDENT_DIM if name == "mrl" else TEACHER_DIM
    experiment = f"distilled-student-{width}d-{name}"
    folder = tmp_path / "checkpoints" / experiment
    assert SentenceTransformer(str(folder / "model"), device="cpu").encode(["rivers"]).shape == (1, width)
    state = json.loads((folder / "run.json").read_text())
    last = state["evaluations"][max(state["evaluations"], key=int)]
    assert ("held-out/student-teacher/nDCG@10" in last) == (name != "mrl"), "the asymmetric pairs want one width"
    assert {"held-out/student-student/nDCG@10", "held-out/teacher-teacher/nDCG@10"} <= last.keys()
    assert "documents by teacher" in out
    assert (folder / "two-by-two.md").is_file()
    assert (folder / "phases" / "phase1" / "model" / "config.json").is_file() == (name != "phase2_only")
    assert (tmp_path / "artifacts" / experiment / "model.safetensors").is_file() == (name == "production")


def test_a_file_here_counts_more(embed: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    (tmp_path / "default.yaml").write_text("phase2: {temperature: 0.5}\n", encoding="utf-8")
    run = yaml.safe_load(embed("run", "--plugin", "distill", "--config", "default.yaml", "--dry-run")[1])
    assert run["loss"]["terms"]["infonce"]["loss"]["temperature"] == 0.5
    assert run["model"]["inner"]["name_or_path"] == "from-scratch"
    shipped = yaml.safe_load(embed("run", "--plugin", "distill", "--config", "default", "--dry-run")[1])
    assert shipped["model"]["inner"]["name_or_path"] == "sentence-transformers/all-mpnet-base-v2"


def test_unknown_names_are_told_the_known_ones(embed: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = embed("run", "--plugin", "distill", "--config", "quick", "--dry-run")
    assert code == 2
    assert f"config 'quick' is no file here and none that recipe 'distill' ships: name a file, or one of: {', '.join(NAMES)}" in " ".join(err.split())  # fmt: skip  # noqa: E501
    code, _, err = embed("run", "--plugin", "bge", "--config", "quick", "--dry-run")
    assert code == 2
    assert "config file 'quick' does not exist" in err
    code, _, err = embed("run", "--plugin", "distill", "--config", "folder/default", "--dry-run")
    assert code == 2
    assert "config file 'folder/default' does not exist" in err, "a path is a path"


def test_recipes_without_configs_of_their_own(tmp_path: Path) -> None:
    assert shipped_configs(None) == {}
    assert find_config("x.yaml", None) == Path("x.yaml")


def test_artifacts_are_never_written_over(
    embed: Callable[..., tuple[int, str, str]], models: Path, tmp_path: Path
) -> None:
    taken = tmp_path / "artifacts" / f"distilled-student-{TEACHER_DIM}d-production"
    taken.mkdir(parents=True)
    code, out, err = embed("run", "--plugin", "distill", "--sanity", *local(models), "--config", "production")
    assert code == 2
    assert (out, err.count("\n")) == ("", 1), "before anything is read"
    assert not (tmp_path / "checkpoints").exists()
    assert "exists: move it away, or choose another paths.artifacts_dir; nothing was overwritten" in " ".join(
        err.split()
    )
    assert list(taken.iterdir()) == []


def test_the_copy_to_artifacts_is_whole_or_not_there(tmp_path: Path) -> None:
    from embed_core.errors import CheckpointError
    from embed_distill.export.run_end import copied

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    copied(tmp_path / "model", tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "config.json").read_text() == "{}"
    with pytest.raises(CheckpointError, match=r"could not be copied to .* nothing is overwritten.*: it is in '"):
        copied(tmp_path / "model", tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be copied"):
        copied(tmp_path / "model", tmp_path / "file" / "b")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"], "nothing half done is left"


def test_data_that_are_not_there_are_named(embed: Callable[..., tuple[int, str, str]], models: Path) -> None:
    """The layout's own data are Hugging Face datasets: without a network one line says so."""
    pairs = zip(local(models)[::2], local(models)[1::2], strict=True)
    settings = [part for pair in pairs if not pair[1].startswith("phase2.dataset") for part in pair]
    code, _, err = embed("run", "--plugin", "distill", "--config", "default", "--sanity", *settings)
    assert code == 2
    assert "sentence-transformers/msmarco-bm25: no such file or folder here, and no Hugging Face dataset" in err
