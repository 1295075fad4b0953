"""Builds encoders with random weights that depend on the seed alone, and leaves the global random state as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from embed_core.models.from_scratch.config import EncoderShape

XLM_ROBERTA_POSITIONS = 512
"""The least number of positions: FlagEmbedding's clients send texts of up to 512 tokens by default."""
COMMON_SCALE = 0.1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator for the body, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        # default_generator rather than torch.manual_seed, which would seed the accelerators too.
        torch.default_generator.manual_seed(seed)
        yield


def xlm_roberta(vocab: int, shape: EncoderShape, *, max_length: int, seed: int) -> Any:
    """A random ``XLMRobertaModel`` of ``vocab`` ids, with positions for ``max_length`` tokens, at least 512.

    Position and type embeddings start at a tenth of the usual scale. At the same scale as the words they are half of
    every token state and the same in every text: all vectors then point the same way, a contrastive loss with a small
    temperature starts flat, and a run of a few hundred steps does not leave that plateau.
    """
    from transformers import XLMRobertaConfig, XLMRobertaModel

    positions = max(max_length, XLM_ROBERTA_POSITIONS)
    config = XLMRobertaConfig(
        vocab_size=vocab,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden,
        hidden_dropout_prob=shape.dropout,
        attention_probs_dropout_prob=shape.dropout,
        # Position ids start after the padding id, 1.
        max_position_embeddings=positions + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    with seeded(seed):
        model = XLMRobertaModel(config)
    with torch.no_grad():
        model.embeddings.position_embeddings.weight.mul_(COMMON_SCALE)
        model.embeddings.token_type_embeddings.weight.mul_(COMMON_SCALE)
    return model
