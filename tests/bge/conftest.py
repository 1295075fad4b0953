"""A tiny BGE-M3 directory: random weights, a tokenizer trained on the texts below, both heads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from embed_bge.build import fresh_heads
from embed_bge.config import BGEM3ModelConfig
from embed_bge.model import BGEM3Model
from embed_core.models.from_scratch.config import EncoderShape
from embed_core.models.from_scratch.encoder import xlm_roberta
from embed_core.models.from_scratch.unigram import unigram_tokenizer

torch.set_num_threads(1)

TEXTS = [
    "How does a lexical weight reach the score of a passage?",
    "The weight of a token is the largest one over its positions, and the same token, the same token counts once.",
    "Wie lang darf ein Absatz sein?",
    "多語言模型的向量",
    "A short one",
    "def pool(states, mask, method): return the vector of the first token, or the mean of all the tokens of the text",
]


def build(tmp: Path, colbert_dim: int = -1, **options: object) -> BGEM3Model:
    """A model from scratch, as ``BGEM3ModelConfig.build`` makes it, in evaluation mode."""
    config = BGEM3ModelConfig(colbert_dim=colbert_dim, **options)  # type: ignore[arg-type]
    shape = EncoderShape(vocab_size=300, hidden=32, layers=2, heads=2)
    tokenizer = unigram_tokenizer(TEXTS, shape.vocab_size, tmp, lambda line: None, max_length=192)
    encoder = xlm_roberta(len(tokenizer), shape, max_length=192, seed=7)
    heads = fresh_heads(config, encoder, seed=7) if config.unified_finetuning else {}
    return BGEM3Model.from_parts(config, encoder, tokenizer, heads).eval()


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make_model(cache: Path):
    """``make_model(colbert_dim=…, **config)``."""
    return lambda **options: build(cache, **options)
