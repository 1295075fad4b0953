"""Notes that all texts of a dataset have vectors, so that the next run need not look each of them up."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path

from embed_core.utils.atomic import replacing

SUFFIX = ".complete.json"


def note(folder: Path, dataset: str, vectors: int) -> None:
    """Note that all ``vectors`` texts of the dataset with this fingerprint are in the teacher's ``folder``."""
    with replacing(_path(folder, dataset)) as temporary:
        temporary.write_text(json.dumps({"dataset": dataset, "vectors": vectors}) + "\n", encoding="utf-8")


def noted(folder: Path, dataset: str) -> int | None:
    """The number of the dataset's vectors if it was noted as complete, else None."""
    try:
        return int(json.loads(_path(folder, dataset).read_text(encoding="utf-8"))["vectors"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget(folder: Path) -> None:
    """Remove all notes, because vectors have been removed."""
    for path in folder.glob(f"*{SUFFIX}"):
        path.unlink(missing_ok=True)


def _path(folder: Path, dataset: str) -> Path:
    return folder / (blake2b(dataset.encode(), digest_size=12).hexdigest() + SUFFIX)
