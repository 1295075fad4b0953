"""Whole runs in miniature, from a config file as users have it to a model in its place."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from sbert_parts import TEXTS

from embed_core.config import document
from embed_core.config.resolve import Request
from embed_core.config.resolve import resolve as resolve_run
from embed_core.distributed.process_group import leave
from embed_core.errors import CheckpointError, ConfigError
from embed_core.plugin.manager import activate
from embed_core.train.run import Options, RunResult, run


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RunResult]]:
    """``start("train.max_steps=2", config=path)`` → the result of a run with the recipe, in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    started = itertools.count()

    def go(
        *overrides: str, config: Path | None = None, plugins: tuple[str, ...] = ("sbert",), **options: bool
    ) -> RunResult:
        manager, registry = activate(plugins)
        named = config is not None or any(one.startswith("output.") for one in overrides)
        settings = ["tracking.report_to=[]", "engine.precision=fp32", *overrides]
        request = Request(
            registry.recipe("sbert"),
            document.read(config) if config else document.Document(),
            sanity=True,
            overrides=document.overrides(settings),
            flags={"plugins": plugins} if named else {"plugins": plugins, "output_dir": f"out-{next(started)}"},
        )
        return run(resolve_run(registry, request), manager, registry, Options(announce=lambda line: None, **options))

    yield go
    leave()


def test_a_config_as_written_leaves_a_model_where_it_says(
    start: Callable[..., RunResult], saved: Callable[..., Path], pairs: Path, tmp_path: Path
) -> None:
    """Relative paths, comments, remote code allowed for a model that has none, several scripts."""
    from sentence_transformers import SentenceTransformer

    config = tmp_path / "config.json"
    config.write_text(
        f"""{{
  "model_id": {json.dumps(str(saved("dense")))}, // a model of our own
  "hf": {{"trust_remote_code": true}},
  "device": {{"device": "auto", "dtype": "auto"}},
  "train": {{
    "batch_size": 8, "epochs": 15, "max_length": 16,
    "grad_accum_steps": 1,   // 메모리 제약 시
    "pad_to_multiple_of": 8, /* 8 or 16 */
    "fp16": "auto"
  }},
  "optim": {{"lr": 5e-5}},
  "data": {{"pairs_path": "./{pairs.name}"}},
  "output": {{"save_dir": "./outputs", "save_name": "embed-ft"}}
}}
""",
        encoding="utf-8",
    )
    result = start(config=config)
    place = tmp_path / "outputs" / "embed-ft"
    assert result.output_dir.resolve() == place.resolve()
    assert {"held-out/dense/nDCG@10"} <= result.evaluations[0].keys() & result.evaluations[4].keys()
    model, exported = (SentenceTransformer(str(path), device="cpu") for path in (place, result.export_dir))
    before = SentenceTransformer(str(saved("dense")), device="cpu")
    vectors = model.encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(vectors, exported.encode(TEXTS, convert_to_tensor=True), atol=0, rtol=0)
    assert (vectors - before.encode(TEXTS, convert_to_tensor=True)).abs().max() > 1e-5, "it was trained"
    assert model.max_seq_length == 16
    with pytest.raises(CheckpointError, match="holds a finished run: --overwrite replaces it"):
        start(config=config)
    start("train.max_steps=1", config=config, overwrite=True)
    assert json.loads((place / "run.json").read_text())["steps"] == 1


def test_every_script_survives(start: Callable[..., RunResult], pairs: Path) -> None:
    """From scratch, the tokenizer trained on the pairs: no text becomes unknown ids."""
    from sentence_transformers import SentenceTransformer

    result = start(f"data.pairs_path={pairs}", "train.max_steps=2")
    model = SentenceTransformer(str(result.export_dir), device="cpu")
    rows = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    unknown = model.tokenizer.unk_token_id
    for row in rows:
        assert unknown not in model.tokenizer(row["anchor"])["input_ids"], row["anchor"]
    anchors, positives = (model.encode([row[key] for row in rows]) for key in ("anchor", "positive"))
    assert anchors.shape == positives.shape == (len(rows), 32)


