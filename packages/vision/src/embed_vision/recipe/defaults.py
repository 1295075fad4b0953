"""Defaults of the recipe's keys by kind of model, and the meanings of their words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from embed_core.config.component import resolved_path
from embed_core.models.from_scratch import FROM_SCRATCH
from embed_vision.models.config import ClipShape

BY_MODEL: Mapping[str, tuple[Any, Any]] = {
    "learning_rate": (1e-3, 2e-5),
    "epochs": (10, 3),
    "batch_size": (64, 32),
}
"""Key → value for a small random model, value for one that is loaded.

From scratch: large steps, and batches that give every query many negatives. A model that is loaded has the learning
rate, epochs and batch of the flat keys' first home, vembed-factory."""

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
"""Temperature of the loss that does not learn it."""
USUAL_SIDE, USUAL_PATCH = 224, 14
"""Pixels of a picture and of a patch, where neither is known before the model is loaded: 257 tokens."""
_PATCH = re.compile(r"patch(\d+)(?:-(\d+))?", re.IGNORECASE)
"""Patch and picture size in names of hub models: ``clip-vit-base-patch32``, ``siglip-base-patch16-384``."""


def tokens_per_picture(name: str, from_scratch: Mapping[str, Any]) -> int:
    """What a chunk of so many pictures is measured in: patches, and the class token.

    Read from ``config.json`` where ``name`` is a directory; of a model of the hub, which may not have been fetched yet,
    from the name, else :data:`USUAL_SIDE` and :data:`USUAL_PATCH`.
    """
    if name == FROM_SCRATCH:
        shape = ClipShape().model_dump() | dict(from_scratch)
        side, patch = shape["image_size"], shape["patch_size"]
    else:
        side, patch = _in_config(resolved_path(name) / "config.json") or _in_name(name)
    return int((side // patch) ** 2 + 1)


def _in_config(path: Path) -> tuple[int, int] | None:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        vision = config.get("vision_config", config)
        return int(vision["image_size"]), int(vision["patch_size"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _in_name(name: str) -> tuple[int, int]:
    found = _PATCH.search(name)
    if found is None or not int(found[1]):
        return USUAL_SIDE, USUAL_PATCH
    return int(found[2] or USUAL_SIDE), int(found[1])


def trackers(report_to: str | tuple[str, ...]) -> list[str]:
    """``report_to`` as a list: ``none`` is empty, ``all`` all of them. Raises ValueError for these two in a list."""
    if isinstance(report_to, str):
        return {"none": [], "all": list(TRACKERS)}.get(report_to, [report_to])
    for name in report_to:
        if name not in TRACKERS:
            raise ValueError(f"report_to: {name!r} stands alone: a list names one of {', '.join(TRACKERS)}")
    return list(report_to)
