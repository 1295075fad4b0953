"""What leaves: a plain sentence-transformers directory, the same vectors in its own client and in transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sbert_parts import CHAINS, TEXTS, build, context

from embed_core.errors import CheckpointError
from embed_core.models.from_scratch.encoder import seeded
from embed_core.models.lora.config import LoraModelConfig
from embed_core.testing import check_checkpointer, encode, sample_card
from embed_core.testing.tiny import TinyModel
from embed_sbert.checkpoint import SentenceTransformersCheckpointer
from embed_sbert.config import SentenceTransformersModelConfig
from embed_sbert.publish import is_asked_for, publish

PROMPTS = {"query": "질문: ", "document": "", "other": "x "}


def stirred(model: Any) -> Any:
    """Its weights are no longer those it was loaded with."""
    with torch.no_grad(), seeded(5):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def state_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def export(model: Any, directory: Path) -> Path:
    directory.mkdir()
    SentenceTransformersCheckpointer().export(model, state_of(model), directory, sample_card())
    return directory


@pytest.mark.parametrize("chain", CHAINS)
def test_loads_with_the_same_vectors(chain: str, saved: Callable[..., Path], tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = stirred(build(saved(chain, prompts=PROMPTS, similarity_fn_name="dot")))
    loaded = SentenceTransformer(str(export(model, tmp_path / "out")), device="cpu")
    for role, call in (("query", loaded.encode_query), ("passage", loaded.encode_document)):
        wanted = encode(model, TEXTS, role).dense_ND  # type: ignore[arg-type]
        # One by one: a CNN of theirs sees the padding of a batch.
        found = torch.stack([call(text, convert_to_tensor=True) for text in TEXTS])
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize("chain", ["mean", "dense", "static", "words", "asymmetric"])
def test_promises_of_a_checkpointer(chain: str, saved: Callable[..., Path], tmp_path: Path) -> None:
    check_checkpointer(SentenceTransformersCheckpointer(), stirred(build(saved(chain))), build, TEXTS, tmp_path / "out")


def test_the_encoder_is_a_transformers_model(saved: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    model = stirred(build(saved("mean", similarity_fn_name="dot")))
    out = export(model, tmp_path / "out")
    encoder, tokenizer = AutoModel.from_pretrained(out).eval(), AutoTokenizer.from_pretrained(out)
    inputs = tokenizer(TEXTS, padding=True, truncation=True, max_length=24, return_tensors="pt")
    with torch.no_grad():
        states = encoder(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    torch.testing.assert_close((states * mask).sum(1) / mask.sum(1), encode(model, TEXTS).dense_ND, atol=1e-5, rtol=0)
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    assert json.loads((out / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_settings_are_kept(saved: Callable[..., Path], tmp_path: Path) -> None:
    source = saved("dense", prompts=PROMPTS, default_prompt_name="other", similarity_fn_name="euclidean")
    out = export(build(source, max_seq_length=12, query_prompt="neu: "), tmp_path / "out")
    written = json.loads((out / "config_sentence_transformers.json").read_text())
    assert written["prompts"] == {**PROMPTS, "query": "neu: "}
    assert (written["default_prompt_name"], written["similarity_fn_name"]) == ("other", "euclidean")
    before, after = (json.loads((path / "modules.json").read_text()) for path in (source, out))
    assert before == after
    assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == 12
    card = (out / "README.md").read_text()
    assert "Modules: Transformer → Pooling → Dense → Dropout → Normalize. Similarity: euclidean." in card
    assert "Texts are cut at 12 tokens." in card
    assert "Prompts: `query`, `other`." in card
    assert "library_name: sentence-transformers" in card
    assert not list(out.rglob("*.bin"))


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"writes models of that kind, not TinyModel: use the `checkpoint.kind`"):
        SentenceTransformersCheckpointer().export(TinyModel(), {}, tmp_path, sample_card())


def test_lacking_weights_are_named(saved: Callable[..., Path], tmp_path: Path) -> None:
    model = build(saved("dense"))
    state = state_of(model)
    state.pop("sentence_transformer.2.linear.bias")
    with pytest.raises(CheckpointError, match=r"the weights to export lack '2.linear.bias'"):
        SentenceTransformersCheckpointer().export(model, state, tmp_path, sample_card())


@pytest.mark.parametrize("chain", ["dense", "decoder", "router"])
def test_lora_merges(chain: str, saved: Callable[..., Path], tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    inner = SentenceTransformersModelConfig(name_or_path=str(saved(chain, similarity_fn_name="dot")))
    lines: list[str] = []
    model = LoraModelConfig(inner=inner, r=4).build(context(lines))
    assert lines[-1].startswith("LoRA r 4, alpha 32: trainable ")
    with torch.no_grad(), seeded(6):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    model.eval()
    base = encode(inner.build(context()), TEXTS).dense_ND
    adapted = encode(model, TEXTS).dense_ND
    assert base is not None
    assert adapted is not None
    assert (adapted - base).abs().max() > 1e-3
    out = tmp_path / "out"
    out.mkdir()
    model.export_with(SentenceTransformersCheckpointer(), state_of(model), out, sample_card())
    loaded = SentenceTransformer(str(out), device="cpu")
    torch.testing.assert_close(loaded.encode_query(TEXTS, convert_to_tensor=True), adapted, atol=1e-5, rtol=0)


def test_the_finished_model_in_the_output_directory(saved: Callable[..., Path], tmp_path: Path) -> None:
    """Its files are the run's and the model's own; a second run takes the place of the first."""
    from sentence_transformers import SentenceTransformer

    run = tmp_path / "run"
    run.mkdir()
    assert not is_asked_for(run)
    for asked, checkpoint in (
        (False, "{kind: sentence-transformers}"),
        (False, "{kind: transformers}"),
        (True, "{kind: sentence-transformers, in_output_dir: true}"),
        (True, "{kind: matryoshka, inner: {kind: sentence-transformers, in_output_dir: true}}"),
    ):
        (run / "config.yaml").write_text(f"checkpoint: {checkpoint}\n")
        assert is_asked_for(run) is asked
    for number in range(2):
        model = build(saved("dense"))
        if number:
            stirred(model)
        publish(run, export(model, tmp_path / f"model-{number}"))
        found = SentenceTransformer(str(run), device="cpu").encode(TEXTS, convert_to_tensor=True)
        torch.testing.assert_close(found, encode(model, TEXTS).dense_ND, atol=1e-5, rtol=0)
    assert (run / "config.yaml").exists()
