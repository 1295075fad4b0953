"""The facts a model card is written from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class RunCard:
    """What a finished run says of itself."""

    name: str
    base_model: str
    config: Mapping[str, Any]
    """The resolved ``RunConfig`` as plain data."""
    data: Mapping[str, Any]
    """Name, rows, fingerprint of the training data."""
    evaluations: Mapping[int, Mapping[str, float]]
    """Step → ``evaluator/way/measure`` → value; step 0 is before training."""
    command: str
    """The command line that ran it."""
    steps: int
    versions: Mapping[str, str]
    """Of embed, torch, transformers, deepspeed."""
    loss_state: Mapping[str, Any] = field(default_factory=dict)
    """Trained parameters of the loss by name (fp32 CPU tensors): a logit scale belongs into a CLIP checkpoint."""
