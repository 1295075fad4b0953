"""The three kinds of embeddings: against FlagEmbedding's own heads, one by one, and their gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from FlagEmbedding.finetune.embedder.encoder_only.m3.modeling import EncoderOnlyEmbedderM3Model

from embed_core.acceleration.activation_checkpointing import enable_activation_checkpointing
from embed_core.types import Embeddings

torch.set_num_threads(1)


def encode(model, texts, role="passage") -> Embeddings:
    return model(**model.collate(model.tokenize(texts, role, [None] * len(texts))))


def reference(model) -> EncoderOnlyEmbedderM3Model:
    """FlagEmbedding's model on the same modules."""
    base = {"model": model.encoder, "colbert_linear": model.colbert_linear, "sparse_linear": model.sparse_linear}
    peer = EncoderOnlyEmbedderM3Model(
        base,
        tokenizer=model.tokenizer,
        sentence_pooling_method=model.pooling,
        normalize_embeddings=model.normalize,
        unified_finetuning=True,
    )
    peer.training = True  # its training code for the lexical weights, and the shared encoder still without dropout
    return peer


def reference_embeddings(model, inputs):
    """Dense [N,D], lexical weights [N,V] and unpadded multi-vectors, by the reference's code."""
    peer = reference(model)
    states = model.encoder(**inputs).last_hidden_state
    mask = inputs["attention_mask"]
    dense = peer._dense_embedding(states, mask)
    sparse = peer._sparse_embedding(states, inputs["input_ids"])
    multi = peer._colbert_embedding(states, mask)
    if model.normalize:
        dense = torch.nn.functional.normalize(dense, dim=-1)
        multi = torch.nn.functional.normalize(multi, dim=-1)
    return dense, sparse, torch.cat([multi[n, : int(mask[n].sum()) - 1] for n in range(len(mask))])


def dense_sparse(embeddings: Embeddings, vocab: int) -> torch.Tensor:
    weights, ids, offsets = embeddings.sparse
    rows = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    return torch.zeros(len(offsets) - 1, vocab, dtype=weights.dtype).index_put((rows, ids), weights)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last_token"])
