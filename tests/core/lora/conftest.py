"""Small BGE-M3 directories to adapt, and models with adapters that already change something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from embed_bge.config import BGEM3ModelConfig
from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.models.from_scratch.config import EncoderShape
from embed_core.models.from_scratch.encoder import xlm_roberta
from embed_core.models.from_scratch.unigram import unigram_tokenizer
from embed_core.models.lora.config import LoraModelConfig
from embed_core.testing.datasets import tiny_dataset

torch.set_num_threads(1)

Adapt = Callable[..., Any]


def context(lines: list[str] | None = None) -> BuildContext:
    return BuildContext(registry=Registry(), announce=(lambda line: None) if lines is None else lines.append)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model`` and, with dropout, ``model-dropout``: encoders of two layers, without heads."""
    out = tmp_path_factory.mktemp("base")
    tokenizer = unigram_tokenizer(tiny_dataset().texts(), 200, out, lambda line: None, max_length=64)
    for name, dropout in (("model", 0.0), ("model-dropout", 0.2)):
        shape = EncoderShape(vocab_size=200, hidden=16, layers=2, heads=2, dropout=dropout)
        tokenizer.save_pretrained(out / name)
        xlm_roberta(len(tokenizer), shape, max_length=64, seed=3).save_pretrained(out / name)
    return out


@pytest.fixture
def bge(base: Path) -> Callable[..., BGEM3ModelConfig]:
    """The config of the inner model."""
    return lambda **options: BGEM3ModelConfig(name_or_path=str(base / "model"), **options)


@pytest.fixture
def adapt(bge: Callable[..., BGEM3ModelConfig]) -> Adapt:
    """``adapt(r=4, inner=..., lines=[])`` → the model of the config, its adapters no longer zero."""

    def start(*, inner: Any = None, lines: list[str] | None = None, fresh: bool = False, **options: Any) -> Any:
        config = LoraModelConfig(inner=inner or bge(), **{"r": 4, **options})
        model = config.build(context(lines))
        if not fresh:
            stir(model)
        return model

    return start


def stir(model: Any) -> None:
    """Move everything that is trained: B leaves 0, and heads and lengths their first values."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.empty_like(parameter).normal_(0, 0.05, generator=generator)
            parameter.data += noise
