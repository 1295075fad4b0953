"""Actions at the end of a successful run: the table of the asymmetric evaluation, and the copy of the model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from embed_core.errors import CheckpointError
from embed_core.utils.atomic import beside
from embed_distill.evaluation.table import report

if TYPE_CHECKING:
    from embed_core.events import RunEvent


def ended(event: RunEvent) -> None:
    """Print the 2×2 table if there is one, and copy the model if the run's config has checkpoint kind ``artifacts``."""
    report(event)
    directory = _artifacts(event.output_dir)
    if directory is not None and event.export_dir is not None:
        copied(event.export_dir, directory)
        print(f"the model was copied to {directory}", flush=True)


def copied(model: Path, directory: Path) -> None:
    """Copy ``model`` to ``directory``, whole or not at all. Raises CheckpointError if it fails or the target exists."""
    temporary = beside(directory)
    try:
        if directory.exists():
            raise FileExistsError(17, "it exists, and nothing is overwritten")
        directory.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(model, temporary)
        temporary.rename(directory)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"the model could not be copied to {str(directory)!r} ({error.strerror or error}): it is in {str(model)!r}"
        ) from None


def _artifacts(output_dir: Path) -> Path | None:
    """The directory that the run's config names; None where the checkpoint is of another kind."""
    try:
        config = yaml.safe_load((output_dir / "config.yaml").read_text(encoding="utf-8"))
        checkpoint = config["checkpoint"]
        found = checkpoint["directory"] if checkpoint["kind"] == "artifacts" else None
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None
    return None if found is None else Path(found).expanduser()
