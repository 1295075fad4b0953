"""Small sentence-transformers directories, a chain of modules each, and rows in several scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embed_core.models.from_scratch.config import EncoderShape
from embed_core.models.from_scratch.encoder import seeded, xlm_roberta
from embed_core.models.from_scratch.unigram import unigram_tokenizer

sys.path.insert(0, str(Path(__file__).parent))  # the test files here share sbert_parts.py
from sbert_parts import MAX_LENGTH, TEXTS, modules_of


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Transformers directories: ``plain``, ``dropout``, ``left`` (a tokenizer that pads left), ``decoder``."""
    from transformers import Qwen2Config, Qwen2Model

    out = tmp_path_factory.mktemp("encoders")
    tokenizer = unigram_tokenizer(TEXTS, 150, out, lambda line: None, max_length=MAX_LENGTH)
    for name, dropout in (("plain", 0.0), ("dropout", 0.2), ("left", 0.0)):
        shape = EncoderShape(vocab_size=150, hidden=16, layers=2, heads=2, dropout=dropout)
        xlm_roberta(len(tokenizer), shape, max_length=64, seed=3).save_pretrained(out / name)
        tokenizer.padding_side = "left" if name == "left" else "right"
        tokenizer.save_pretrained(out / name)
    with seeded(4):
        decoder = Qwen2Model(
            Qwen2Config(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=64,
                pad_token_id=1,
            )
        )
    decoder.save_pretrained(out / "decoder")
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(out / "decoder")
    return out


@pytest.fixture(scope="session")
def saved(encoders: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``saved("mean")`` → the directory that sentence-transformers writes of that chain; prompts where asked for."""
    out = tmp_path_factory.mktemp("saved")

    def write(chain: str, **options: Any) -> Path:
        from sentence_transformers import SentenceTransformer

        path = out / "-".join([chain, *(f"{key}{abs(hash(str(value)))}" for key, value in options.items())])
        if not path.exists():
            with seeded(7):
                SentenceTransformer(modules=modules_of(chain, encoders), device="cpu", **options).save(str(path))
        return path

    return write


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A JSONL file of (anchor, positive) pairs in several scripts."""
    topics = ("강", "엔진", "정원", "rivers", "engines", "сады", "письма", "橋", "市場", "惑星", "كتاب", "χειμώνας")
    rows = [
        {"anchor": f"{topic} {number}?", "positive": f"{topic} {number}: 긴 설명 of {topic}"}
        for topic in topics
        for number in range(6)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
