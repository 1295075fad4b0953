"""The embedded teacher and student: what runs without any model, in minutes on two cores."""

from __future__ import annotations

from typing import Any

HEAD_DIM = 32
"""Values of an attention head at most."""
TEACHER_SEED = 42
"""The teacher is the same whatever the student's seed, so that it is trained once."""


def heads(hidden: int) -> int:
    """Attention heads that divide ``hidden``, of about :data:`HEAD_DIM` values each."""
    return next(count for count in range(max(1, hidden // HEAD_DIM), 0, -1) if hidden % count == 0)


def embedded_student(dim: int) -> dict[str, Any]:
    """Shape of a student with random weights."""
    return {"hidden": dim, "layers": 2, "heads": heads(dim), "vocab_size": 8_000}


def embedded_teacher(dim: int, max_length: int, rows: dict[str, Any]) -> dict[str, Any]:
    """One that is wider, deeper and trained longer than the student, contrastively on ``rows``."""
    return {
        "model": {
            "kind": "transformers-encoder",
            "name_or_path": "from-scratch",
            "from_scratch": {"hidden": dim, "layers": 4, "heads": heads(dim), "vocab_size": 16_000},
            "query_max_length": max_length,
            "passage_max_length": max_length,
        },
        "data": rows,
        "sampler": {"kind": "no-duplicates", "batch_size": 64},
        "loss": {"kind": "infonce", "temperature": 0.02},
        "train": {"epochs": 2.0, "optimizer": {"learning_rate": 1e-3}},
        "seed": TEACHER_SEED,
        "max_length": max_length,
    }
