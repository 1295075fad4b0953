"""A tiny teacher and a tiny student as directories, of different widths, vocabularies and depths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.models.from_scratch.config import EncoderShape
from embed_core.models.from_scratch.encoder import xlm_roberta
from embed_core.models.from_scratch.unigram import unigram_tokenizer
from embed_core.models.transformers_encoder.config import TransformersEncoderConfig
from embed_core.testing.datasets import tiny_dataset
from embed_core.testing.fixtures import embed_registry

__all__ = ["embed_registry"]

torch.set_num_threads(1)

TEXTS = ["What does a projection do?", "It brings short vectors to the length of the teacher's.", "A word"]


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Teacher vectors of these tests are nobody else's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBED_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS


@pytest.fixture
def lines() -> list[str]:
    """What the components of :func:`context` announced."""
    return []


@pytest.fixture
def context(tmp_path: Path, lines: list[str]) -> BuildContext:
    return BuildContext(registry=Registry(), cache_dir=tmp_path / "cache", announce=lines.append)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``teacher`` (24 wide, 4 layers, sentence-transformers files, a document prompt) and ``student`` (16 wide, 2
    layers, another vocabulary)."""
    from embed_core.export.layout import write_directory

    out = tmp_path_factory.mktemp("tiny")
    for name, vocabulary, hidden, layers in (("teacher", 220, 24, 4), ("student", 160, 16, 2)):
        tokenizer = unigram_tokenizer(tiny_dataset().texts(), vocabulary, out, lambda line: None, max_length=64)
        shape = EncoderShape(vocab_size=vocabulary, hidden=hidden, layers=layers, heads=2, dropout=0.1)
        encoder = xlm_roberta(len(tokenizer), shape, max_length=64, seed=hidden)
        config = TransformersEncoderConfig(
            pooling="cls" if name == "teacher" else "mean",
            query_max_length=64,
            passage_max_length=64,
            query_prompt="ask: " if name == "teacher" else "query: ",
            passage_prompt="document: " if name == "teacher" else None,
        )
        from embed_core.models.transformers_encoder.model import TransformersEncoder

        model = TransformersEncoder(config, encoder, tokenizer)
        (out / name).mkdir()
        state = dict(model.named_parameters()) | dict(model.named_buffers())
        write_directory(model, state, out / name)
    return out


@pytest.fixture
def student(tiny: Path) -> Callable[..., TransformersEncoderConfig]:
    """The student's config; options change it."""

    def config(**options: Any) -> TransformersEncoderConfig:
        settings = {"name_or_path": str(tiny / "student"), "query_max_length": 64, "passage_max_length": 64}
        return TransformersEncoderConfig.model_validate({**settings, **options})

    return config
