"""Defaults of the recipe's keys, for models from scratch and for loaded ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BY_MODEL: Mapping[str, tuple[Any, Any]] = {
    "learning_rate": (1e-3, 1e-5),
    "num_train_epochs": (2, 3),
    "per_device_train_batch_size": (64, 8),
    "query_max_len": (64, 32),
    "passage_max_len": (192, 128),
    "sentence_pooling_method": ("mean", "cls"),
}
"""Key → value for a from-scratch model, value for a loaded model.

A small random encoder takes large steps, batches large enough to give every query many negatives, and the mean of all
tokens, because the state of its first token says next to nothing of the others. A model that is loaded has
FlagEmbedding's lengths, batch and epochs, and the learning rate that BGE-M3 was published with.
"""
