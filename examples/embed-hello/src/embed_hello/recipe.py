"""The recipe: the few keys a user of this plugin knows, compiled into a whole run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from embed_core.config.recipe import Recipe

PACKAGED_ROWS = Path(__file__).with_name("stdlib.jsonl")


class HelloRecipe(Recipe):
    """Trains in seconds on 320 docstrings of the standard library: first paragraph → signature and the rest."""

    name: ClassVar[str] = "hello"

    held_out_rows: int = Field(default=64, ge=0)
    """Rows kept from training for the evaluation before and after."""
    name_or_path: str = "from-scratch"
    """``from-scratch``, or an exported model to go on from."""
    epochs: float = Field(default=10.0, gt=0)
    """Passes over the training rows."""
    batch_size: int = Field(default=32, gt=1)
    """Rows of one global batch: how many negatives a row sees is mathematics, so it does not grow with the ranks."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW."""
    margin: float = Field(default=0.8, gt=0, le=2)
    """By how much the cosine of the positive must exceed that of a negative."""

    def compile(self, world_size: int) -> dict[str, Any]:
        """The run as a plain mapping. Keys that are no field here are laid over it: ``--set data.path=mine.jsonl``."""
        return {
            "name": self.name,
            "model": {"kind": "hello", "name_or_path": self.name_or_path},
            "data": {"kind": "retrieval", "path": str(PACKAGED_ROWS), "held_out_rows": self.held_out_rows},
            "sampler": {"kind": "hello", "batch_size": self.batch_size},
            "loss": {"kind": "hello", "margin": self.margin},
            "checkpoint": {"kind": "hello"},
            "evaluation": [{"kind": "retrieval"}] if self.held_out_rows else [],
            "train": {
                "epochs": self.epochs,
                "optimizer": {"learning_rate": self.learning_rate},
                "schedule": {"kind": "cosine"},
            },
            # An n-gram costs next to nothing to encode: larger chunks than a transformer would want.
            "engine": {"token_budget": 8192},
        }

    def sanity(self) -> dict[str, Any]:
        """``--sanity`` shrinks the table; the data is small already."""
        return {"model": {"buckets": 256}} if self.name_or_path == "from-scratch" else {}
