"""``skip_phase1``: the model that phase 1 left, found and checked before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from embed_core.models.hub import WEIGHT_FILES
from embed_distill.models.width import dense_width
from embed_distill.recipe.naming import experiment_name
from embed_distill.recipe.sections import ModelSection, PathsSection, TrainingSection

PHASE = "phase1"


class Placed(NamedTuple):
    """Where a run's files go, and what it starts from."""

    experiment: str
    checkpoint: Path | None
    """With ``skip_phase1``: the model directory that phase 1 left."""


def placed(model: ModelSection, paths: PathsSection, training: TrainingSection, config_name: str) -> Placed:
    """The experiment of a config of that name. Raises ValueError as :func:`find_phase1` does, and where the place for
    its artifacts is taken: before anything is read, not after the teacher's vectors have been computed."""
    name, checkpoint = experiment_name(model, config_name), None
    if training.skip_phase1:
        checkpoint = find_phase1(model, paths, training, config_name)
        if phase1_experiment(checkpoint, paths, name):
            name += "-phase2"
    taken = paths.artifacts_dir / name
    if training.save_to_artifacts and taken.expanduser().exists():
        raise ValueError(
            f"save_to_artifacts: {str(taken)!r} exists: move it away, or choose another paths.artifacts_dir; nothing "
            "was overwritten"
        )
    return Placed(name, checkpoint)


def find_phase1(model: ModelSection, paths: PathsSection, training: TrainingSection, config_name: str) -> Path:
    """The model directory. Raises ValueError where there is none, or where it is of another student or width."""
    if training.phase1_checkpoint is not None:
        found = training.phase1_checkpoint.expanduser()
        if not (found / "config.json").is_file():
            raise ValueError(f"phase1_checkpoint {str(found)!r} is no model directory: it has no config.json")
    else:
        found = _left_by_a_run(model, paths, config_name)
    _check(found, model)
    return found


def phase1_experiment(checkpoint: Path, paths: PathsSection, name: str) -> bool:
    """Whether ``checkpoint`` lies in the folder of experiment ``name``, which phase 2 then must not write over."""
    return (paths.output_dir / name).expanduser().resolve() in checkpoint.resolve().parents


def _left_by_a_run(model: ModelSection, paths: PathsSection, config_name: str) -> Path:
    names = dict.fromkeys(experiment_name(model, config) for config in (config_name, "default"))
    root = paths.output_dir.expanduser()
    looked = []
    for name in names:
        for place in (root / name / "phases" / PHASE / "model", root / name / "model"):
            if place.parent.name == PHASE or _only_phase_1(root / name):
                looked.append(place)
                if (place / "config.json").is_file():
                    return place
    others = sorted({str(path.parents[2].name) for path in root.glob(f"*/phases/{PHASE}/model")})
    hint = f"{root} has phase 1 of {', '.join(others)}" if others else f"no run in {root} has finished its phase 1"
    raise ValueError(
        f"skip_phase1: {str(looked[0])!r} is not there: {hint}; run phase 1, or set training.phase1_checkpoint to its "
        "model directory"
    )


def _only_phase_1(run: Path) -> bool:
    """Whether a run had no other phase (``skip_phase2``): its model is then phase 1's."""
    phases = _config_of(run).get("phases") or ()
    return [phase.get("name") for phase in phases] == [PHASE]


def _check(found: Path, model: ModelSection) -> None:
    if not any((found / name).is_file() for name in WEIGHT_FILES):
        raise ValueError(f"skip_phase1: {str(found)!r} has no weights: run phase 1 again")
    wanted = model.teacher_dim if model.use_projection else model.student_dim
    width = dense_width(str(found))
    if width is not None and wanted is not None and width.width != wanted:
        raise ValueError(
            f"skip_phase1: the vectors of {str(found)!r} have {width.width} values, this config's {wanted}: set "
            "the dimensions and use_projection as phase 1 had them, or run phase 1"
        )
    trained = _student_of(next((run for run in found.parents if (run / "config.yaml").is_file()), found))
    if trained is not None and trained != model.student:
        raise ValueError(
            f"skip_phase1: {str(found)!r} is student {trained!r}, this config's is {model.student!r}: set "
            "model.student to it, or run phase 1"
        )


def _student_of(run: Path) -> str | None:
    """The student that a run started from; None where no config says it."""
    config: Any = _config_of(run).get("model")
    while isinstance(config, dict) and isinstance(config.get("inner"), dict):
        config = config["inner"]
    return config.get("name_or_path") if isinstance(config, dict) else None


def _config_of(run: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
