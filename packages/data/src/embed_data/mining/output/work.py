"""The working files of a mining run, kept until it is finished, so that a killed run can continue."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

from embed_core.errors import CheckpointError
from embed_core.utils.atomic import check_writable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

PLAN = "plan.json"


class Work:
    """A folder beside the output, ``.NAME.work``: the plan, indices and vectors, and finished blocks of rows.

    Every file is written under another name and renamed: a file that exists is complete.
    """

    def __init__(self, output: Path, plan: Mapping[str, Any]) -> None:
        self.output, self._plan = output, dict(plan)
        self.folder = output.with_name(f".{output.name}.work")

    def check(self, *, overwrite: bool) -> bool:
        """Whether there is unfinished work to continue. Changes nothing.

        Raises CheckpointError for an output that exists, and for the unfinished work of another plan.
        """
        check_output(self.output, overwrite=overwrite)
        if not self.folder.exists():
            return False
        former = self._former()
        if former == self._plan:
            return True
        if former is not None and not overwrite:
            changed = ", ".join(sorted(key for key in {*former, *self._plan} if former.get(key) != self._plan.get(key)))
            raise CheckpointError(
                f"{self.folder} holds the unfinished work of another command (different: {changed}): repeat that one, "
                "or start anew with --overwrite"
            )
        return False

    def start(self) -> None:
        """Make the folder for this plan, and remove what another plan left."""
        if self._former() == self._plan:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.write(PLAN, json.dumps(self._plan, indent=2, ensure_ascii=False, sort_keys=True))

    def write(self, name: str, text: str) -> None:
        """Write one file atomically."""
        temporary = self.folder / f".{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.folder / name)

    def has_block(self, number: int) -> bool:
        """Whether a block of rows is finished."""
        return (self.folder / f"block-{number:06}.json").exists()

    def write_block(self, number: int, lines: Mapping[str, Sequence[str]], counts: Mapping[str, int]) -> None:
        """Write a finished block: lines by output, and counts to add up, which come last and mark it complete."""
        for name, found in lines.items():
            self.write(f"block-{number:06}.{name}.jsonl", "".join(line + "\n" for line in found))
        self.write(f"block-{number:06}.json", json.dumps(counts))

    def finish(self, blocks: int, outputs: Mapping[str, Path]) -> dict[str, int]:
        """Join the blocks into the outputs, each renamed into place, and remove the folder; returns all counts."""
        total: dict[str, int] = {}
        for number in range(blocks):
            counts = json.loads((self.folder / f"block-{number:06}.json").read_text(encoding="utf-8"))
            for key, value in counts.items():
                total[key] = total.get(key, 0) + value
        for name, target in outputs.items():
            self._join(name, blocks, target)
        shutil.rmtree(self.folder)
        return total

    def _join(self, name: str, blocks: int, target: Path) -> None:
        temporary = target.with_name(f".{target.name}.tmp")
        with temporary.open("wb") as whole:
            for number in range(blocks):
                with (self.folder / f"block-{number:06}.{name}.jsonl").open("rb") as part:
                    shutil.copyfileobj(part, whole)
            whole.flush()
            os.fsync(whole.fileno())
        temporary.replace(target)

    def _former(self) -> dict[str, Any] | None:
        """The plan in the folder; None where there is none, or a kill came before it was written."""
        path = self.folder / PLAN
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise CheckpointError(f"{path}: damaged (not JSON): remove the folder {self.folder}") from None
        return found if isinstance(found, dict) else {}


def check_output(path: Path, *, overwrite: bool) -> None:
    """Raises CheckpointError where ``path`` cannot be written, or exists and must not be replaced."""
    if path.is_dir():
        raise CheckpointError(f"output {str(path)!r} is a folder: give the name of a .jsonl file")
    if path.exists() and not overwrite:
        raise CheckpointError(f"output {str(path)!r} exists: --overwrite replaces it, --output chooses another")
    if not path.parent.is_dir():
        raise CheckpointError(f"output {str(path)!r}: the folder {str(path.parent)!r} does not exist: create it")
    try:
        check_writable(path.parent)
    except OSError as error:
        raise CheckpointError(f"output {str(path)!r} cannot be written ({error.strerror}): choose another") from None
