"""What the recipe's keys default to, by kind of model, and what the keys' words mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from embed_core.config.base import resolved_path


@dataclass(frozen=True, slots=True)
class Defaults:
    """The keys whose good values depend on whether the model has been trained before."""

    learning_rate: float
    epochs: float
    batch_size: int


SCRATCH = Defaults(learning_rate=1e-3, epochs=10, batch_size=64)
"""A small random model: large steps, and batches that give every query many negatives."""
FINE_TUNING = Defaults(learning_rate=2e-5, epochs=3, batch_size=32)
"""The learning rate, epochs and batch of the flat keys' first home, vembed-factory."""

LOSSES: Mapping[str, str] = {
    "clip": "clip",
    "infonce": "infonce",
    "siglip": "siglip",
    "sigmoid": "siglip",
    "triplet": "triplet",
    "cosent": "cosent",
}
"""``loss_type`` → kind."""
SCHEDULES: Mapping[str, Literal["linear", "cosine", "constant"]] = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
"""``scheduler_type`` → kind of schedule; ``constant`` has no warm-up."""
Tracker = Literal["none", "all", "tensorboard", "wandb", "swanlab", "mlflow"]
TRACKERS = ("tensorboard", "wandb", "swanlab", "mlflow")
INFONCE_TEMPERATURE = 0.05
"""Of the loss with a fixed temperature."""
USUAL_TOKENS = 257
"""Of a picture, where the model's size cannot be read before it is loaded: 224 × 224 pixels in patches of 14."""


def tokens_per_item(name: str, from_scratch: Mapping[str, Any]) -> int:
    """Tokens of a picture or of the longest text, whichever is more: what a chunk of so many items is measured in.

    Read from ``config.json`` where ``name`` is a directory; :data:`USUAL_TOKENS` for a model of the hub.
    """
    side, patch = from_scratch.get("image_size", 48), from_scratch.get("patch_size", 8)
    longest = from_scratch.get("max_length", 77)
    if name != "from-scratch":
        try:
            config = json.loads((resolved_path(name) / "config.json").read_text(encoding="utf-8"))
            vision, text = config.get("vision_config", config), config.get("text_config", {})
            side, patch = int(vision["image_size"]), int(vision["patch_size"])
            longest = int(text.get("max_position_embeddings", 77))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return USUAL_TOKENS
    return max((int(side) // int(patch)) ** 2 + 1, min(int(longest), 512))


def trackers(report_to: str | tuple[str, ...]) -> list[str]:
    """``report_to`` as a list: ``none`` is empty, ``all`` all of them. Raises ValueError for these two in a list."""
    if isinstance(report_to, str):
        return {"none": [], "all": list(TRACKERS)}.get(report_to, [report_to])
    for name in report_to:
        if name not in TRACKERS:
            raise ValueError(f"report_to: {name!r} stands alone: a list names one of {', '.join(TRACKERS)}")
    return list(report_to)