@pytest.mark.parametrize(("colbert_dim", "normalize"), [(-1, True), (12, True), (-1, False)])
def test_equals_flag_embedding_in_value_and_gradient(make_model, texts, pooling, colbert_dim, normalize):
    model = make_model(
        colbert_dim=colbert_dim, sentence_pooling_method=pooling, normalize_embeddings=normalize
    ).double()
    inputs = model.collate(model.tokenize(texts, "passage", [None] * len(texts)))
    ours = model(**inputs)
    vocab = model.encoder.config.vocab_size
    mine = (ours.dense_ND, dense_sparse(ours, vocab), ours.multi.vectors_TC)
    theirs = reference_embeddings(model, inputs)
    torch.manual_seed(0)
    probes = [torch.randn_like(part) for part in theirs]
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = []
    for parts in (mine, theirs):
        for a, b in zip(mine, parts, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        total = sum((part * probe).sum() for part, probe in zip(parts, probes, strict=True))
        gradients.append(torch.autograd.grad(total, list(trained.values())))
    for name, a, b in zip(trained, *gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=name)
        assert a.abs().sum() > 0, f"{name} gets no gradient"


def test_padded_batch_equals_one_by_one(make_model, texts):
    model = make_model(pad_to_multiple_of=8)
    together = encode(model, texts)
    alone = [encode(model, [text]) for text in texts]
    torch.testing.assert_close(together.dense_ND, torch.cat([e.dense_ND for e in alone]), rtol=0, atol=1e-6)
    torch.testing.assert_close(together.sparse.ids_K, torch.cat([e.sparse.ids_K for e in alone]))
    weights = torch.cat([e.sparse.weights_K for e in alone])
    torch.testing.assert_close(together.sparse.weights_K, weights, rtol=0, atol=1e-6)
    vectors = torch.cat([e.multi.vectors_TC for e in alone])
    torch.testing.assert_close(together.multi.vectors_TC, vectors, rtol=0, atol=1e-6)
    assert together.sparse.offsets_N1.diff().tolist() == [len(e.sparse.ids_K) for e in alone]
    assert together.multi.offsets_N1.diff().tolist() == [len(e.multi.vectors_TC) for e in alone]


def test_lexical_weights_hold_each_id_once_and_no_special_token(make_model, texts):
    model = make_model()
    encoded = model.tokenize(texts, "passage", [None] * len(texts))
    sparse = model(**model.collate(encoded)).sparse
    special = {model.tokenizer.convert_tokens_to_ids(t) for t in ("<s>", "</s>", "<pad>", "<unk>")}
    for n, one in enumerate(encoded):
        ids = sparse.ids_K[sparse.offsets_N1[n] : sparse.offsets_N1[n + 1]].tolist()
        assert len(set(ids)) == len(ids)
        assert set(ids) == set(one.data["input_ids"]) - special
    assert any(len(set(one.data["input_ids"])) < one.length - 2 for one in encoded), "no repeated token in the test"


def test_texts_without_a_word_have_no_lexical_weights_but_vectors(make_model):
    model = make_model()
    out = encode(model, ["", "A short one", "   "])
    assert out.sparse.offsets_N1.diff().tolist()[0] == 0
    assert out.sparse.offsets_N1.diff().tolist()[2] == 0
    assert out.multi.offsets_N1.diff().tolist()[0] == 1  # </s>
    assert out.count == 3
    assert torch.isfinite(out.dense_ND).all()


def test_bf16_weights_give_fp32_unit_vectors(make_model, texts):
    model = make_model().to(torch.bfloat16)
    out = encode(model, texts)
    assert out.dense_ND.dtype == out.sparse.weights_K.dtype == out.multi.vectors_TC.dtype == torch.float32
    torch.testing.assert_close(out.dense_ND.norm(dim=-1), torch.ones(len(texts)), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        out.multi.vectors_TC.norm(dim=-1), torch.ones(len(out.multi.vectors_TC)), rtol=0, atol=1e-6
    )


def test_dense_alone_has_no_heads(make_model, texts):
    model = make_model(unified_finetuning=False)
    out = encode(model, texts)
    assert out.sparse is None
    assert out.multi is None
    assert list(model.scores) == ["dense"]
    assert not any("linear" in name for name, _ in model.named_parameters())
    torch.testing.assert_close(out.dense_ND, encode(make_model(), texts).dense_ND)


def test_fix_encoder_trains_the_heads_only(make_model, texts):
    model = make_model(fix_encoder=True)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{head}.{key}" for head in ("colbert_linear", "sparse_linear") for key in ("weight", "bias")}
    assert not encode(model, texts).dense_ND.requires_grad


def test_every_trained_parameter_gets_a_gradient(make_model, texts):
    model = make_model().train()
    out = encode(model, texts)
    # Squares, for the sum over a normalised vector's squares is constant.
    (out.dense_ND[:, :3].sum() + out.sparse.weights_K.sum() + out.multi.vectors_TC[:, :3].sum()).backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {
        "encoder.pooler.dense.weight",
        "encoder.pooler.dense.bias",
    }


def test_gradient_checkpointing_gives_the_same_gradient(make_model, texts):
    gradients = []
    for on in (False, True):
        model = make_model()
        if on:
            enable_activation_checkpointing(model)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.encoder.config.attention_probs_dropout_prob = 0.0
        for layer in model.encoder.encoder.layer:
            layer.attention.self.dropout.p = 0.0
            layer.attention.self.attention_dropout = 0.0
        model.train()
        assert model.encoder.is_gradient_checkpointing is on
        out = encode(model, texts)
        (out.dense_ND[:, :3].sum() + out.multi.vectors_TC[:, :3].sum()).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-5, atol=1e-7, msg=name)


def test_a_copy_is_independent(make_model, texts):
    model = make_model()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.encoder.embeddings.word_embeddings.weight.zero_()
    assert not torch.allclose(encode(model, texts).dense_ND, encode(twin, texts).dense_ND)
