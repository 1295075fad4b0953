"""A tiny encoder directory-to-be: random weights, a tokenizer trained on the texts below."""

from __future__ import annotations

import pytest
import torch

from embed_core.models.from_scratch.config import EncoderShape
from embed_core.models.from_scratch.encoder import xlm_roberta
from embed_core.models.from_scratch.unigram import unigram_tokenizer
from embed_core.models.transformers_encoder.config import TransformersEncoderConfig
from embed_core.models.transformers_encoder.model import TransformersEncoder

torch.set_num_threads(1)

TEXTS = [
    "Which values of a vector come first?",
    "The first values of a vector say most; the others say the rest, and the rest of the rest.",
    "A short one",
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> TransformersEncoder:
    """32 dimensions, mean pooling, unit length; a prompt for queries."""
    shape = EncoderShape(vocab_size=120, hidden=32, layers=1, heads=2)
    cache = tmp_path_factory.mktemp("cache")
    tokenizer = unigram_tokenizer(TEXTS, shape.vocab_size, cache, lambda line: None, max_length=64)
    encoder = xlm_roberta(len(tokenizer), shape, max_length=64, seed=7)
    config = TransformersEncoderConfig(
        pooling="mean", query_max_length=64, passage_max_length=64, query_prompt="query: "
    )
    return TransformersEncoder(config, encoder, tokenizer).eval()
