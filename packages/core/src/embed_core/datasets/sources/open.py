"""Opens the path of kind `retrieval` as row sources: a file, a folder of files, or a BEIR folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embed_core.datasets.sources import beir
from embed_core.datasets.sources.jsonl import SUFFIXES, JsonlRows, checked_path
from embed_core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pathlib import Path

    from embed_core.datasets.sources.base import RowSource


def open_sources(path: Path, split: str | None, cache: Path | None = None) -> list[RowSource]:
    """The sources at ``path``: a file, a folder of files (each one a source), or a BEIR folder.

    ``cache`` keeps the indices of large files; None is the cache of the user. Raises DataError where nothing of that
    is there, ConfigError for a ``split`` of what has none.
    """
    checked_path(path)
    if beir.is_beir(path):
        return [beir.BeirRows(path, split, cache)]
    if split is not None:
        raise ConfigError(f"split {split!r}: {path} is no BEIR folder and has no splits: remove `split`")
    if not path.is_dir():
        if path.suffix not in SUFFIXES:
            raise DataError(
                f"{path}: a data file is .jsonl or .json, not {path.suffix!r}: convert it, one row per line"
            )
        return [JsonlRows(path, cache=cache)]
    if (path / "corpus.jsonl").exists() and (path / "queries.jsonl").exists():
        beir.qrels_file(path, None, prefer="train")  # says what is missing
    files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
    if not files:
        raise DataError(
            f"{path}: no .jsonl file and no BEIR folder (corpus.jsonl, queries.jsonl, qrels/): it has {_listing(path)}"
        )
    return [JsonlRows(file, cache=cache) for file in files]


def _listing(path: Path) -> str:
    names = sorted(p.name for p in path.iterdir())
    if not names:
        return "nothing"
    return ", ".join(names[:10]) + (f", … ({len(names)} in all)" if len(names) > 10 else "")
