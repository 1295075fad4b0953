"""The ``transformers`` layout: any encoder with one dense vector, and the model card."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from torch import nn

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.errors import CheckpointError
from embed_core.export.config import TransformersCheckpointConfig
from embed_core.export.model_card import CardText, RunCard, render
from embed_core.models.from_scratch.config import EncoderShape
from embed_core.models.from_scratch.unigram import unigram_tokenizer
from embed_core.text.pooling import POOLINGS, pool

torch.set_num_threads(1)
TEXTS = ["one text", "another one, somewhat longer than the first", "x"]

CARD = RunCard(
    name="my-run",
    base_model="BAAI/bge-m3",
    config={"train": {"epochs": 1.0}, "evaluation": ({"kind": "retrieval"},)},
    data={"name": "pydocs", "rows": 10000, "fingerprint": "abc"},
    evaluations={
        0: {"a/b/dense/nDCG@10": 0.25, "a/b/dense/RR@10": 0.5, "a/b/all/nDCG@10": 0.3},
        2: {"a/b/dense/nDCG@10": 0.1},
        4: {"a/b/dense/nDCG@10": 0.75, "a/b/dense/RR@10": 0.8, "a/b/all/nDCG@10": 0.9, "c/all/nDCG@10": 0.2},
    },
    command="embed run --plugin x --set note='```'",
    steps=1234,
    versions={"embed": "0.1.0", "torch": "2.13.0"},
)


class Model(nn.Module):
    """The least that the layout asks for, around a BERT, whose pooler and position ids differ from XLM-RoBERTa's."""

    def __init__(self, tmp_path, pooling, normalize):
        from transformers import BertConfig, BertModel

        super().__init__()
        self.tokenizer = unigram_tokenizer(TEXTS, 100, tmp_path, lambda line: None)
        shape = EncoderShape(hidden=16, layers=1, heads=2)
        torch.manual_seed(0)
        self.encoder = BertModel(
            BertConfig(
                vocab_size=len(self.tokenizer),
                hidden_size=shape.hidden,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
                pad_token_id=1,
            )
        ).eval()
        self.pooling, self.normalize, self.max_length, self.prompts = pooling, normalize, 40, {"query": "Q: "}

    def dense(self, texts):
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        with torch.no_grad():
            out = pool(self.encoder(**batch).last_hidden_state, batch["attention_mask"], self.pooling)
        return nn.functional.normalize(out, dim=-1) if self.normalize else out


def export(model, directory):
    directory.mkdir()
    context = BuildContext(Registry())
    TransformersCheckpointConfig().build(context).export(model, model.state_dict(), directory, CARD)
    return directory


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_sentence_transformers_and_auto_model_load_it(tmp_path, pooling, normalize):
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    model = Model(tmp_path, pooling, normalize)
    out = export(model, tmp_path / "out")
    peer = SentenceTransformer(str(out), device="cpu")
    assert peer.max_seq_length == 40
    theirs = peer.encode(TEXTS, prompt_name="document", convert_to_tensor=True)
    torch.testing.assert_close(theirs, model.dense(TEXTS), rtol=0, atol=1e-5)
    theirs = peer.encode(TEXTS, prompt_name="query", convert_to_tensor=True)
    torch.testing.assert_close(theirs, model.dense(["Q: " + text for text in TEXTS]), rtol=0, atol=1e-5)
    assert (out / "2_Normalize").is_dir() == normalize
    _, report = AutoModel.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_training_in_bf16_leaves_an_fp32_config(tmp_path):
    model = Model(tmp_path, "cls", True)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.to(torch.bfloat16)
    (tmp_path / "out").mkdir()
    TransformersCheckpointConfig().build(BuildContext(Registry())).export(model, state, tmp_path / "out", CARD)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    from transformers import AutoModel

    loaded = AutoModel.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.embeddings.word_embeddings.weight, state["encoder.embeddings.word_embeddings.weight"])


def test_a_model_that_lacks_what_the_layout_needs(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"needs a model with encoder, tokenizer, .*, which Linear lacks: use the"
    ):
        export(nn.Linear(1, 1), tmp_path / "out")


def test_the_weights_come_from_the_state_alone(tmp_path):
    model = Model(tmp_path, "cls", True)
    state = dict(model.state_dict())
    del state["encoder.pooler.dense.bias"]
    with pytest.raises(CheckpointError, match=r"lack 'encoder\.pooler\.dense\.bias': the training state is incomplete"):
        TransformersCheckpointConfig().build(BuildContext(Registry())).export(model, state, tmp_path, CARD)


def test_the_card_holds_the_facts_of_the_run():
    text = render(CARD, CardText(title="T", tags=("x",), notes=("Mind this.",)))
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == "sentence-transformers"
    assert front["tags"] == ["sentence-transformers", "x"]
    assert front["base_model"] == "BAAI/bge-m3"
    assert "- Mind this." in text
    assert "### a/b (step 0 → step 4)" in text
    assert "| scored by | nDCG@10 | RR@10 |\n|---|---|---|\n" in text
    assert "| dense | 0.2500 → 0.7500 | 0.5000 → 0.8000 |\n| all | 0.3000 → 0.9000 |  |" in text
    assert "### c (step 0 → step 4)" in text
    assert "| all | 0.2000 |" in text
    assert "Started from `BAAI/bge-m3`, 1,234 optimizer steps, with embed 0.1.0, torch 2.13.0." in text
    assert "- rows: 10,000" in text
    assert "````sh\nembed run --plugin x --set note='```'\n````" in text
    config = text.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(config) == {"train": {"epochs": 1.0}, "evaluation": [{"kind": "retrieval"}]}


def test_the_card_of_a_run_that_was_not_evaluated():
    card = RunCard("r", "from-scratch", {}, {}, {}, "c", 1, {})
    text = render(card, CardText(title="T"))
    assert "Not evaluated." in text
    assert "base_model" not in text.split("---\n")[1]
    once = RunCard("r", "from-scratch", {}, {}, {3: {"e/all/RR@10": 0.5}}, "c", 1, {})
    assert "### e (step 3)\n\n| scored by | RR@10 |\n|---|---|\n| all | 0.5000 |" in render(once, CardText(title="T"))


@pytest.mark.parametrize("side", ["left", "right"])
def test_pooling_against_one_text_at_a_time(side):
    torch.manual_seed(0)
    lengths, width = [1, 3, 5], 5
    texts = [torch.randn(n, 4, dtype=torch.float64) for n in lengths]
    states = torch.full((3, width, 4), 1e3, dtype=torch.float64)
    mask = torch.zeros(3, width, dtype=torch.int64)
    for n, text in enumerate(texts):
        place = slice(0, len(text)) if side == "right" else slice(width - len(text), width)
        states[n, place], mask[n, place] = text, 1
    expected = {"cls": lambda t: t[0], "mean": lambda t: t.mean(0), "last_token": lambda t: t[-1]}
    for method in POOLINGS:
        torch.testing.assert_close(pool(states, mask, method), torch.stack([expected[method](t) for t in texts]))
