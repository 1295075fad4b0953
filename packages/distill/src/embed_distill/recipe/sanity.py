"""``--sanity``: the recipe in miniature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from embed_core.models.from_scratch import FROM_SCRATCH
from embed_distill.recipe.compile import DRAWN, Compiler

if TYPE_CHECKING:
    from embed_distill.recipe.recipe import DistillRecipe

ROWS = 128
LIMITS = {"query_limit": 32, "corpus_limit": 64}
TINY = {"vocab_size": 500, "layers": 1, "heads": 2}


def sanity(recipe: DistillRecipe, config_name: str) -> dict[str, Any]:
    """What is laid over the compiled run of a config of that name. Embedded models keep the widths that the user
    gave."""
    compiler = Compiler(recipe, config_name, 1)
    rows = _small(compiler.rows())
    teacher = _small_teacher(compiler.teacher(), rows)
    overlay: dict[str, Any] = {
        "evaluation": [_small_evaluation(one, teacher) for one in compiler.evaluation()],
        "data": _small_rows(recipe, rows, teacher),
    }
    if recipe.model.student == FROM_SCRATCH and not recipe.training.skip_phase1:
        shape = {"from_scratch": {**TINY}}
        overlay["model"] = {"inner": shape} if recipe.model.use_projection else shape
    if not recipe.training.skip_phase1:
        texts = {
            "datasets": [_small(compiler.source(given)) for given in recipe.phase1.datasets],
            "max_samples_per_dataset": min(ROWS, recipe.phase1.max_samples_per_dataset or ROWS),
        }
        overlay["phases"] = {0: {"data": {"inner": texts, **teacher}}}
    return overlay


def _small_rows(recipe: DistillRecipe, rows: dict[str, Any], teacher: dict[str, Any]) -> dict[str, Any]:
    return {"inner": rows, **teacher} if recipe.phase2.mse_weight else rows


def _small(data: Mapping[str, Any]) -> dict[str, Any]:
    if data.get("kind") not in DRAWN:
        return dict(data)
    return {**data, "limit": min(ROWS, data.get("limit") or ROWS)}


def _small_teacher(teacher: dict[str, Any], rows: dict[str, Any]) -> dict[str, Any]:
    """An embedded teacher of a few steps; one that is loaded is as it is."""
    if "teacher" not in teacher:
        return teacher
    trained = teacher["teacher"]
    model = {**trained["model"], "from_scratch": {**trained["model"]["from_scratch"], **TINY}}
    train = {**trained["train"], "max_steps": 4}
    sampler = {**trained["sampler"], "batch_size": 8}
    return {"teacher": {**trained, "model": model, "data": rows, "train": train, "sampler": sampler}}


def _small_evaluation(one: dict[str, Any], teacher: dict[str, Any]) -> dict[str, Any]:
    return {**one, **LIMITS, **(teacher if one["kind"] == "two-by-two" else {})}