def test_a_loss_of_theirs_on_scored_pairs(
    start: Callable[..., RunResult], saved: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "scored.jsonl"
    rows = [
        {"sentence1": f"{a} {i}", "sentence2": f"{a} 글 {i}", "score": (i % 5) / 4} for i in range(12) for a in "강橋"
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = (f"data.pairs_path={path}", f"model_id={saved('mean')}", "train.batch_size=8")
    result = start(
        *common,
        "loss={kind: sentence-transformers-loss, name: CoSENTLoss, arguments: {scale: 10}}",
    )
    metrics = [json.loads(line) for line in (result.output_dir / "metrics.jsonl").read_text().splitlines()]
    assert all("loss" in line["terms"] for line in metrics if "terms" in line)
    with pytest.raises(ConfigError, match="loss TripletLoss takes triplets"):
        start(*common, "loss={kind: sentence-transformers-loss, name: TripletLoss}")


def test_a_teacher_beside_it(start: Callable[..., RunResult], saved: Callable[..., Path], pairs: Path) -> None:
    """`teacher_model_name` and `distillation_alpha`, and a loss of theirs that reads the teacher's vectors itself."""
    common = (f"data.pairs_path={pairs}", f"model_id={saved('sqrt')}", "train.batch_size=8")
    result = start(*common, f"teacher_model_name={saved('mean')}", "distillation_alpha=0.5")
    metrics = [json.loads(line) for line in (result.output_dir / "metrics.jsonl").read_text().splitlines()]
    terms = next(line["terms"] for line in metrics if "terms" in line)
    assert len(terms) > 3, "its own terms and the teacher's"
    teacher = f"[{{name_or_path: {saved('mean')}}}]"
    start(
        *common,
        f"data={{kind: with-teacher, teachers: {teacher}, inner: {{kind: file, path: {pairs}, held_out_rows: 9}}}}",
        "loss={kind: sentence-transformers-loss, name: EmbedDistillLoss, arguments: {projection_dim: 16}}",
    )


def test_matryoshka_and_lora_around_it(
    start: Callable[..., RunResult], saved: Callable[..., Path], pairs: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    result = start(
        f"data.pairs_path={pairs}",
        f"model_id={saved('sqrt')}",
        "model={kind: lora, r: 4}",
        "loss={kind: matryoshka, dims: [16, 8], inner: {kind: multiple-negatives-ranking, scale: 10}}",
        "checkpoint={kind: matryoshka, dims: [16, 8], truncate_dim: 8, inner: {kind: sentence-transformers}}",
        "evaluation=[{kind: dimensions, dims: [16, 8]}]",
        plugins=("sbert", "mrl"),
    )
    assert SentenceTransformer(str(result.export_dir), device="cpu").encode(["강"]).shape == (1, 8)
    assert "held-out/dense@8/fp32/nDCG@10" in result.evaluations[4]


def test_a_resumed_run_ends_where_it_would_have(
    start: Callable[..., RunResult], saved: Callable[..., Path], pairs: Path
) -> None:
    """With dropout: weights, order and random numbers go on as they were."""
    import safetensors.torch

    common = (
        f"data.pairs_path={pairs}",
        f"model_id={saved('dense')}",
        "output.save_dir=out",
        "train.schedule.kind=constant",
    )
    whole = start(*common, "output.save_name=whole", "train.max_steps=4")
    start(*common, "output.save_name=parts", "train.max_steps=2")
    parts = start(*common, "output.save_name=parts", "train.max_steps=4", resume=True)
    one, other = (safetensors.torch.load_file(r.output_dir / "2_Dense" / "model.safetensors") for r in (whole, parts))
    torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_from_python_on_rows_in_memory(saved: Callable[..., Path], tmp_path: Path) -> None:
    """No file is read, and nothing is held out unless it is asked for."""
    from sentence_transformers import SentenceTransformer

    from embed_sbert import SbertRecipe, SbertTrainer

    rows = [
        {"query": f"{topic} {n}?", "pos": [f"{topic} {n}: 글"]} for topic in ("강", "橋", "rivers") for n in range(6)
    ]
    recipe = SbertRecipe.model_validate(
        {"model_id": str(saved("mean")), "train": {"batch_size": 6, "max_steps": 2}, "data": {"held_out_rows": 0}}
    )
    overrides = {"output_dir": str(tmp_path / "out"), "tracking": {"report_to": []}, "engine": {"precision": "fp32"}}
    trainer = SbertTrainer(train_dataset=rows, config=recipe, overrides=overrides, announce=lambda line: None)
    result = trainer.train()
    leave()
    assert result.steps == 2
    assert SentenceTransformer(str(result.export_dir), device="cpu").encode(["강"]).shape == (1, 16)
    with pytest.raises(ConfigError, match="tokenizer: the modules of a SentenceTransformer have their own"):
        SbertTrainer(tokenizer=object())
