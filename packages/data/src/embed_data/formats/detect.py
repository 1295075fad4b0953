"""Finds the files, folders and datasets at a path and recognises their formats, which the dataset announces."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed_core.config.component import resolved_path
from embed_core.datasets.sources import beir
from embed_core.datasets.sources.jsonl import checked_path
from embed_core.errors import ConfigError, DataError
from embed_data.formats import csv as csv_records
from embed_data.formats import json, table

if TYPE_CHECKING:
    from embed_data.formats.options import FileFields
    from embed_data.formats.records import Records

SUFFIXES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip
COMPRESSED = (".gz", ".zst")
CLONE = ("README.md", ".gitattributes", "dataset_infos.json")
"""Files that a clone of a dataset's repository has."""
EVALUATION = re.compile(r"(?:^|[^a-z])(?:test|dev|valid|validation|eval)(?:[^a-z]|$)", re.IGNORECASE)
"""What files of an evaluation split are called."""


@dataclass(frozen=True)
class Source:
    """One file, folder or dataset that rows are read from: rows of one source share a name."""

    name: str
    place: str
    """The file or folder, as messages name it; a row's place is ``place:line``."""
    format: str
    """One of :data:`embed_data.formats.options.Format`."""
    stamp: str
    """Changes when the content does: the key of the cache."""
    records: Callable[[], Records] | None
    """Reads the records from the start; ``None`` for a BEIR folder, whose rows come from several files."""
    folder: Path | None = None
    """The folder, of a BEIR folder."""
    split: str | None = None
    """The name of the qrels, of a BEIR folder."""
    within: str = ""
    """Its path from the last part of the given path on: `folder/file.jsonl`."""

    @property
    def separator(self) -> str:
        """Between the place and a line: tables have row numbers, not lines."""
        return ":row " if self.format in ("parquet", "arrow", "datasets") else ":"


def find(path: str | Sequence[str], how: FileFields) -> list[Source]:
    """The sources at one path or several: a file, a folder of files or of such folders, a BEIR folder, a saved or named
    Hugging Face dataset.

    Raises DataError where there is nothing to read, ConfigError for options that do not apply to what is there.
    """
    paths = (path,) if isinstance(path, str) else tuple(path)
    twice = [one for one in paths if paths.count(one) > 1]
    if twice:
        raise ConfigError(f"path: {twice[0]} is given twice: name it once")
    return _named_apart([source for one in paths for source in _at(one, how)])


def _at(path: str, how: FileFields) -> list[Source]:
    """The sources at one path."""
    place = resolved_path(path)
    if not place.exists():
        if how.format not in ("auto", "datasets") or not _may_be_a_name(path):
            existing(place)
        return [replace(_named(path, how), within=path)]
    found = _folder(place, how) if place.is_dir() else [_file(place, how)]
    if how.split is not None and found[0].format not in ("beir", "datasets"):
        raise ConfigError(f"split {how.split!r}: {place} has no splits: remove `split`")
    if how.subset is not None and found[0].format != "datasets":
        raise ConfigError(f"subset {how.subset!r}: {place} is no Hugging Face dataset: remove `subset`")
    return [replace(source, within=_within(source, place)) for source in found]


def _within(source: Source, place: Path) -> str:
    at = Path(source.place)
    return str(at.relative_to(place.parent)) if at.is_relative_to(place.parent) else place.name


def _named_apart(found: list[Source]) -> list[Source]:
    """Sources of the same name get their folder's name before it; where that does not help, their whole path."""
    for longer in (lambda source: f"{Path(source.place).parent.name}/{source.name}", lambda source: source.place):
        names = [source.name for source in found]
        found = [replace(source, name=longer(source)) if names.count(source.name) > 1 else source for source in found]
    return found


def existing(place: Path) -> Path:
    """``place``. Raises DataError that names what is there instead."""
    return checked_path(place, lambda path: known_format(path) is not None)


def _folder(place: Path, how: FileFields) -> list[Source]:
    if how.format == "beir" or (how.format == "auto" and beir.is_beir(place)):
        return [_beir(place, how.split)]
    if (place / "dataset_dict.json").exists() or (place / "state.json").exists():
        return [_saved(place, how.split)]
    files = sorted(
        p for p in place.iterdir() if p.is_file() and known_format(p) is not None and not p.name.startswith(".")
    )
    if (place / "corpus.jsonl") in files and (place / "queries.jsonl") in files:
        beir.qrels_file(place, None, prefer="train")  # says what is missing
    if files and how.format != "datasets":
        names = _names(files)
        return [_file(file, how, names[file]) for file in files]
    below = _files_below(place)
    if below and _is_one_dataset(place, below, how):
        return [_named(str(place), how)]
    if below:
        folders = sorted({place / file.relative_to(place).parts[0] for file in below})
        return [_inside(folder, source) for folder in folders for source in _folder(folder, how)]
    listed = ", ".join(sorted(p.name for p in place.iterdir())[:10]) or "nothing"
    raise DataError(f"{place}: no file of a known format ({', '.join(SUFFIXES)}) and no BEIR folder: it has {listed}")


