"""What the recipe's keys default to, by kind of model."""

from __future__ import annotations

from dataclasses import dataclass

from embed_core.text.pooling import Pooling


@dataclass(frozen=True, slots=True)
class Defaults:
    """The keys whose good values depend on whether the model has been trained before."""

    learning_rate: float
    num_train_epochs: float
    per_device_train_batch_size: int
    query_max_len: int
    passage_max_len: int
    sentence_pooling_method: Pooling


SCRATCH = Defaults(
    learning_rate=1e-3,
    num_train_epochs=2,
    per_device_train_batch_size=64,
    query_max_len=64,
    passage_max_len=192,
    sentence_pooling_method="mean",
)
"""A small random encoder: large steps, batches large enough to give every query many negatives, and the mean of all
tokens, because the state of a random encoder's first token says next to nothing of the others."""

FINE_TUNING = Defaults(
    learning_rate=1e-5,
    num_train_epochs=3,
    per_device_train_batch_size=8,
    query_max_len=32,
    passage_max_len=128,
    sentence_pooling_method="cls",
)
"""FlagEmbedding's lengths, batch and epochs, and the learning rate that BGE-M3 was published with."""
