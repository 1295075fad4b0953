"""BGE-M3 over packed chunks: all three heads as over padded ones, and no text sees another.

The attention is told the offsets as flash-attention is, and masks one large matrix by them.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from embed_core.acceleration.varlen_check import can_pack
from embed_core.embeddings import values
from embed_core.testing import check_model
from embed_core.types import Embeddings, Encoded

torch.set_num_threads(1)
NAME = "test_block_diagonal"


def block_diagonal(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    cu_seq_lens_q: Tensor,
    cu_seq_lens_k: Tensor,
    max_length_q: int,
    max_length_k: int,
    dropout: float = 0.0,
    **unused: Any,
) -> tuple[Tensor, None]:
    assert attention_mask is None
    assert torch.equal(cu_seq_lens_q, cu_seq_lens_k)
    assert int(cu_seq_lens_q.diff().max()) == max_length_q == max_length_k
    text = torch.bucketize(torch.arange(query.shape[2]), cu_seq_lens_q[1:].long(), right=True)
    logits = (query @ key.transpose(2, 3) * scaling).masked_fill(text[:, None] != text[None], float("-inf"))
    return (nn.functional.dropout(logits.softmax(-1), dropout) @ value).transpose(1, 2), None


@pytest.fixture
def packing(make_model: Callable[..., Any]) -> Any:
    """``packing.packed(**config)``: a model over packed chunks; ``packing.padded`` makes its twin."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask

    AttentionInterface.register(NAME, block_diagonal)
    AttentionMaskInterface.register(NAME, flash_attention_mask)

    def padded(**config: Any) -> Any:
        model = make_model(**config).double()
        for name, parameter in model.encoder.named_parameters():
            if "attention" in name and parameter.ndim == 2:
                parameter.data.mul_(8)  # attention far from uniform
        return model

    def packed(**config: Any) -> Any:
        model = padded(**config)
        model.encoder.set_attn_implementation(NAME)
        model.packed = True
        return model

    return SimpleNamespace(packed=packed, padded=padded)


def tokens(model: Any, texts: list[str]) -> list[Encoded]:
    found: list[Encoded] = model.tokenize(texts, "passage", [None] * len(texts))
    return found


def backward(embeddings: Embeddings) -> None:
    """A gradient of every number of every head, each with a weight of its own."""
    products = [(one * torch.linspace(-1, 1, one.numel()).view_as(one).double()).sum() for one in values(embeddings)]
    torch.stack(products).sum().backward()


@pytest.mark.parametrize("pooling", ["cls", "mean", "last_token"])
def test_every_head_gives_what_it_gives_over_padding(packing: Any, texts: list[str], pooling: str) -> None:
    options = {"sentence_pooling_method": pooling, "colbert_dim": 12}
    model, plain = packing.packed(**options), packing.padded(**options)
    found, wanted = (one(**one.collate(tokens(one, texts))) for one in (model, plain))
    assert found.sparse is not None
    assert torch.equal(found.sparse.ids_K, wanted.sparse.ids_K)
    assert torch.equal(found.sparse.offsets_N1, wanted.sparse.offsets_N1)
    assert torch.equal(found.multi.offsets_N1, wanted.multi.offsets_N1)
    assert len(values(found)) == 3
    for one, other in zip(values(found), values(wanted), strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)
    backward(found)
    backward(wanted)
    compared = 0
    for (name, own), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(own.grad, other.grad, atol=1e-8, rtol=1e-8, msg=lambda m, n=name: f"{n}: {m}")
            compared += float(other.grad.abs().max()) > 1e-6
    assert compared > 30, "hardly anything had a gradient"


def test_no_text_sees_another(packing: Any, texts: list[str]) -> None:
    """A neighbour's tokens reach no head of a text; the contract compares texts alone, together and turned round."""
    model = packing.packed()
    check_model(model, texts, role="passage", tolerance=1e-10)
    first, second, third = tokens(model, texts[:3])
    other = Encoded(b"", second.length, {"input_ids": second.data["input_ids"][::-1]})
    with torch.no_grad():
        whole, changed = (model(**model.collate([first, each, third])) for each in (second, other))
    assert torch.equal(whole.dense_ND[[0, 2]], changed.dense_ND[[0, 2]])
    assert not torch.allclose(whole.dense_ND[1], changed.dense_ND[1], atol=1e-4)
    low, high = whole.multi.offsets_N1[1:3].tolist()
    same = torch.cat([torch.arange(low), torch.arange(high, len(whole.multi.vectors_TC))])
    assert torch.equal(whole.multi.vectors_TC[same], changed.multi.vectors_TC[same])


def test_the_engine_finds_that_it_can_be_packed(make_model: Callable[..., Any]) -> None:
    for options in ({}, {"unified_finetuning": False}, {"sentence_pooling_method": "mean"}):
        assert can_pack(make_model(**options))
    model = make_model(pad_to_multiple_of=8)
    assert (model.packed, model.pad_to_multiple_of) == (False, 8)
    model.packed = True
    assert model.collate(tokens(model, ["one", "another text"]))["input_ids"].shape[0] == 1
