"""The model: ms-swift's vectors and tokens, whatever the padding; instructions and ends of texts that stay."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from embed_core.acceleration.activation_checkpointing import enable_activation_checkpointing
from embed_core.acceleration.varlen_check import _packing, can_pack
from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.errors import CheckpointError, ConfigError
from embed_core.models.from_scratch.byte_level import END_OF_TEXT, SMALLEST, byte_level_tokenizer
from embed_core.testing import check_model
from embed_qwen import swift
from embed_qwen.build import random_decoder
from embed_qwen.model import Qwen3EmbeddingModel
from embed_qwen.model_config import Qwen3EmbeddingConfig, Qwen3Shape
from embed_qwen.prompts import WEB_SEARCH, instruction_of

torch.set_num_threads(1)

Make = Callable[..., Qwen3EmbeddingModel]
INSTRUCTION = "Find the answer"


@pytest.fixture(scope="module")
def model(make_model: Make) -> Qwen3EmbeddingModel:
    return make_model(instruction=INSTRUCTION)


def vectors(model: Any, texts: Sequence[str], role: Any = "passage") -> Tensor:
    with torch.no_grad():
        encoded = model.tokenize(texts, role, [None] * len(texts))
        dense: Tensor = model(**model.collate(encoded)).dense_ND
    return dense


def ids(model: Any, text: str, role: Any = "query", prompt: str | None = None) -> list[int]:
    return list(model.tokenize([text], role, [prompt])[0].data["input_ids"])


def test_it_is_a_model(model: Qwen3EmbeddingModel, texts: list[str]) -> None:
    check_model(model, texts)


def test_vectors_are_those_of_swift(model: Qwen3EmbeddingModel, texts: list[str], base: Path) -> None:
    """Its pooling hook over its own left-padded tokens."""
    loaded = swift.load(base)
    batch = loaded.tokenizer(texts, padding=True, return_tensors="pt")
    assert loaded.tokenizer.padding_side == "left"
    with torch.no_grad():
        theirs = loaded.causal(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    torch.testing.assert_close(vectors(model, texts), theirs["last_hidden_state"], rtol=0, atol=1e-5)


def test_tokens_are_those_of_swifts_template(model: Qwen3EmbeddingModel, base: Path) -> None:
    """With the prompt in the user's text: a system message would get a space of its own."""
    from swift.template import get_template

    template = get_template(swift.load(base).tokenizer, template_type="qwen3_emb", max_length=64)
    template.set_mode("train")
    row = {
        "messages": [{"role": "user", "content": f"Instruct: {INSTRUCTION}\nQuery:Which token?"}],
        "positive_messages": [[{"role": "user", "content": "The last one"}]],
    }
    theirs = template.encode(row)
    assert theirs["anchor_input_ids"] == ids(model, "Which token?")
    assert theirs["positive_input_ids"] == ids(model, "The last one", "passage")


def test_padding_on_either_side_changes_nothing(model: Qwen3EmbeddingModel, texts: list[str]) -> None:
    encoded = model.tokenize(texts, "passage", [None] * len(texts))
    right = model.collate(encoded)
    shifts = (right["attention_mask"].shape[1] - right["attention_mask"].sum(1)).tolist()
    left = {name: torch.stack([row.roll(n) for row, n in zip(right[name], shifts, strict=True)]) for name in right}
    assert not left["attention_mask"][:, 0].all()
    alone = torch.cat([model(**model.collate([one])).dense_ND for one in encoded])
    for inputs in (right, left):
        torch.testing.assert_close(model(**inputs).dense_ND, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["packing", "sdpa"])
def test_packed_texts_do_not_see_each_other(make_model: Make, texts: list[str], attention: str) -> None:
    """As flash-attention is told, and by the mask that transformers makes of positions."""
    model = make_model()
    alone = torch.cat([vectors(model, [text]) for text in texts])
    encoded = model.tokenize(texts, "passage", [None] * len(texts))
    with torch.no_grad():
        if attention == "packing":
            assert can_pack(model)
            with _packing(model):
                found = model(**model.collate(encoded)).dense_ND
        else:
            model.packed = True
            found = model(**model.collate(encoded)).dense_ND
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)


def test_recomputed_layers_have_the_same_gradient(make_model: Make, texts: list[str]) -> None:
    def gradients(model: Qwen3EmbeddingModel) -> dict[str, Tensor]:
        model.train()
        encoded = model.tokenize(texts, "query", [None] * len(texts))
        dense_ND = model(**model.collate(encoded)).dense_ND
        assert dense_ND is not None
        (dense_ND * torch.linspace(-1, 1, dense_ND.shape[1])).sum().backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    plain, again = make_model(), make_model()
    enable_activation_checkpointing(again)
    assert again.encoder.is_gradient_checkpointing
    wanted, found = gradients(plain), gradients(again)
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


