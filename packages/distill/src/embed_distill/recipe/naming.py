"""Names experiments, for instance ``distilled-mpnet-3584d-default``."""

from __future__ import annotations

import re
from pathlib import Path

from embed_core.models.from_scratch import FROM_SCRATCH
from embed_distill.recipe.sections import ModelSection

_SIZE = re.compile(r"(base|small|large|mini|tiny|medium|xl|xxl|v?\d+(\.\d+)*[bm]?|l\d+|h\d+)", re.IGNORECASE)
"""Where the name of a family ends."""


def student_name(student: str) -> str:
    """The family: ``mpnet`` of ``sentence-transformers/all-mpnet-base-v2``; of a directory its name."""
    if student == FROM_SCRATCH:
        return "scratch"
    name = Path(student).name
    words = name.removeprefix("all-").split("-")
    family = []
    for word in words:
        if _SIZE.fullmatch(word):
            break
        family.append(word)
    return re.sub(r"[^A-Za-z0-9._-]", "-", "-".join(family) or name)


def experiment_name(model: ModelSection, config_name: str) -> str:
    """``distilled-STUDENT-DIMENSIONSd-CONFIG``; the dimensions are those of the finished model's vectors."""
    width = model.teacher_dim if model.use_projection else model.student_dim
    dims = f"-{width}d" if width else ""
    return f"distilled-{student_name(model.student)}{dims}-{config_name}"
