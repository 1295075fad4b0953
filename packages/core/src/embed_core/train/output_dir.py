"""The output directory of a run: it refuses to overwrite, and finished files are renamed into place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from embed_core.errors import CheckpointError
from embed_core.utils.atomic import check_writable

STATUS = "run.json"
CHECKPOINTS = "checkpoints"
EXPORT = "model"
PHASES = "phases"
TRACKERS = ("tensorboard", "wandb", "swanlab", "mlruns")
OURS = (STATUS, CHECKPOINTS, EXPORT, PHASES, "config.yaml", "metrics.jsonl", *TRACKERS)
LEFT_OVER = (f".{EXPORT}.tmp", f".{EXPORT}.old", f".{STATUS}.tmp", ".config.yaml.tmp", "metrics.jsonl.tmp")
"""Temporary names that a kill may leave behind."""


class OutputDir:
    """``config.yaml``, ``metrics.jsonl``, ``run.json``, ``checkpoints/step-N/``, ``phases/NAME/``, ``model/``, the
    trackers' folders."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / CHECKPOINTS
        self.export = path / EXPORT

    def phase(self, name: str) -> Path:
        """The folder of a phase: its model (``model``), and what its components keep."""
        return self.path / PHASES / name

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Check that this run may write here, and change nothing. Raises CheckpointError with what to do instead."""
        if not self.path.exists():
            if resume:
                raise CheckpointError(
                    f"--resume: output directory {str(self.path)!r} does not exist: nothing to resume"
                )
            self._check_writable()
            return
        if not self.path.is_dir():
            raise CheckpointError(f"output directory {str(self.path)!r} is a file: choose another with --output-dir")
        self._check_writable()
        if not any(self.path.iterdir()):
            return
        state = self.status()
        if state is None:
            raise CheckpointError(
                f"output directory {str(self.path)!r} holds files that are not a run's: "
                "choose another with --output-dir"
            )
        if resume or overwrite:
            return
        if state.get("status") == "finished":
            raise CheckpointError(
                f"output directory {str(self.path)!r} holds a finished run: "
                "--overwrite replaces it, --output-dir chooses another"
            )
        raise CheckpointError(
            f"output directory {str(self.path)!r} holds an unfinished run: "
            "--resume continues it, --overwrite replaces it, --output-dir chooses another"
        )

    def create(self, *, overwrite: bool) -> None:
        """Create the directory and clear what a kill left half written; with ``overwrite`` a former run's files too.

        Nothing else in the directory is touched.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for name in (*LEFT_OVER, *(OURS if overwrite else ())):
            target = self.path / name
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)

    def status(self) -> dict[str, Any] | None:
        """The content of ``run.json``; ``None`` where there is none. Raises CheckpointError when it is damaged."""
        path = self.path / STATUS
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise CheckpointError(f"{path}: damaged (not JSON): delete the file, or --output-dir elsewhere") from None
        if not isinstance(content, dict):
            raise CheckpointError(f"{path}: damaged (no mapping): delete the file, or --output-dir elsewhere")
        return content

    def write_status(self, **facts: Any) -> None:
        """Replace ``run.json`` in one piece."""
        write_text(self.path / STATUS, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")

    def _check_writable(self) -> None:
        """Raises CheckpointError where the nearest existing parent cannot be written."""
        parent = self.path
        while not parent.exists():
            parent = parent.parent
        try:
            check_writable(parent)
        except OSError as error:
            raise CheckpointError(
                f"output directory {str(self.path)!r} cannot be written ({error.strerror}: {str(parent)!r}): "
                "choose another with --output-dir"
            ) from None


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it: a reader sees the old content or the new, never half."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def replace_directory(temporary: Path, target: Path) -> None:
    """Move ``temporary`` to ``target``, which is removed first where it exists."""
    if target.exists():
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        temporary.rename(target)
