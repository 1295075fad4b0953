"""Turns a stage of a curriculum into a phase of the run: its rows, batches, loss and learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from embed_core.config.document import lay_over
from embed_core.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from embed_core.config.run import RunConfig
    from embed_qwen.curriculum_config import CurriculumConfig, StageConfig


def phase(curriculum: CurriculumConfig, number: int, run: RunConfig) -> dict[str, Any]:
    """Stage ``number``, counted from 0, as a mapping of ``RunConfig.phases``. Raises ConfigError."""
    stage = curriculum.stages[number]
    name = stage.title(number + 1)
    return {
        "name": name,
        "data": _data(stage),
        "sampler": _plain(curriculum.batches()),
        "loss": _loss(stage, name, run),
        "train": lay_over(_plain(run.train), _train(stage)),
    }


def _data(stage: StageConfig) -> dict[str, Any] | None:
    """The stage's data; None where it trains on the run's rows unchanged."""
    data = None if stage.data is None else _plain(stage.data)
    if stage.remine is not False:
        options = stage.remine if isinstance(stage.remine, dict) else {}
        data = {"kind": "remined", "inner": data, **options}
    if stage.drawn is None:
        return data
    return {"kind": "banded", "inner": data, "negatives": stage.drawn, **_plain(stage.difficulty)}


def _loss(stage: StageConfig, name: str, run: RunConfig) -> dict[str, Any] | None:
    wanted = dict(stage.loss)
    if stage.hard_negatives is not None:
        field = type(run.loss).model_fields.get("hard_negatives")
        if field is None or stage.hard_negatives not in get_args(field.annotation):
            raise ConfigError(
                f"sampler 'curriculum', stage {name!r}: hard_negatives {stage.hard_negatives!r} is no option of loss "
                f"{run.loss.kind!r}: leave it out, or use loss qwen3-infonce"
            )
        wanted.setdefault("hard_negatives", stage.hard_negatives)
    laid: dict[str, Any] | None = lay_over(_plain(run.loss), wanted) if wanted else None
    return laid


def _train(stage: StageConfig) -> dict[str, Any]:
    own = {key: getattr(stage, key) for key in ("epochs", "max_steps") if getattr(stage, key) is not None}
    if stage.learning_rate is not None:
        own["optimizer"] = {"learning_rate": stage.learning_rate}
    if stage.warmup_steps is not None:
        own["schedule"] = {"warmup_steps": stage.warmup_steps}
    return own


def _plain(config: BaseModel) -> dict[str, Any]:
    return config.model_dump(mode="json", serialize_as_any=True)
