"""The embedded teacher and student: what runs without any model, in minutes on two cores."""

from __future__ import annotations

from typing import Any

from embed_distill.recipe.sections import PYDOCS

HEAD_DIM = 32
"""Values of an attention head at most."""
ALL_ROWS = 100_000
"""More than the embedded corpus has."""
TEACHER_SEED = 42
"""The teacher is the same whatever the student's seed, so that it is trained once."""


def heads(hidden: int) -> int:
    """Attention heads that divide ``hidden``, of about :data:`HEAD_DIM` values each."""
    return next(count for count in range(max(1, hidden // HEAD_DIM), 0, -1) if hidden % count == 0)


def embedded_student(dim: int) -> dict[str, Any]:
    """Shape of a student with random weights."""
    return {"hidden": dim, "layers": 1, "heads": heads(dim), "vocab_size": 8_000}


def embedded_teacher(dim: int, max_length: int, rows: dict[str, Any]) -> dict[str, Any]:
    """One that is wider and deeper than the student, trained contrastively on ``rows``. Of the embedded corpus it reads
    all there is, whatever the student is given: teachers have read more. The rows held out are the same."""
    whole = {"kind": "pydocs", "max_rows": ALL_ROWS}
    if rows.get("held_out_rows") is not None:
        whole["held_out_queries"] = rows["held_out_rows"]
    return {
        "model": {
            "kind": "transformers-encoder",
            "name_or_path": "from-scratch",
            "from_scratch": {"hidden": dim, "layers": 2, "heads": heads(dim), "vocab_size": 16_000},
            "query_max_length": max_length,
            "passage_max_length": max_length,
        },
        "data": whole if rows.get("path") == PYDOCS else rows,
        "sampler": {"kind": "no-duplicates", "batch_size": 64},
        "loss": {"kind": "infonce", "temperature": 0.02},
        "train": {"epochs": 2.0, "optimizer": {"learning_rate": 4e-3}},
        "seed": TEACHER_SEED,
        "max_length": max_length,
    }