def test_the_embedding_of_the_last_token_is_trained(make_model: Make, texts: list[str], base: Path) -> None:
    """ms-swift calls it padding, whose embedding would have no gradient."""
    model = make_model()
    dense_ND = model(**model.collate(model.tokenize(texts, "passage", [None] * len(texts)))).dense_ND
    assert dense_ND is not None
    dense_ND[:, 0].sum().backward()
    end = model.tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    assert model.encoder.embed_tokens.weight.grad[end].abs().max() > 0
    assert model.encoder.config.pad_token_id == json.loads((base / "config.json").read_text()).get("pad_token_id")


def test_queries_carry_the_instruction_in_the_official_form(model: Qwen3EmbeddingModel) -> None:
    assert model.tokenizer.decode(ids(model, "why?")) == f"Instruct: {INSTRUCTION}\nQuery:why?{END_OF_TEXT}"
    assert model.tokenizer.decode(ids(model, "why?", prompt="Translate")) == (
        f"Instruct: Translate\nQuery:why?{END_OF_TEXT}"
    )
    assert model.tokenizer.decode(ids(model, "why?", prompt="")) == f"why?{END_OF_TEXT}"
    assert model.tokenizer.decode(ids(model, "so", "passage")) == f"so{END_OF_TEXT}"


OFFICIAL = "Instruct: Translate\nQuery:"


@pytest.mark.parametrize(
    ("text", "prompt", "whole"),
    [
        (f"{OFFICIAL}why?", None, f"{OFFICIAL}why?"),
        (f"{OFFICIAL} why?", "Find", f"{OFFICIAL} why?"),
        ("why?", OFFICIAL, f"{OFFICIAL}why?"),
        ("why?", f"{OFFICIAL} ", f"{OFFICIAL}why?"),
        ("Instruct: the class", None, f"Instruct: {INSTRUCTION}\nQuery:Instruct: the class"),
    ],
)
def test_an_instruction_that_is_there_already_is_not_put_twice(
    model: Qwen3EmbeddingModel, text: str, prompt: str | None, whole: str
) -> None:
    """ms-swift's rows have it in the user's text, or in the system message."""
    assert model.tokenizer.decode(ids(model, text, prompt=prompt)) == whole + END_OF_TEXT


def test_an_instruction_may_be_given_in_the_official_form(make_model: Make) -> None:
    """As sentence-transformers' files have it."""
    model = make_model(instruction=OFFICIAL)
    assert model.prompts == {"query": OFFICIAL}
    assert model.tokenizer.decode(ids(model, "why?")) == f"{OFFICIAL}why?{END_OF_TEXT}"


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_is_too_long_keeps_instruction_and_end(make_model: Make, base: Path, tmp_path: Path, side: str) -> None:
    """Also of a tokenizer that was saved to cut on the left."""
    shutil.copytree(base, tmp_path / "m")
    path = tmp_path / "m" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncation_side": side}))
    model = make_model(name_or_path=str(tmp_path / "m"), instruction="Find it", query_max_length=40)
    found = ids(model, "long " * 200)
    assert len(found) == 40
    decoded = model.tokenizer.decode(found)
    assert decoded.startswith("Instruct: Find it\nQuery:long ")
    assert decoded.endswith(END_OF_TEXT)
    assert len(ids(model, "long " * 200, "passage")) == 64


@pytest.mark.parametrize(
    ("saved", "given", "instruction"),
    [
        (None, None, WEB_SEARCH),
        ("Instruct: Find\nQuery:", None, "Find"),
        ("", None, ""),
        ("Instruct: Find\nQuery:", "Other", "Other"),
        ("Instruct: Find\nQuery:", "", ""),
    ],
)
def test_the_instruction_is_given_or_saved_or_qwens(
    make_model: Make, base: Path, tmp_path: Path, saved: str | None, given: str | None, instruction: str
) -> None:
    shutil.copytree(base, tmp_path / "m")
    if saved is not None:
        facts = {"prompts": {"query": saved, "document": ""}}
        (tmp_path / "m" / "config_sentence_transformers.json").write_text(json.dumps(facts))
    model = make_model(name_or_path=str(tmp_path / "m"), instruction=given, query_max_length=200)
    assert model.config.instruction == instruction
    assert model.prompts == ({"query": f"Instruct: {instruction}\nQuery:"} if instruction else {})


def test_a_saved_prompt_of_another_form_is_announced(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "m")
    (tmp_path / "m" / "config_sentence_transformers.json").write_text('{"prompts": {"query": "query: "}}')
    lines: list[str] = []
    context = BuildContext(registry=Registry(), announce=lines.append)
    model = Qwen3EmbeddingConfig(name_or_path=str(tmp_path / "m"), query_max_length=200, passage_max_length=64).build(
        context
    )
    assert model.config.instruction == WEB_SEARCH
    assert lines == [
        f"{tmp_path / 'm' / 'config_sentence_transformers.json'}: the query prompt 'query: ' is not of the form "
        f"'Instruct: TASK\\nQuery:', so queries get {WEB_SEARCH!r} (model.instruction sets another)"
    ]


def test_instruction_of_a_prefix() -> None:
    assert instruction_of("Instruct: a\nb\nQuery:") == "a\nb"
    assert instruction_of("Instruct: a\nQuery: ") is None
    assert instruction_of("Instruct: \nQuery:") is None


