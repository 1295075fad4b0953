"""``BGETrainer`` and a model that is passed to it agree on what the config says."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from embed_bge import BGETrainer, BGETrainerConfig
from embed_core.errors import CheckpointError, ConfigError

torch.set_num_threads(1)


def test_the_model_takes_over_what_the_config_sets(make_model):
    model = make_model(query_max_len=40, passage_instruction_for_retrieval="P: ")
    weight = model.sparse_linear.weight
    config = BGETrainerConfig(query_max_len=9, query_instruction_for_retrieval="Q: ", model={"fix_encoder": True})
    trainer = BGETrainer(model=model, config=config)
    assert trainer.model is model
    assert model.sparse_linear.weight is weight
    assert (model.config.query_max_len, model.config.passage_max_len) == (9, 192)
    assert model.prompts == {"query": "Q: ", "document": "P: "}
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert model.tokenize(["one two three four five six seven"], "query", [None])[0].length == 9


def test_the_defaults_are_those_of_the_model_that_is_passed(make_model):
    model = make_model()
    model.configure(model.config.model_copy(update={"name_or_path": "some/model"}))
    trainer = BGETrainer(model=model, config=BGETrainerConfig(temperature=0.1))
    compiled = trainer.config.compile(1)
    assert compiled["model"]["name_or_path"] == "some/model"
    assert compiled["train"]["optimizer"]["learning_rate"] == 1e-5


def test_a_tokenizer_that_is_passed_is_used(make_model, texts, tmp_path):
    model = make_model()
    model.tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_special_tokens({"unk_token": "<unk>"})
    expected = tokenizer(texts)["input_ids"]
    trainer = BGETrainer(model=model, tokenizer=tokenizer, train_dataset=[{"query": "a", "pos": ["b"]}])
    assert trainer.model.tokenizer is tokenizer
    assert [e.data["input_ids"] for e in model.tokenize(texts, "passage", [None] * len(texts))] == expected
    tokenizer.add_tokens([f"new{n}" for n in range(400)])
    with pytest.raises(
        CheckpointError, match=r"the tokenizer has \d+ ids, the encoder of 'from-scratch' embeddings for"
    ):
        BGETrainer(model=model, tokenizer=tokenizer)


def test_heads_that_the_config_needs_and_the_model_lacks(make_model):
    model = make_model(unified_finetuning=False)
    with pytest.raises(ConfigError, match=r"unified_finetuning: true needs the lexical and multi-vector heads"):
        BGETrainer(model=model, config=BGETrainerConfig())
    BGETrainer(model=model, config=BGETrainerConfig(unified_finetuning=False))
