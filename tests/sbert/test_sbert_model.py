"""The model against SentenceTransformer itself: the same vectors, whatever the modules, alone and in company."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sbert_parts import CHAINS, TEXTS, build

from embed_core.errors import CheckpointError, ConfigError
from embed_core.testing import check_model, encode
from embed_core.types import Role

PROMPTS = {"query": "질문 query: ", "document": "글: "}
ROLES: tuple[Role, Role] = ("query", "passage")


def theirs(model: Any, role: Role, texts: list[str] = TEXTS) -> torch.Tensor:
    """What sentence-transformers gives, one text at a time: padding has no say."""
    call = model.encode_query if role == "query" else model.encode_document
    return torch.stack([call(text, convert_to_tensor=True) for text in texts])


def ours(model: Any, role: Role, prompts: list[str | None] | None = None) -> torch.Tensor:
    """All texts in one chunk, in training mode without dropout: as losses see them."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    model.train()
    with torch.no_grad():
        encoded = model.tokenize(TEXTS, role, prompts or [None] * len(TEXTS))
        return model(**model.collate(encoded)).dense_ND


@pytest.mark.parametrize("chain", CHAINS)
def test_vectors_are_sentence_transformers_own(chain: str, saved: Callable[..., Path]) -> None:
    from sentence_transformers import SentenceTransformer

    path = saved(chain, prompts=PROMPTS)
    peer, model = SentenceTransformer(str(path), device="cpu"), build(path)
    for role in ROLES:
        torch.testing.assert_close(ours(model, role), theirs(peer, role), atol=1e-5, rtol=0)
    if chain not in ("asymmetric", "bow", "words", "word-weights", "lstm", "cnn", "static"):  # nothing is cut there
        long = " ".join(TEXTS * 4)
        cut = model.tokenize([long], "query", [None])[0]
        assert cut.length == model.sentence_transformer.max_seq_length == 24


@pytest.mark.parametrize("chain", CHAINS)
def test_promises_of_a_model(chain: str, saved: Callable[..., Path]) -> None:
    check_model(build(saved(chain)), [*TEXTS, "words nobody has seen"], tolerance=1e-5)


@pytest.mark.parametrize("chain", ["mean", "no-prompt", "router", "asymmetric"])
def test_roles_and_prompts_of_rows_mix_in_a_chunk(chain: str, saved: Callable[..., Path]) -> None:
    from sentence_transformers import SentenceTransformer

    path = saved(chain, prompts=PROMPTS)
    peer, model = SentenceTransformer(str(path), device="cpu"), build(path)
    model.train()
    encoded = [
        *model.tokenize(TEXTS, "query", [None] * 6),
        *model.tokenize(TEXTS, "passage", [None] * 6),
        *model.tokenize(TEXTS[:1], "passage", ["row's own: "]),
    ]
    order = [6, 0, 12, 7, 1, 2, 8, 9, 3, 4, 10, 11, 5]
    with torch.no_grad():
        found = model(**model.collate([encoded[n] for n in order])).dense_ND
    own = peer.encode_document(TEXTS[:1], prompt="row's own: ", convert_to_tensor=True)
    wanted = torch.cat([theirs(peer, "query"), theirs(peer, "passage"), own])[order]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_texts_of_two_ways_are_not_taken_for_the_same(saved: Callable[..., Path]) -> None:
    model = build(saved("router"))
    query, passage = (model.tokenize(["CPU"], role, [None])[0] for role in ROLES)
    assert query.key != passage.key
    both = build(saved("mean"))
    assert both.tokenize(["CPU"], "query", [None])[0].key == both.tokenize(["CPU"], "passage", [None])[0].key


def test_a_prompt_of_the_config_goes_before_the_model_s_and_into_the_model(saved: Callable[..., Path]) -> None:
    model = build(saved("mean", prompts=PROMPTS), query_prompt="new: ", passage_prompt="")
    assert model.sentence_transformer.prompts == {"query": "new: ", "document": ""}
    written = model.tokenize(["new: CPU", "CPU"], "query", ["", None])
    assert written[0].key == written[1].key
    plain = model.tokenize(["CPU"], "passage", [None])[0]
    assert plain.key == model.tokenize(["CPU"], "passage", [""])[0].key


def test_vectors_have_unit_length_in_evaluation_where_the_similarity_is_the_cosine(saved: Callable[..., Path]) -> None:
    cosine, dot = build(saved("mean")), build(saved("mean", similarity_fn_name="dot"))
    norms = encode(cosine, TEXTS).dense_ND.norm(dim=-1)  # type: ignore[union-attr]
    torch.testing.assert_close(norms, torch.ones(len(TEXTS)))
    raw = encode(dot, TEXTS).dense_ND
    torch.testing.assert_close(raw, ours(cosine, "query"))
    lines: list[str] = []
    build(saved("mean", similarity_fn_name="euclidean"), lines)
    assert lines == ["the model compares by euclidean: the evaluation ranks by dot products"]


@pytest.mark.parametrize(
    ("chain", "packs"),
    [("mean", True), ("dense", True), ("decoder", True), ("static", True), ("layers", False), ("no-prompt", False),
     ("words", False), ("router", False)],
)  # fmt: skip
def test_packed_where_it_can_be(chain: str, packs: bool, saved: Callable[..., Path]) -> None:
    from embed_core.acceleration.varlen_check import can_pack

    model = build(saved(chain))
    assert hasattr(model, "packed") is packs
    assert can_pack(model) is packs
    assert getattr(model, "packed", False) is (chain == "static")


