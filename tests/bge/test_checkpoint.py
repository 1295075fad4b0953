"""The exported directory, loaded by everybody: FlagEmbedding, sentence-transformers, transformers, ourselves."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel

from embed_bge.checkpoint import BGEM3Checkpointer
from embed_bge.model import BGEM3Model
from embed_core.errors import CheckpointError
from embed_core.export.model_card import RunCard
from embed_core.scoring import dense_scores, multi_vector_scores, sparse_scores

torch.set_num_threads(1)

CARD = RunCard(
    name="bge",
    base_model="from-scratch",
    config={"seed": 1},
    data={"name": "pydocs", "rows": 10000},
    evaluations={0: {"held-out/all/nDCG@10": 0.1}, 5: {"held-out/all/nDCG@10": 0.5}},
    command="embed run --plugin bge",
    steps=5,
    versions={"embed": "0.1.0"},
)


def export(model, directory):
    """Exports from a state dict with the model's own parameters emptied, as they are under ZeRO-3."""
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    hollow = {name: parameter.data for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.data = torch.empty(0, dtype=torch.bfloat16)
    directory.mkdir()
    BGEM3Checkpointer().export(model, state, directory, CARD)
    for name, parameter in model.named_parameters():
        parameter.data = hollow[name]
    return directory


def encode(model, texts, role="passage"):
    with torch.no_grad():
        return model(**model.collate(model.tokenize(texts, role, [None] * len(texts))))


@pytest.mark.parametrize("colbert_dim", [-1, 12])
def test_flag_embedding_gives_our_scores(make_model, texts, tmp_path, colbert_dim):
    from FlagEmbedding import BGEM3FlagModel

    model = make_model(colbert_dim=colbert_dim)
    peer = BGEM3FlagModel(
        str(export(model, tmp_path / "out")), use_fp16=False, devices="cpu", colbert_dim=colbert_dim, batch_size=4
    )
    theirs = peer.encode(texts, return_dense=True, return_sparse=True, return_colbert_vecs=True)
    ours = encode(model, texts)

    expected = theirs["dense_vecs"] @ theirs["dense_vecs"].T
    np.testing.assert_allclose(dense_scores(ours, ours).numpy(), expected, rtol=0, atol=1e-4)
    expected = peer.compute_lexical_matching_score(theirs["lexical_weights"], theirs["lexical_weights"])
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(sparse_scores(ours, ours).numpy(), expected, rtol=0, atol=1e-4)
    vectors = theirs["colbert_vecs"]
    expected = np.array([[float(peer.colbert_score(q, p)) for p in vectors] for q in vectors])
    np.testing.assert_allclose(multi_vector_scores(ours, ours).numpy(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("pooling", "normalize"), [("cls", True), ("mean", True), ("last_token", True), ("cls", False)]
)
def test_sentence_transformers_gives_our_dense_vectors(make_model, texts, tmp_path, pooling, normalize):
    from sentence_transformers import SentenceTransformer

    model = make_model(
        sentence_pooling_method=pooling,
        normalize_embeddings=normalize,
        query_max_len=192,
        query_instruction_for_retrieval="Find: ",
        passage_instruction_for_retrieval="Passage",
        passage_instruction_format="{}\n{}",
    )
    peer = SentenceTransformer(str(export(model, tmp_path / "out")), device="cpu")
    assert peer.max_seq_length == 192
    for role, prompt in (("query", "query"), ("passage", "document")):
        theirs = peer.encode(texts, prompt_name=prompt)
        np.testing.assert_allclose(theirs, encode(model, texts, role).dense_ND.numpy(), rtol=0, atol=1e-5)
    assert peer.similarity_fn_name == ("cosine" if normalize else "dot")


def test_auto_model_has_nothing_missing_nothing_unexpected_and_is_fp32(make_model, tmp_path):
    model = make_model()
    loaded, report = AutoModel.from_pretrained(export(model, tmp_path / "out"), output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert loaded.dtype == torch.float32
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_our_own_load_gives_the_same_embeddings(make_model, texts, tmp_path):
    notes: list[str] = []
    model = make_model(colbert_dim=12)
    again = BGEM3Model(str(export(model, tmp_path / "out")), announce=notes.append, passage_max_len=192).eval()
    a, b = encode(model, texts), encode(again, texts)
    assert torch.equal(a.dense_ND, b.dense_ND)
    assert torch.equal(a.sparse.weights_K, b.sparse.weights_K)
    assert torch.equal(a.multi.vectors_TC, b.multi.vectors_TC)
    assert again.colbert_dim == 12
    assert notes == []
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["tokenizer_class"] == (
        "PreTrainedTokenizerFast"
    )
    assert ids(again, "ﬁne １２") == ids(model, "ﬁne １２")  # the normaliser survives


def ids(model, text):
    return model.tokenize([text], "query", [None])[0].data["input_ids"]


def test_the_files_say_what_the_family_s_files_do_not(make_model, tmp_path):
    out = export(make_model(colbert_dim=12, sentence_pooling_method="mean"), tmp_path / "out")
    facts = json.loads((out / "bge_m3.json").read_text())
    assert facts["colbert_dim"] == 12
    assert facts["sentence_pooling_method"] == "mean"
    heads = {name: torch.load(out / f"{name}.pt", weights_only=True) for name in ("colbert_linear", "sparse_linear")}
    assert heads["colbert_linear"]["weight"].shape == (12, 32)
    assert heads["sparse_linear"]["weight"].shape == (1, 32)
    assert sorted(heads["sparse_linear"]) == ["bias", "weight"]
    code = (out / "README.md").read_text()
    assert "BGEM3FlagModel(\"path/to/this/directory\", use_fp16=False, colbert_dim=12, pooling_method='mean')" in code


def test_the_code_of_the_card_runs(make_model, tmp_path):
    """Every Python block of the README, with the directory in the path's place."""
    out = export(make_model(colbert_dim=12, query_instruction_for_retrieval="Find: "), tmp_path / "out")
    blocks = (out / "README.md").read_text().split("```python\n")[1:]
    assert len(blocks) == 3
    for block in blocks:
        code = block.split("```")[0].replace("path/to/this/directory", str(out))
        exec(compile(code.replace("use_fp16=False", 'use_fp16=False, devices="cpu"'), "card", "exec"), {})


def test_dense_alone_has_no_heads_and_says_so(make_model, tmp_path):
    out = export(make_model(unified_finetuning=False), tmp_path / "out")
    assert not list(out.glob("*.pt"))
    card = (out / "README.md").read_text()
    assert "Dense vectors only" in card
    assert "return_sparse=False" in card


def test_an_instruction_that_is_no_prefix_is_told_not_exported(make_model, tmp_path):
    model = make_model(query_instruction_for_retrieval="Find", query_instruction_format="{0} <{1}>")
    out = export(model, tmp_path / "out")
    assert json.loads((out / "config_sentence_transformers.json").read_text())["prompts"]["query"] == ""
    assert "The query instruction is no prefix (format `'{0} <{1}>'`)" in (out / "README.md").read_text()


def test_a_model_of_another_kind_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"'bge-m3' writes models of kind 'bge-m3', not Linear: use"):
        BGEM3Checkpointer().export(torch.nn.Linear(1, 1), {}, tmp_path, CARD)


def test_an_incomplete_state_is_an_error(make_model, tmp_path):
    model = make_model()
    state = dict(model.state_dict())
    del state["sparse_linear.bias"]
    with pytest.raises(CheckpointError, match=r"weights to export lack 'sparse_linear\.bias'"):
        BGEM3Checkpointer().export(model, state, tmp_path, CARD)
