"""What lies at a path: which files, of which format. The answer is announced, never silently guessed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed_core.config.component import resolved_path
from embed_core.datasets import beir
from embed_core.errors import ConfigError, DataError, did_you_mean
from embed_data.readers import csv_records, json_records, table_records

if TYPE_CHECKING:
    from embed_data.readers.config import FileFields
    from embed_data.readers.records import Records

SUFFIXES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip
COMPRESSED = (".gz", ".zst")


@dataclass(frozen=True)
class Source:
    """One file, folder or dataset that rows are read from: rows of one source share a name."""

    name: str
    place: str
    """What messages call it; a row's place is ``place:line``."""
    format: str
    """Of :data:`embed_data.readers.config.Format`."""
    stamp: str
    """Changes when the content does: the key of the cache."""
    records: Callable[[], Records] | None
    """Reads it from the start; ``None`` for a BEIR folder, whose rows come from several files."""
    folder: Path | None = None
    """Of a BEIR folder."""
    split: str | None = None
    """Of a BEIR folder."""

    @property
    def separator(self) -> str:
        """Between the place and a line: tables have row numbers, not lines."""
        return ":row " if self.format in ("parquet", "arrow", "datasets") else ":"


def find(path: str, how: FileFields) -> list[Source]:
    """The sources at ``path``: a file, a folder of files, a BEIR folder, a saved or named Hugging Face dataset.

    Raises DataError where there is nothing to read, ConfigError for options that do not apply to what is there.
    """
    place = resolved_path(path)
    if not place.exists():
        if how.format not in ("auto", "datasets") or not _may_be_a_name(path):
            existing(place)
        return [_named(path, how)]
    found = _folder(place, how) if place.is_dir() else [_file(place, how)]
    if how.split is not None and found[0].format not in ("beir", "datasets"):
        raise ConfigError(f"split {how.split!r}: {place} has no splits: remove `split`")
    if how.subset is not None and found[0].format != "datasets":
        raise ConfigError(f"subset {how.subset!r}: {place} is no Hugging Face dataset: remove `subset`")
    return found


def existing(place: Path) -> Path:
    """``place``. Raises DataError that names what is there instead."""
    if not place.exists():
        raise DataError(f"{place}: no such file or folder: {_siblings(place)}")
    return place


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
    if any(p.is_file() and known_format(p) is not None for p in place.rglob("*")):
        return [_named(str(place), how)]
    listed = ", ".join(sorted(p.name for p in place.iterdir())[:10]) or "nothing"
    raise DataError(f"{place}: no file of a known format ({', '.join(SUFFIXES)}) and no BEIR folder: it has {listed}")


def _names(files: list[Path]) -> dict[Path, str]:
    """Names without suffixes; with them, where two files differ in nothing else."""
    stems = {file: _stem(file) for file in files}
    taken = list(stems.values())
    return {file: stem if taken.count(stem) == 1 else file.name for file, stem in stems.items()}


def _file(path: Path, how: FileFields, name: str | None = None) -> Source:
    known = _format(path, how)
    readers: dict[str, Callable[..., Records]] = {
        "jsonl": json_records.json_lines,
        "json": json_records.json_values,
        "parquet": table_records.parquet_rows,
        "arrow": table_records.arrow_rows,
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
    return _of_dataset(table_records.saved_dataset(folder, split), folder.name, str(folder))


def _named(name: str, how: FileFields) -> Source:
    dataset = table_records.named_dataset(name, how.subset, how.split)
    return _of_dataset(dataset, name.rstrip("/").rsplit("/", 1)[-1], name)


def _of_dataset(dataset: Any, name: str, place: str) -> Source:
    if len(dataset) == 0:
        raise DataError(f"{place}: the dataset is empty")
    stamp = f"{place}|{dataset._fingerprint}|{len(dataset)}"
    return Source(name, place, "datasets", stamp, partial(table_records.dataset_rows, dataset))


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


def _siblings(path: Path) -> str:
    if not path.parent.is_dir():
        return f"{path.parent} does not exist either"
    names = sorted(p.name for p in path.parent.iterdir() if p.is_dir() or known_format(p) is not None)
    hint = did_you_mean(path.name, names)
    if hint.startswith("one of") and len(names) > 10:
        return f"{path.parent} has {', '.join(names[:10])}, … ({len(names)} in all)"
    return hint
