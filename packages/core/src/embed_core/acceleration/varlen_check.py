"""Checks whether a model's chunks can be packed, by trying it on the model, before flash-attention is used with it.

Packing needs three things of a model: attention that receives the texts' offsets, positions that restart in each text,
and nothing else that looks across tokens. A model that ignores the offsets would mix its texts silently, so no list of
architectures is kept: a few texts are encoded padded and packed, and their embeddings have to agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from embed_core.embeddings import values
from embed_core.protocols import PacksChunks, provides
from embed_core.types import Embeddings, Encoded

ONE_BY_ONE = "embed_one_by_one"
"""Name of :func:`one_by_one` among transformers' attention implementations."""
TEXTS = ("a", "Two texts, one longer than the other.", "a third")
TOLERANCE, HALF_TOLERANCE = 1e-3, 5e-2
"""Largest difference, as a share of the norm, with fp32 weights and with weights in half precision."""


def one_by_one(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Compute what flash-attention computes of packed texts, [1,H,T,d] each → [1,T,H,d], one text at a time.

    Raises ValueError without offsets, or with a mask, which flash-attention would prefer to them.
    """
    if cu_seq_lens_q is None or attention_mask is not None:
        raise ValueError("the texts' offsets do not reach the attention")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    texts = [
        functional.scaled_dot_product_attention(
            query[:, :, start:stop],
            key[:, :, start:stop],
            value[:, :, start:stop],
            attn_mask=_visible(stop - start, causal, sliding_window, query.device),
            scale=scaling,
            enable_gqa=True,
        )
        for start, stop in pairwise(cu_seq_lens_q.tolist())
    ]
    return torch.cat(texts, dim=2).transpose(1, 2), None


def _visible(length: int, causal: bool, window: int | None, device: torch.device) -> Tensor:
    """bool [L,L]: which keys a query sees; ``window`` counts it and those to either side of it."""
    places = torch.arange(length, device=device)
    gap = places[:, None] - places[None]
    near = gap.abs() < (length if window is None else window)
    return near & (gap >= 0) if causal else near


def can_pack(model: Any) -> bool:
    """Whether ``model`` has a settable ``packed`` and gives packed texts the embeddings that it gives padded ones."""
    packs: bool = provides(model, PacksChunks)
    if not packs:
        return False
    encoded = [one for role in ("query", "passage") for one in model.tokenize(TEXTS, role, [None] * len(TEXTS))]
    with torch.no_grad(), _evaluating(model):
        wanted = _encode(model, encoded)
        try:
            with _packing(model):
                found = _encode(model, encoded)
        except Exception:
            # A model may raise anything for arguments that it does not know: it cannot pack.
            return False
    weights = next(model.parameters()).dtype
    return _alike(values(found), values(wanted), HALF_TOLERANCE if weights.itemsize < 4 else TOLERANCE)


def _encode(model: Any, encoded: Sequence[Encoded]) -> Embeddings:
    device = next(model.parameters()).device
    result: Embeddings = model(**{name: value.to(device) for name, value in model.collate(encoded).items()})
    return result


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training, packed = model.training, model.packed
    model.eval()
    model.packed = False
    try:
        yield
    finally:
        model.train(training)
        model.packed = packed


@contextmanager
def _packing(model: Any) -> Iterator[None]:
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
    from transformers.masking_utils import flash_attention_mask

    AttentionInterface.register(ONE_BY_ONE, one_by_one)
    AttentionMaskInterface.register(ONE_BY_ONE, flash_attention_mask)
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    before = [part.config._attn_implementation for part in parts]
    try:
        for part in parts:
            part.set_attn_implementation(ONE_BY_ONE)
        model.packed = True
        yield
    finally:
        model.packed = False
        for part, name in zip(parts, before, strict=True):
            part.set_attn_implementation(name)


def _alike(found: Sequence[Tensor], wanted: Sequence[Tensor], most: float) -> bool:
    if [value.shape for value in found] != [value.shape for value in wanted]:
        return False
    pairs = [(one.double(), other.double()) for one, other in zip(found, wanted, strict=True)]
    return all(bool((one - other).norm() <= most * other.norm()) for one, other in pairs)
