"""Loading: heads, the options of the constructor, and what each broken directory says."""

from __future__ import annotations

import json

import pytest
import torch

from embed_bge.model import BGEM3Model
from embed_core.errors import CheckpointError, ConfigError

torch.set_num_threads(1)


@pytest.fixture
def directory(make_model, tmp_path):
    """A loadable directory of a transformers encoder and a tokenizer, without heads."""
    model = make_model()
    model.encoder.save_pretrained(tmp_path / "plain")
    model.tokenizer.save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def save_heads(directory, width=32, colbert=32):
    for name, rows in (("colbert_linear", colbert), ("sparse_linear", 1)):
        head = {"weight": torch.randn(rows, width), "bias": torch.randn(rows)}
        torch.save(head, directory / f"{name}.pt")


def test_heads_start_at_random_and_it_is_said(directory):
    notes: list[str] = []
    before = torch.random.get_rng_state()
    a, b = (BGEM3Model(str(directory), announce=notes.append, seed=3) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(a.colbert_linear.weight, b.colbert_linear.weight)
    other = BGEM3Model(str(directory), announce=notes.append, seed=4)
    assert not torch.equal(a.colbert_linear.weight, other.colbert_linear.weight)
    assert notes[0] == f"{directory} has no lexical and multi-vector heads: they start at random"
    assert a.training
    assert a.colbert_dim == 32
    assert BGEM3Model(str(directory), announce=notes.append, colbert_dim=8).colbert_dim == 8


def test_saved_heads_are_loaded(directory):
    save_heads(directory, colbert=8)
    model = BGEM3Model(str(directory))
    assert torch.equal(model.colbert_linear.weight, torch.load(directory / "colbert_linear.pt")["weight"])
    assert torch.equal(model.sparse_linear.bias, torch.load(directory / "sparse_linear.pt")["bias"])
    assert BGEM3Model(str(directory), unified_finetuning=False).colbert_linear is None


def test_colbert_dim_that_does_not_fit(directory):
    save_heads(directory, colbert=8)
    with pytest.raises(CheckpointError, match=r"colbert_dim 16 does not fit .*whose width is 8: set colbert_dim to 8"):
        BGEM3Model(str(directory), colbert_dim=16)


def test_heads_of_another_model(directory):
    save_heads(directory, width=16)
    with pytest.raises(
        CheckpointError, match=r"colbert_linear.pt does not fit the encoder: weight is \[32, 16\], must"
    ):
        BGEM3Model(str(directory))


def test_one_head_without_the_other(directory):
    save_heads(directory)
    (directory / "sparse_linear.pt").unlink()
    with pytest.raises(CheckpointError, match=r"one head without the other: sparse_linear\.pt is missing; copy"):
        BGEM3Model(str(directory))


def test_a_head_that_is_no_linear_layer(directory):
    save_heads(directory)
    torch.save({"w": torch.zeros(1)}, directory / "sparse_linear.pt")
    with pytest.raises(CheckpointError, match=r"sparse_linear\.pt holds no linear layer: it must be a state dict"):
        BGEM3Model(str(directory))


def test_a_head_that_cannot_be_read(directory):
    save_heads(directory)
    (directory / "sparse_linear.pt").write_bytes(b"not a file of torch")
    with pytest.raises(CheckpointError, match=r"^head .*sparse_linear\.pt cannot be read \(.*\): copy it again$"):
        BGEM3Model(str(directory))


def test_a_pooling_that_differs_from_the_training_s_is_said(directory):
    save_heads(directory)
    (directory / "bge_m3.json").write_text(json.dumps({"sentence_pooling_method": "mean"}))
    notes: list[str] = []
    BGEM3Model(str(directory), announce=notes.append)
    assert notes == [f"sentence_pooling_method is 'cls', but {directory} was trained with 'mean'"]
    (directory / "bge_m3.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"bge_m3\.json: not valid JSON .*: restore the file or delete it"):
        BGEM3Model(str(directory))


def test_an_unknown_option_and_a_wrong_value(directory):
    with pytest.raises(ConfigError, match=r"no option 'unified_finetunning': did you mean 'unified_finetuning'\?"):
        BGEM3Model(str(directory), unified_finetunning=True)
    with pytest.raises(ConfigError, match=r"^BGEM3Model: query_max_len: Input should be greater than or equal to 3$"):
        BGEM3Model(str(directory), query_max_len=0)
    with pytest.raises(ConfigError, match=r"colbert_dim 0 is no width: give a positive number, or -1"):
        BGEM3Model(str(directory), colbert_dim=0)
    with pytest.raises(ConfigError, match=r"leaves nothing to train: turn one of them round"):
        BGEM3Model(str(directory), fix_encoder=True, unified_finetuning=False)


def test_from_scratch_needs_texts():
    with pytest.raises(ConfigError, match=r"'from-scratch' needs texts to train a tokenizer on: run it as a recipe"):
        BGEM3Model("from-scratch")


def test_lengths_beyond_the_model(directory):
    with pytest.raises(ConfigError, match=r"query_max_len 513 is more than the 512 tokens"):
        BGEM3Model(str(directory), query_max_len=513)


def test_configure_takes_over_what_is_no_weight(make_model, directory):
    from embed_bge.config import BGEM3ModelConfig

    model = BGEM3Model(str(directory), announce=lambda line: None)
    weight = model.colbert_linear.weight
    model.configure(BGEM3ModelConfig(query_max_len=7, sentence_pooling_method="mean", fix_encoder=True))
    assert model.colbert_linear.weight is weight
    assert model.tokenize(["a b c d e f g h i j k"], "query", [None])[0].length == 7
    assert model.pooling == "mean"
    assert not any(p.requires_grad for p in model.encoder.parameters())
    model.configure(BGEM3ModelConfig())
    assert model.encoder.embeddings.word_embeddings.weight.requires_grad
    assert not model.encoder.pooler.dense.weight.requires_grad
    model.configure(BGEM3ModelConfig(unified_finetuning=False))
    assert not model.sparse_linear.weight.requires_grad
    alone = BGEM3Model(str(directory), unified_finetuning=False)
    with pytest.raises(ConfigError, match=r"which this model was built without: build it with unified_finetuning=True"):
        alone.configure(BGEM3ModelConfig())


def test_from_scratch_of_a_run(tmp_path, texts):
    from embed_bge.config import BGEM3ModelConfig
    from embed_core.config.context import BuildContext
    from embed_core.config.registry import Registry
    from embed_core.models.from_scratch.config import EncoderShape

    class Data:
        def texts(self):
            return iter(texts)

    def build(seed):
        context = BuildContext(
            Registry(), seed=seed, cache_dir=tmp_path, announce=lambda line: None, dataset_factory=lambda: Data()
        )
        shape = EncoderShape(vocab_size=300, hidden=32, layers=1, heads=2)
        return BGEM3ModelConfig(from_scratch=shape, passage_max_len=700).build(context)

    state = torch.random.get_rng_state()
    a, b, c = build(1), build(1), build(2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    weights = [m.encoder.embeddings.word_embeddings.weight for m in (a, c)]
    assert not torch.equal(*weights)
    assert a.training
    assert a.max_length == 700
    assert a.encoder.config.vocab_size == len(a.tokenizer) <= 300
    assert list(a.scores) == ["all", "dense", "sparse", "multi-vector"]


def test_the_former_name_of_gradient_checkpointing_still_acts(tmp_path):
    from embed_bge.config import BGEM3ModelConfig
    from embed_core.config.context import BuildContext
    from embed_core.config.registry import Registry
    from embed_core.models.from_scratch.config import EncoderShape

    lines = []
    context = BuildContext(Registry(), cache_dir=tmp_path, announce=lines.append, dataset_factory=lambda: Texts())
    shape = EncoderShape(vocab_size=300, hidden=32, layers=1, heads=2)
    model = BGEM3ModelConfig(from_scratch=shape, gradient_checkpointing=True).build(context)
    assert model.encoder.is_gradient_checkpointing
    assert lines[-1] == "model.gradient_checkpointing is now engine.gradient_checkpointing: please set that one"


class Texts:
    """A dataset to train a tokenizer on."""

    def texts(self):
        return iter(["one text of some words", "and another one with others"] * 20)
