"""Keeps results on disk: one folder per stage, named by a digest of all that the result depends on.

A stage that was started before is continued. Another model, other data or another way of chunking has another folder,
so that results are never mixed and nothing has to be thrown away.
"""

from __future__ import annotations

import json
import os
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from embed_core.errors import CheckpointError
from embed_core.utils.atomic import replacing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

WORK = ".work"


class Stage:
    """Numbered blocks of JSON lines. Every file is renamed into place: a file that exists is complete."""

    def __init__(self, output: Path, name: str, plan: Mapping[str, Any]) -> None:
        text = json.dumps(plan, sort_keys=True, ensure_ascii=False, indent=2)
        self.digest = blake2b(text.encode(), digest_size=8).hexdigest()
        self.folder = output / WORK / f"{name}-{self.digest}"
        self._plan = text

    def start(self) -> None:
        """Make the folder, with the plan in it for people who look."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be made ({error.strerror}): choose another --output") from None
        write_whole(self.folder / "plan.json", [self._plan])

    def has(self, number: int) -> bool:
        """Whether a block is finished."""
        return self._path(number).exists()

    def write(self, number: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write a finished block."""
        write_whole(self._path(number), (to_line(row) for row in rows))

    def rows(self, blocks: int) -> Iterator[dict[str, Any]]:
        """Every row of the first ``blocks`` blocks, in order. Raises CheckpointError where a file is damaged."""
        for number in range(blocks):
            yield from self.block(number)

    def block(self, number: int) -> Iterator[dict[str, Any]]:
        """The rows of one block."""
        with self._path(number).open(encoding="utf-8") as file:
            for line in file:
                try:
                    yield json.loads(line)
                except ValueError:
                    raise CheckpointError(f"{self._path(number)}: damaged (not JSON): remove the file") from None

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06}.jsonl"


def to_line(row: Mapping[str, Any]) -> str:
    """One row as JSON. NaN and infinity raise ValueError, since they would be a bug."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def write_whole(path: Path, lines: Iterable[str]) -> None:
    """Write a file of lines, and rename it into place when it is complete and on disk."""
    try:
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
            for line in lines:
                file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from None
