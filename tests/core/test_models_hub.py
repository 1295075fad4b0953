"""What reading a model directory says when it cannot."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from embed_core.errors import CheckpointError
from embed_core.models.from_scratch.config import EncoderShape
from embed_core.models.from_scratch.encoder import xlm_roberta
from embed_core.models.hub import load_encoder, load_tokenizer, model_directory

torch.set_num_threads(1)


@pytest.fixture
def directory(tmp_path):
    encoder = xlm_roberta(40, EncoderShape(vocab_size=40, hidden=8, layers=1, heads=1), max_length=20, seed=0)
    encoder.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def fails(call, *arguments) -> str:
    with pytest.raises(CheckpointError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_directory_is_itself(directory, monkeypatch):
    assert model_directory(str(directory)) == directory
    monkeypatch.chdir(directory.parent)
    assert load_encoder(model_directory("model")).training


def test_a_directory_without_weights(directory):
    (directory / "model.safetensors").unlink()
    message = fails(model_directory, str(directory))
    assert message.startswith(f"model directory {str(directory)!r} has no weights: none of model.safetensors, ")
    assert message.endswith("copy the model's weights into it or name another directory")


def test_a_directory_without_config(directory):
    (directory / "config.json").unlink()
    assert "has no config.json: it is no transformers model" in fails(model_directory, str(directory))


def test_a_directory_that_does_not_exist(directory):
    wrong = directory.with_name("modle")
    assert fails(model_directory, str(wrong)) == f"model directory {str(wrong)!r} does not exist: did you mean 'model'?"
    message = fails(model_directory, "/no/such/place")
    assert message == "model directory '/no/such/place' does not exist: /no/such does not exist either"
    assert "does not exist" in fails(model_directory, "./nowhere")


def test_a_file(directory):
    message = fails(model_directory, str(directory / "config.json"))
    assert message.endswith("config.json' is a file: give the directory that holds config.json")


def test_a_hub_model_that_cannot_be_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = fails(model_directory, "nobody/no-such-model")
    assert message.startswith(
        "model 'nobody/no-such-model' is no directory here and cannot be fetched from the model hub"
    )
    assert message.endswith("]: give a local model directory, or 'from-scratch'")
    assert "did you mean" not in message
    assert "(did you mean 'from-scratch'?)" in fails(model_directory, "from-scrach")
    assert "at revision 'v2'" in fails(model_directory, "nobody/no-such-model", "v2")


def test_weights_that_are_damaged(directory):
    (directory / "model.safetensors").write_bytes(b"\x00" * 20)
    assert "cannot be loaded: SafetensorError" in fails(load_encoder, directory)


def test_weights_of_another_config(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    message = fails(load_encoder, directory)
    assert "lacks 16 weights of XLMRobertaModel, 'encoder.layer.1.attention.output.LayerNorm.bias' first" in message
    assert message.endswith("its config.json and its weights do not belong together")


def test_a_missing_pooler_is_drawn_from_the_seed(directory):
    path = directory / "model.safetensors"
    weights = {key: tensor for key, tensor in load_file(path).items() if not key.startswith("pooler.")}
    save_file(weights, path, metadata={"format": "pt"})
    state = torch.random.get_rng_state()
    a, b = load_encoder(directory, seed=5), load_encoder(directory, seed=5)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(a.pooler.dense.weight, b.pooler.dense.weight)
    assert not torch.equal(a.pooler.dense.weight, load_encoder(directory, seed=6).pooler.dense.weight)


def test_half_precision_weights_load_as_fp32(directory):
    path = directory / "model.safetensors"
    save_file({k: v.to(torch.bfloat16) for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    assert load_encoder(directory).dtype == torch.float32


def test_no_tokenizer_and_a_broken_one(directory):
    assert "has no tokenizer: copy its tokenizer.json into it" in fails(load_tokenizer, directory)
    (directory / "tokenizer.json").write_text("{")
    assert "cannot be loaded" in fails(load_tokenizer, directory)
