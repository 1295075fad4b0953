"""A tiny Qwen3 directory: random weights, a byte-level tokenizer trained on the texts below."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.models.from_scratch.byte_level import byte_level_tokenizer
from embed_qwen.build import write_scratch
from embed_qwen.model import Qwen3EmbeddingModel
from embed_qwen.model_config import Qwen3EmbeddingConfig, Qwen3Shape

torch.set_num_threads(1)

TEXTS = [
    "Which token of a text becomes its vector?",
    "The last token has seen all others, so its state is the vector of the text, and of the text, and of the text.",
    "Wie lang darf ein Absatz sein?",
    "解码器的最后一个词元",
    "A short one",
    "def pool(states, mask): return the state of the last token, of the last token that is no padding",
]
SHAPE = Qwen3Shape(vocab_size=300, hidden=32, layers=2, heads=4, key_value_heads=2)


def quiet_context(**options: Any) -> BuildContext:
    return BuildContext(registry=Registry(), announce=lambda line: None, **options)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory as the plugin makes one from scratch."""
    folder = tmp_path_factory.mktemp("qwen")
    tokenizer = byte_level_tokenizer(TEXTS, SHAPE.vocab_size, folder, lambda line: None, max_length=64)
    write_scratch(SHAPE, tokenizer, 7, folder / "base", positions=256)
    return folder / "base"


@pytest.fixture(scope="session")
def make_model(base: Path) -> Callable[..., Qwen3EmbeddingModel]:
    """``make_model(**config)``: the directory loaded, in evaluation mode."""

    def make(**options: Any) -> Qwen3EmbeddingModel:
        chosen = {"name_or_path": str(base), "query_max_length": 64, "passage_max_length": 64, "instruction": "Find it"}
        chosen |= options
        return Qwen3EmbeddingConfig(**chosen).build(quiet_context()).eval()

    return make
