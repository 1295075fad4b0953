"""What several test files here share: chains of modules, texts, and how a directory becomes the loop's model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_sbert.config import SentenceTransformersModelConfig

torch.set_num_threads(1)

TEXTS = [
    "의자는 앉는 가구이다",
    "CPU",
    "The rivers of the north freeze late; the smaller ones, which no ship sails, freeze first and thaw last of all.",
    "中央処理装置 и центральный процессор",
    "وحدة المعالجة المركزية",
    "A short one",
]
WORDS = sorted({word for text in TEXTS for word in text.split()})
MAX_LENGTH = 24
CHAINS = (
    "mean", "cls", "max", "weighted", "sqrt", "last", "two-poolings", "dense", "layers", "norm",
    "words", "word-weights", "lstm", "cnn", "static", "bow", "router", "asymmetric", "no-prompt", "left", "decoder",
)  # fmt: skip
"""Every kind of module there is for text, in the chains they come in."""


def context(lines: list[str] | None = None, **more: Any) -> BuildContext:
    return BuildContext(registry=Registry(), announce=(lambda line: None) if lines is None else lines.append, **more)


def build(path: Path, lines: list[str] | None = None, **options: Any) -> Any:
    """The loop's model of a directory."""
    return SentenceTransformersModelConfig(name_or_path=str(path), **options).build(context(lines))


def modules_of(chain: str, encoders: Path) -> list[Any]:
    """The modules of one of :data:`CHAINS`."""
    from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
    from sentence_transformers.sentence_transformer import modules as m
    from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

    def transformer(name: str = "plain", **options: Any) -> Any:
        return Transformer(str(encoders / name), **options)

    def words(*, train: bool = True) -> Any:
        weights = torch.randn(len(WORDS), 16).numpy()
        return m.WordEmbeddings(WhitespaceTokenizer(WORDS, stop_words=[]), weights, update_embeddings=train)

    def static() -> Any:
        return m.StaticEmbedding(transformer().tokenizer, embedding_dim=16)

    poolings = {"mean": "mean", "cls": "cls", "max": "max", "weighted": "weightedmean", "last": "lasttoken"}
    if chain in poolings:
        return [transformer(), m.Pooling(16, poolings[chain])]
    made: dict[str, Callable[[], list[Any]]] = {
        "sqrt": lambda: [transformer(), m.Pooling(16, "mean_sqrt_len_tokens"), Normalize()],
        "two-poolings": lambda: [transformer(), m.Pooling(16, ("cls", "mean"))],
        "dense": lambda: [transformer("dropout"), m.Pooling(16), Dense(16, 8), m.Dropout(0.1), Normalize()],
        "mean-dense": lambda: [transformer(), m.Pooling(16), Dense(16, 8), Normalize()],
        "norm": lambda: [transformer(), m.Pooling(16), m.LayerNorm(16)],
        "layers": lambda: [
            transformer(config_kwargs={"output_hidden_states": True}),
            m.WeightedLayerPooling(16, num_hidden_layers=2, layer_start=1),
            m.Pooling(16),
        ],
        "words": lambda: [words(), m.Pooling(16, "mean"), Dense(16, 8)],
        "word-weights": lambda: [
            words(train=False),
            m.WordWeights(WORDS, {"CPU": 2.0, "A": 0.5}),
            m.Pooling(16, "mean"),
            Dense(16, 8),
        ],
        "lstm": lambda: [words(), m.LSTM(16, 8), m.Pooling(16, "mean")],
        "cnn": lambda: [words(), m.CNN(16, 4, [1, 3]), m.Pooling(8, "max")],
        "static": lambda: [static()],
        "bow": lambda: [m.BoW(WORDS), Dense(len(WORDS), 8)],
        "router": lambda: [
            Router.for_query_document([transformer(), m.Pooling(16)], [transformer(), m.Pooling(16), Dense(16, 16)]),
            Normalize(),
        ],
        "asymmetric": lambda: [Router.for_query_document([static()], [transformer(), m.Pooling(16)])],
        "no-prompt": lambda: [transformer(), m.Pooling(16, "mean", include_prompt=False), Normalize()],
        "left": lambda: [transformer("left"), m.Pooling(16, "weightedmean")],
        "decoder": lambda: [transformer("decoder"), m.Pooling(16, "lasttoken"), Normalize()],
    }
    return made[chain]()
