"""The model kind `transformers-encoder`: pooled vectors, what is read beside a model, and the way back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from embed_core.config.context import BuildContext
from embed_core.errors import CheckpointError, ConfigError
from embed_core.models.transformers_encoder.build import read_saved
from embed_core.models.transformers_encoder.model import TransformersEncoder
from embed_core.plugin.manager import activate
from embed_core.testing import build, check_checkpointer, check_model, encode, tiny_dataset
from embed_core.testing.fixtures import embed_context, embed_registry

__all__ = ["embed_context", "embed_registry"]
torch.set_num_threads(1)
SHAPE = {"vocab_size": 200, "hidden": 16, "layers": 1, "heads": 2}
TEXTS = ["Where does the badger live?", "It digs.", "Worms, beetles and fallen fruit are what the badger eats. " * 3]
LENGTHS = {"query_max_length": 24, "passage_max_length": 40}


@pytest.fixture
def made(embed_context: Callable[..., BuildContext]) -> Callable[..., TransformersEncoder]:
    """``made(key=value)``: the built model; ``lines`` has what was announced."""
    registry = activate([])[1]

    def make(**options: Any) -> TransformersEncoder:
        context = embed_context(registry, tiny_dataset())
        lines: list[str] = []
        context.announce = lines.append
        options = {"kind": "transformers-encoder", "from_scratch": SHAPE, **LENGTHS, **options}
        model: TransformersEncoder = build(registry, "model", options, context)
        model.lines = lines  # type: ignore[assignment]
        return model

    return make


@pytest.mark.parametrize("pooling", ["cls", "mean", "last_token"])
def test_it_keeps_the_contract_of_models(pooling: str, made: Callable[..., Any]) -> None:
    model = made(pooling=pooling, normalize=pooling != "cls")
    check_model(model, TEXTS, role="passage")
    assert model.tokenize([TEXTS[2]], "query", [None])[0].length == 24
    assert model.tokenize([TEXTS[2]], "passage", [None])[0].length == 40


@pytest.mark.parametrize("pooling", ["cls", "mean", "last_token"])
def test_the_export_comes_back_here_and_in_sentence_transformers(
    pooling: str, made: Callable[..., Any], tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    registry = activate([])[1]
    checkpointer = build(registry, "checkpoint", {"kind": "transformers"}, BuildContext(registry))
    model = made(pooling=pooling, query_prompt="Q: ", passage_prompt="P: ")
    out = tmp_path / "out"
    # Neither pooling nor prompts are said again: they are read from the files.
    check_checkpointer(checkpointer, model, lambda path: made(name_or_path=str(path)), TEXTS, out)
    peer = SentenceTransformer(str(out), device="cpu")
    for role, name in (("query", "query"), ("passage", "document")):
        ours = encode(model, TEXTS[:2], role).dense_ND
        theirs = peer.encode(TEXTS[:2], prompt_name=name, convert_to_tensor=True)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    _, report = AutoModel.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"]
    again = made(name_or_path=str(out), pooling="mean" if pooling == "cls" else "cls")
    assert again.lines == [f"pooling is {again.pooling!r}, but {out} was made with {pooling!r}"]


def test_the_same_seed_gives_the_same_model(made: Callable[..., Any]) -> None:
    first, second = made(), made()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_model_directory_saved_by_sentence_transformers_itself(made: Callable[..., Any], tmp_path: Path) -> None:
    """Its own names of the ways to pool, whatever version wrote them."""
    from sentence_transformers import SentenceTransformer, models

    made().encoder.save_pretrained(tmp_path / "base")
    made().tokenizer.save_pretrained(tmp_path / "base")
    transformer = models.Transformer(str(tmp_path / "base"))
    for theirs, ours in (("cls", "cls"), ("mean", "mean"), ("lasttoken", "last_token")):
        pooling = models.Pooling(transformer.get_embedding_dimension(), pooling_mode=theirs)
        SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(tmp_path / theirs))
        assert read_saved(tmp_path / theirs).pooling == ours
        assert made(name_or_path=str(tmp_path / theirs)).pooling == ours


def test_a_bare_transformers_directory_is_pooled_by_the_mean(made: Callable[..., Any], tmp_path: Path) -> None:
    model = made()
    model.encoder.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    assert made(name_or_path=str(tmp_path)).pooling == "mean"


def test_the_pooler_that_nothing_reads_is_not_trained(made: Callable[..., Any]) -> None:
    names = [name for name, value in made().named_parameters() if not value.requires_grad]
    assert names == ["encoder.pooler.dense.weight", "encoder.pooler.dense.bias"]


def test_faults(made: Callable[..., Any], tmp_path: Path) -> None:
    model = made()
    model.encoder.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    place = str(tmp_path)
    with pytest.raises(
        ConfigError, match=r"passage_max_length 600 is more than the 512 tokens .*: set it to 512 or less"
    ):
        made(name_or_path=place, passage_max_length=600)
    model.tokenizer.add_tokens([f"<extra{n}>" for n in range(300)])
    model.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"the tokenizer has .* ids, the encoder of .* embeddings for"):
        made(name_or_path=place)
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": kind} for kind in ("Transformer", "Dense")]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match="has a module Dense, which `transformers-encoder` would leave out"):
        made(name_or_path=place)
    (tmp_path / "modules.json").write_text(json.dumps(modules[:1]))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(CheckpointError, match="was made with pooling max_tokens; offered are cls, mean, last_token"):
        made(name_or_path=place)
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"modules\.json: cannot be read"):
        made(name_or_path=place)