def _files_below(place: Path) -> list[Path]:
    """Files of a known format in the subfolders, hidden ones left out."""
    inside = (p for p in place.rglob("*") if not any(part.startswith(".") for part in p.relative_to(place).parts))
    return [p for p in inside if p.is_file() and (known_format(p) is not None or p.parent.name == "qrels")]


def _is_one_dataset(place: Path, files: list[Path], how: FileFields) -> bool:
    """Whether a folder of folders is one Hugging Face dataset, as a clone of the hub's is, rather than several sources:
    it says so itself, or has files of an evaluation split, which are not to be trained on."""
    if any(beir.is_beir(file.parent) or beir.is_beir(file.parent.parent) for file in files):
        return False
    said = how.format == "datasets" or how.split is not None or how.subset is not None
    clone = any((place / name).exists() for name in CLONE) or {f.relative_to(place).parts[0] for f in files} == {"data"}
    return said or clone or any(EVALUATION.search(str(file.relative_to(place))) for file in files)


def _inside(folder: Path, source: Source) -> Source:
    """Name a source of a subfolder by both: `subfolder/file`."""
    return source if source.name == folder.name else replace(source, name=f"{folder.name}/{source.name}")


def _names(files: list[Path]) -> dict[Path, str]:
    """File names without suffixes; with suffixes where two files differ in nothing else."""
    stems = {file: _stem(file) for file in files}
    taken = list(stems.values())
    return {file: stem if taken.count(stem) == 1 else file.name for file, stem in stems.items()}


def _file(path: Path, how: FileFields, name: str | None = None) -> Source:
    known = _format(path, how)
    readers: dict[str, Callable[..., Records]] = {
        "jsonl": json.json_lines,
        "json": json.json_values,
        "parquet": table.parquet_rows,
        "arrow": table.arrow_rows,
    }
    state = path.stat()
    stamp = f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}|{known}"
    if state.st_size == 0:
        raise DataError(f"{path}: the file is empty")
    csv = partial(csv_records.csv_rows, path, known, header=how.header)
    read = partial(readers[known], path) if known in readers else csv
    return Source(name or _stem(path), str(path), known, stamp, read)


def _beir(folder: Path, split: str | None) -> Source:
    qrels = beir.qrels_file(folder, split, prefer="train")
    files = (folder / "corpus.jsonl", folder / "queries.jsonl", qrels)
    stamp = "|".join(f"{f.resolve()}|{f.stat().st_size}|{f.stat().st_mtime_ns}" for f in files)
    return Source(folder.name, str(folder / "queries.jsonl"), "beir", stamp, None, folder, qrels.stem)


def _saved(folder: Path, split: str | None) -> Source:
    return _of_dataset(table.saved_dataset(folder, split), folder.name, str(folder))


def _named(name: str, how: FileFields) -> Source:
    dataset = table.named_dataset(name, how.subset, how.split)
    return _of_dataset(dataset, name.rstrip("/").rsplit("/", 1)[-1], name)


def _of_dataset(dataset: Any, name: str, place: str) -> Source:
    if len(dataset) == 0:
        raise DataError(f"{place}: the dataset is empty")
    stamp = f"{place}|{dataset._fingerprint}|{len(dataset)}"
    return Source(name, place, "datasets", stamp, partial(table.dataset_rows, dataset))


def _format(path: Path, how: FileFields) -> str:
    if how.format in ("beir", "datasets"):
        raise ConfigError(f"format {how.format!r}: {path} is a file, no folder: leave `format` out")
    known = how.format if how.format != "auto" else known_format(path)
    if known is None:
        raise DataError(
            f"{path}: the format is not known by its suffix {path.suffix!r}: set `format` to one of "
            f"{', '.join(dict.fromkeys(SUFFIXES.values()))}"
        )
    return known


def known_format(path: Path) -> str | None:
    """Which format the suffixes of ``path`` say it is of."""
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return SUFFIXES.get(Path(name).suffix)


def _stem(path: Path) -> str:
    name = path.name
    for ending in (*COMPRESSED, *SUFFIXES):
        if name.lower().endswith(ending) and len(name) > len(ending):
            name = name[: -len(ending)]
    return name


def _may_be_a_name(path: str) -> bool:
    """``squad`` or ``owner/name``: what the hub calls a dataset."""
    return not path.startswith(("/", ".", "~")) and path.count("/") <= 1 and known_format(Path(path)) is None
