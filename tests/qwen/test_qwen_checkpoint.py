"""The exported directory, loaded by everybody; an export that is not what was trained; adapters, merged and not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import AutoModel

from embed_core.errors import CheckpointError, ConfigError
from embed_core.models.lora.config import LoraModelConfig
from embed_core.models.lora.targets import resolve, roots_of
from embed_core.testing import check_checkpointer
from embed_core.testing.checkpoints import sample_card
from embed_qwen import checkpoint as module
from embed_qwen import swift
from embed_qwen.checkpoint import Qwen3Checkpointer
from embed_qwen.model import Qwen3EmbeddingModel
from embed_qwen.model_config import Qwen3EmbeddingConfig

torch.set_num_threads(1)

Make = Callable[..., Qwen3EmbeddingModel]


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight that is trained, moved a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def export(model: Any, directory: Path, steps: int = 8, lines: list[str] | None = None) -> Path:
    directory.mkdir()
    card = replace(sample_card(), steps=steps)
    Qwen3Checkpointer((lines if lines is not None else []).append).export(model, state_of(model), directory, card)
    return directory


def vectors(model: Any, texts: list[str], role: Any) -> Tensor:
    with torch.no_grad():
        dense: Tensor = model(**model.collate(model.tokenize(texts, role, [None] * len(texts)))).dense_ND
    return dense


@pytest.fixture(scope="module")
def model(make_model: Make) -> nn.Module:
    return trained(make_model(instruction="Find it"))


@pytest.fixture(scope="module")
def exported(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(model, tmp_path_factory.mktemp("export") / "model")


def test_it_is_a_checkpointer(make_model: Make, texts: list[str], tmp_path: Path) -> None:
    model: Any = trained(make_model(instruction="Find it"))
    check_checkpointer(
        Qwen3Checkpointer(print), model, lambda path: make_model(name_or_path=str(path)), texts, tmp_path / "out"
    )


@pytest.mark.parametrize("batch_size", [1, 2, 5, 32])
@pytest.mark.parametrize("side", ["left", "right"])
def test_sentence_transformers_gives_our_vectors(
    model: nn.Module, exported: Path, texts: list[str], batch_size: int, side: str
) -> None:
    peer = SentenceTransformer(str(exported), device="cpu")
    peer.tokenizer.padding_side = side
    long = [*texts, "a text that is cut off, " * 30]
    for role, prompt in (("query", "query"), ("passage", "document")):
        theirs = peer.encode(long, prompt_name=prompt, batch_size=batch_size, convert_to_tensor=True)
        torch.testing.assert_close(theirs, vectors(model, long, role), rtol=0, atol=1e-5)


def test_the_directory_says_how_it_is_used(exported: Path) -> None:
    read: Callable[[str], Any] = lambda name: json.loads((exported / name).read_text())  # noqa: E731
    assert [entry["type"].rsplit(".")[-1] for entry in read("modules.json")] == ["Transformer", "Pooling", "Normalize"]
    pooling = read("1_Pooling/config.json")
    assert [key for key, on in pooling.items() if key.startswith("pooling_mode_") and on] == ["pooling_mode_lasttoken"]
    facts = read("config_sentence_transformers.json")
    assert facts["prompts"] == {"query": "Instruct: Find it\nQuery:", "document": ""}
    assert facts["similarity_fn_name"] == "cosine"
    assert read("sentence_bert_config.json")["max_seq_length"] == 64
    assert read("config.json")["architectures"] == ["Qwen3ForCausalLM"]
    assert "pad_token_id" not in read("config.json") or read("config.json")["pad_token_id"] is None
    card = (exported / "README.md").read_text()
    assert "'Instruct: Find it\\nQuery:a question'" in card
    assert 'model_type="qwen3_emb"' in card


def test_weights_have_the_names_and_the_number_of_the_original(exported: Path, base: Path) -> None:
    """Those of the decoder alone; the tied head is not among them."""
    written, original = load_file(exported / "model.safetensors"), load_file(base / "model.safetensors")
    assert written.keys() == original.keys()
    assert "embed_tokens.weight" in written
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}


def test_transformers_and_swift_load_it(model: nn.Module, exported: Path, texts: list[str]) -> None:
    wanted = vectors(model, texts, "passage")
    causal, tokenizer = swift.load(exported)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(exported)(**batch).last_hidden_state
        theirs = causal(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])["last_hidden_state"]
    assert tokenizer.padding_side == "left"
    torch.testing.assert_close(nn.functional.normalize(states[:, -1], dim=-1), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs, wanted, rtol=0, atol=1e-5)
    assert causal.lm_head.weight is causal.model.embed_tokens.weight


def test_it_is_trained_on(model: nn.Module, exported: Path, texts: list[str], make_model: Make) -> None:
    """With the instruction that it was saved with."""
    again = make_model(name_or_path=str(exported), instruction=None)
    torch.testing.assert_close(vectors(again, texts, "query"), vectors(model, texts, "query"), rtol=0, atol=1e-6)


def test_an_export_without_training_is_refused(make_model: Make, base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        export(make_model(), tmp_path / "out", steps=3)
    assert str(caught.value) == (
        f"after 3 steps every exported weight is still that of {str(base)!r}: nothing was trained; raise "
        "train.optimizer.learning_rate, or check that the weights are not frozen"
    )
    assert (export(make_model(), tmp_path / "untrained", steps=0) / "model.safetensors").is_file()


def test_one_changed_weight_is_training(make_model: Make, tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        model.encoder.norm.weight[0] += 1e-6
    assert (export(model, tmp_path / "out") / "README.md").is_file()


def test_a_base_that_is_gone_is_announced(make_model: Make, base: Path, tmp_path: Path) -> None:
    model, lines = make_model(), list[str]()
    model.base = tmp_path / "gone"
    export(model, tmp_path / "out", lines=lines)
    assert lines == [
        f"{tmp_path / 'gone'} has no safetensors any more: whether the export differs from it is not known"
    ]


def test_an_export_that_is_not_what_was_trained_is_refused(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = module.write_directory

    def spoiled(model: Any, state: Any, directory: Path) -> None:
        write(model, state, directory)
        weights = load_file(directory / "model.safetensors")
        weights["norm.weight"][3] += 1e-3
        save_file(weights, directory / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(module, "write_directory", spoiled)
    with pytest.raises(CheckpointError, match=r"1 exported weights are not those that were trained, 'norm.weight' fi"):
        export(model, tmp_path / "out")


def test_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"writes models of kind 'qwen3-embedding', not Linear: use the `check"):
        export(nn.Linear(2, 2), tmp_path / "out")


# Adapters.


def lora(base: Path, make_context: Any, **options: Any) -> Any:
    inner = Qwen3EmbeddingConfig(
        name_or_path=str(base), query_max_length=64, passage_max_length=64, instruction="Find it"
    )
    return LoraModelConfig(inner=inner, r=4, alpha=8, **options).build(make_context)


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def context(lines: list[str]) -> Any:
    from embed_core.config.context import BuildContext
    from embed_core.config.registry import Registry

    return BuildContext(registry=Registry(), announce=lines.append)


def exported_with(model: Any, directory: Path) -> Path:
    directory.mkdir()
    model.export_with(Qwen3Checkpointer(print), state_of(model), directory, sample_card())
    return directory


def test_adapter_and_merged_export_agree(
    base: Path, context: Any, lines: list[str], texts: list[str], tmp_path: Path
) -> None:
    places, wanted = {}, {}
    for kind in ("merged", "adapter"):
        model = trained(lora(base, context, export=kind)).eval()
        wanted[kind] = vectors(model, texts, "query")
        places[kind] = exported_with(model, tmp_path / kind)
    assert lines[0].startswith("LoRA r 4, alpha 8: trainable ")
    torch.testing.assert_close(wanted["merged"], wanted["adapter"], rtol=0, atol=0)
    for place in places.values():
        theirs = SentenceTransformer(str(place), device="cpu").encode(
            texts, prompt_name="query", convert_to_tensor=True
        )
        torch.testing.assert_close(theirs, wanted["merged"], rtol=0, atol=1e-5)


def test_swift_puts_the_adapter_on(base: Path, context: Any, texts: list[str], tmp_path: Path) -> None:
    from swift.tuners import Swift

    model = trained(lora(base, context, export="adapter")).eval()
    place = exported_with(model, tmp_path / "adapter")
    causal, tokenizer = swift.load(base)
    tuned = Swift.from_pretrained(causal.model, str(place))
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = tuned(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    theirs = nn.functional.normalize(states[:, -1], dim=-1)
    torch.testing.assert_close(theirs, vectors(model, texts, "passage"), rtol=0, atol=1e-5)


def test_adapters_go_where_swift_puts_them(make_model: Make, base: Path) -> None:
    from swift.utils import find_all_linears

    theirs = find_all_linears(swift.load(base).causal)
    model = make_model()
    names = resolve(roots_of(model), "all-linear", ())["encoder"]
    assert {name.rsplit(".", 1)[-1] for name in names} == set(theirs)
    assert len(names) == 7 * 2


def test_a_merged_export_of_untrained_adapters_is_refused(base: Path, context: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="every exported weight is still that of"):
        exported_with(lora(base, context), tmp_path / "merged")


def test_an_adapter_of_a_random_model_is_refused(texts: list[str], tmp_path: Path, context: Any) -> None:
    from types import SimpleNamespace

    context.cache_dir, dataset = tmp_path, SimpleNamespace(texts=lambda: iter(texts))
    context.dataset_factory = lambda: dataset
    shape: Any = {"vocab_size": 300, "hidden": 32, "layers": 1, "heads": 2, "key_value_heads": 1}
    inner = Qwen3EmbeddingConfig(from_scratch=shape, instruction="")
    with pytest.raises(ConfigError, match=r"'adapter' needs a base that others can load, and the Qwen3Model"):
        LoraModelConfig(inner=inner, export="adapter").build(context)