def test_a_plain_qwen3_gets_its_end_of_text(make_model: Make, base: Path, tmp_path: Path) -> None:
    """Its tokenizer closes no text, and its weights have the language model's names."""
    shutil.copytree(base, tmp_path / "m")
    path = tmp_path / "m" / "tokenizer.json"
    facts = json.loads(path.read_text())
    facts["post_processor"] = facts["post_processor"]["processors"][0]
    path.write_text(json.dumps(facts))
    weights = load_file(tmp_path / "m" / "model.safetensors")
    save_file({f"model.{k}": v for k, v in weights.items()}, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    model, closing = make_model(name_or_path=str(tmp_path / "m")), make_model()
    assert ids(model, "why?") == ids(closing, "why?")
    torch.testing.assert_close(vectors(model, ["so"]), vectors(closing, ["so"]))


def test_lengths_must_fit(make_model: Make) -> None:
    with pytest.raises(ConfigError, match=r"passage_max_length 300 is more than the 256 tokens .* set it to 256 or"):
        make_model(passage_max_length=300)
    with pytest.raises(ConfigError, match=r"query_max_length 16 leaves no room for a question: the instruction 'Given"):
        make_model(query_max_length=16, instruction=None)


def test_a_directory_must_be_whole(make_model: Make, base: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(base, tmp_path / name))

    weights = load_file(base / "model.safetensors")
    lacking = {k: v for k, v in weights.items() if k != "norm.weight"}
    save_file(lacking, copy("lacking") / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights of Qwen3Model, 'norm.weight' first"):
        make_model(name_or_path=str(tmp_path / "lacking"))
    (copy("broken") / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"cannot be loaded by ms-swift as qwen3_emb \(.*Safetensor"):
        make_model(name_or_path=str(tmp_path / "broken"))
    with pytest.raises(CheckpointError, match=r"model directory '/nowhere/at-all' does not exist"):
        make_model(name_or_path="/nowhere/at-all")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, r"a model of type 'bert', not 'qwen3': use the plugin of its family"),
        (
            {"auto_map": {"AutoModel": "evil.Model"}},
            r"Python code of its own \(auto_map\): set trust_remote_code: true",
        ),
    ],
)
def test_models_of_another_kind_are_refused(
    make_model: Make, base: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    shutil.copytree(base, tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        make_model(name_or_path=str(tmp_path / "m"))


def test_from_scratch_is_the_same_for_the_same_seed(texts: list[str], tmp_path: Path) -> None:
    shape = Qwen3Shape(vocab_size=300, hidden=32, layers=1, heads=2, key_value_heads=1)
    config = Qwen3EmbeddingConfig(from_scratch=shape, query_max_length=128, passage_max_length=64)

    def built(seed: int, order: int) -> Qwen3EmbeddingModel:
        dataset: Any = SimpleNamespace(texts=lambda: iter(texts[::order]))
        cache = tmp_path / f"{order}"
        context = BuildContext(registry=Registry(), seed=seed, cache_dir=cache, dataset_factory=lambda: dataset)
        context.announce = lambda line: None
        return config.build(context)

    one, same, other = built(1, 1), built(1, -1), built(2, 1)
    assert one.tokenizer.get_vocab() == same.tokenizer.get_vocab()
    torch.testing.assert_close(vectors(one, texts), vectors(same, texts), rtol=0, atol=0)
    assert not torch.equal(vectors(one, texts), vectors(other, texts))
    assert one.training
    assert one.base is not None
    assert sorted(path.name for path in one.base.parent.iterdir()) == sorted(
        {one.base.name, other.base.name if other.base else ""}
    )
    assert one.encoder.config.name_or_path == ""


def test_no_text_is_unknown_to_the_tokenizer(tmp_path: Path, texts: list[str]) -> None:
    tokenizer = byte_level_tokenizer(texts, SMALLEST, tmp_path, lambda line: None)
    odd = "ß 漢字 \U0001f600 \r\n\t 'LL x12"
    assert tokenizer.decode(tokenizer(odd)["input_ids"]) == odd + END_OF_TEXT
    assert len(tokenizer) == SMALLEST
    assert tokenizer(odd, "b")["input_ids"].count(tokenizer.convert_tokens_to_ids(END_OF_TEXT)) == 2


def test_random_vectors_do_not_point_the_same_way(tmp_path: Path, texts: list[str]) -> None:
    tokenizer = byte_level_tokenizer(texts, 300, tmp_path, lambda line: None)
    shape = Qwen3Shape(vocab_size=300, hidden=64, layers=4)
    config = Qwen3EmbeddingConfig(instruction="")
    model = Qwen3EmbeddingModel(config, random_decoder(shape, tokenizer, 0, 512), tokenizer)
    found = vectors(model, texts)
    assert float((found @ found.T - torch.eye(len(texts))).max()) < 0.7


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"hidden": 100, "heads": 8}, "8 attention heads do not divide hidden size 100 into even parts"),
        ({"heads": 4, "key_value_heads": 3}, "3 key-value heads do not divide 4 attention heads"),
    ],
)
def test_shapes_must_fit(shape: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Qwen3Shape(**shape)