def test_padding_to_a_multiple(saved: Callable[..., Path]) -> None:
    model = build(saved("mean"), pad_to_multiple_of=8)
    inputs = model.collate(model.tokenize(["CPU"], "query", [None]))
    assert inputs["input_ids"].shape == (1, 8)
    for chain in ("no-prompt", "router"):
        model = build(saved(chain), pad_to_multiple_of=8)
        padded = model.collate(model.tokenize(["CPU"], "query", [None]))
        assert all(v.shape[1] == 8 for name, v in padded.items() if name.endswith("input_ids"))
    assert not hasattr(build(saved("lstm")), "pad_to_multiple_of")


def test_token_lists_are_kept_where_a_tokenizer_alone_decides(saved: Callable[..., Path]) -> None:
    first, second = build(saved("mean")), build(saved("mean"), query_prompt="q: ")
    assert first.tokenizer_fingerprint() != second.tokenizer_fingerprint()
    assert not hasattr(build(saved("words")), "tokenizer_fingerprint")


def test_maximum_length(saved: Callable[..., Path], tmp_path: Path) -> None:
    model = build(saved("mean"), max_seq_length=8)
    assert model.tokenize([TEXTS[2]], "query", [None])[0].length == 8
    with pytest.raises(ConfigError, match=r"max_seq_length 600 is more than the 512 tokens .* set it to 512 or less"):
        build(saved("mean"), max_seq_length=600)
    with pytest.raises(ConfigError, match="max_seq_length 8: StaticEmbedding does not cut texts: leave the key out"):
        build(saved("static"), max_seq_length=8)
    wide = tmp_path / "wide"
    shutil.copytree(saved("mean"), wide)
    settings = wide / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"model_max_length": 24', '"model_max_length": 9999'))
    lines: list[str] = []
    assert build(wide, lines).sentence_transformer.max_seq_length == 512
    assert lines == [f"texts are cut at 512 tokens: {wide} has no more positions"]


def test_what_is_trained(saved: Callable[..., Path]) -> None:
    """fp32, dropout as configured, frozen words frozen, and no pooler that nothing reads."""
    model = build(saved("dense"))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.training
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} >= {0.2, 0.1}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(".pooler." in name for name in frozen)
    words = build(saved("word-weights"))
    assert not words.sentence_transformer[0].emb_layer.weight.requires_grad
    assert not words.sentence_transformer[1].emb_layer.weight.requires_grad, "nobody would load what they became"


def test_a_copy_is_a_model(saved: Callable[..., Path]) -> None:
    """What LoRA and the export do."""
    for chain in ("mean", "router", "static", "words"):
        model = build(saved(chain))
        torch.testing.assert_close(
            encode(copy.deepcopy(model), TEXTS).dense_ND, encode(model, TEXTS).dense_ND, atol=0, rtol=0
        )


def test_a_plain_transformers_directory(encoders: Path) -> None:
    """As sentence-transformers takes it: mean pooling, no unit length."""
    model = build(encoders / "plain", trust_remote_code=True)
    assert [type(m).__name__ for m in model.sentence_transformer] == ["Transformer", "Pooling"]


def test_missing_and_broken_models(saved: Callable[..., Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(CheckpointError, match="does not exist"):
        build(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is no directory here and cannot be fetched"):
        build(Path("nobody/nothing"))
    broken = tmp_path / "broken"
    shutil.copytree(saved("mean"), broken)
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be loaded by sentence-transformers"):
        build(broken)
    shutil.copyfile(saved("mean") / "model.safetensors", broken / "model.safetensors")
    weights = load_file(broken / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "layer.1." not in k and "pooler" not in k}, broken / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"lacks weights, 'encoder.layer.1.*do not belong together"):
        build(broken)
    save_file({k: v for k, v in weights.items() if "pooler" not in k}, broken / "model.safetensors")
    first, second = build(broken).state_dict(), build(broken).state_dict()  # a pooler that nothing reads is drawn alike
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    stray = tmp_path / "stray"
    shutil.copytree(saved("mean"), stray)
    modules = (stray / "modules.json").read_text()
    (stray / "modules.json").write_text(modules.split(',\n  {\n    "idx": 1')[0] + "\n]")
    with pytest.raises(CheckpointError, match="no 'sentence_embedding': it needs a Pooling module"):
        encode(build(stray), TEXTS)


def test_chains_that_are_refused(encoders: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Router, Transformer
    from sentence_transformers.sentence_transformer.modules import CNN, Pooling

    def write(name: str, *modules: Any) -> Path:
        SentenceTransformer(modules=list(modules), device="cpu").save(str(tmp_path / name))
        return tmp_path / name

    first = Transformer(str(encoders / "plain"))
    with pytest.raises(CheckpointError, match="only stride_sizes of 1 are supported"):
        build(write("strides", first, CNN(16, 4, [3], [2]), Pooling(4)))
    late = Router({"query": [Dense(16, 8)], "document": [Dense(16, 8)]}, default_route="query")
    with pytest.raises(CheckpointError, match="a Router as module 2: only as the first module"):
        build(write("late", first, Pooling(16), late))
