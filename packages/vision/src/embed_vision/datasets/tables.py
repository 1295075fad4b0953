"""Sources of image-text rows: JSONL files, Parquet files, Hugging Face datasets; read by position."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from embed_core.config.component import resolved_path
from embed_core.datasets.sources.jsonl import SUFFIXES, JsonlFile, checked_path
from embed_core.errors import DataError, did_you_mean
from embed_core.utils.messages import one_line

if TYPE_CHECKING:
    from datasets import Dataset

FILES = (*SUFFIXES, ".parquet", ".csv", ".tsv")
_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
SAVED = ("dataset_dict.json", "state.json")
"""Files by which a folder that ``save_to_disk`` wrote is recognised."""


class Table(Protocol):
    """A table of rows as they are stored."""

    name: str
    format: str
    """Name of the format, for messages."""
    folder: Path
    """Folder that relative paths start from by default."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> Mapping[str, Any]:
        """Values by column. Raises DataError."""
        ...

    def place(self, index: int) -> str:
        """``file:line``, for messages."""
        ...

    def digest(self) -> str:
        """Hex digest of the content."""
        ...


class JsonlTable:
    """One JSON object per line, or a JSON array of them."""

    def __init__(self, path: Path, cache: Path) -> None:
        self.name, self.format, self.folder = path.stem, "JSONL", path.parent
        self._file = JsonlFile(path, cache)

    def __len__(self) -> int:
        return len(self._file)

    def row(self, index: int) -> Mapping[str, Any]:
        """Raises DataError for a line that is no JSON object."""
        return self._file[index]

    def place(self, index: int) -> str:
        """``file:line``."""
        return self._file.place(index)

    def digest(self) -> str:
        """Digest of the file's bytes."""
        return self._file.digest()


class ArrowTable:
    """A ``datasets.Dataset``: memory-mapped, with images as they are stored, not decoded."""

    def __init__(self, rows: Dataset, name: str, format: str, folder: Path) -> None:
        self.name, self.format, self.folder = name, format, folder
        self._rows: Any = rows.with_format("arrow")

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Mapping[str, Any]:
        """Values by column; images are ``{"bytes", "path"}``, because the format `arrow` returns what is stored."""
        (row,) = self._rows[index : index + 1].to_pylist()
        found: Mapping[str, Any] = row
        return found

    def place(self, index: int) -> str:
        """``name:row``, rows from 1."""
        return f"{self.name}:{index + 1}"

    def digest(self) -> str:
        """Digest of the number of rows and `datasets`' own fingerprint, which covers files and transformations."""
        return blake2b(f"{len(self)}|{self._rows._fingerprint}".encode(), digest_size=16).hexdigest()


def open_table(path: str, split: str | None, subset: str | None, cache: Path) -> Table:
    """The rows at ``path``: a .jsonl, .json or .parquet file, a folder of Parquet files, a folder that `save_to_disk`
    wrote, an image folder with metadata, or the name of a Hugging Face dataset.

    Raises DataError where there is none of these, and for a ``split`` where there are no splits.
    """
    place = resolved_path(path)
    if place.is_file():
        if place.suffix.lower() in SUFFIXES:
            _no_splits(place, split)
            return JsonlTable(place, cache)
        if place.suffix.lower() != ".parquet":
            raise DataError(
                f"{place}: image-text rows are a .jsonl, .json or .parquet file, not {place.suffix!r}: convert it"
            )
        _no_splits(place, split)
        return ArrowTable(_loaded("parquet", place, cache, data_files=str(place)), place.name, "Parquet", place.parent)
    if not place.is_dir():
        if not _HUB_NAME.fullmatch(path) or place.suffix.lower() in FILES:
            checked_path(place)  # raises an error with the closest names
        return _hub(path, split, subset, cache)
    if any((place / name).exists() for name in SAVED):
        return _saved(place, split)
    files = sorted(place.glob("*.parquet"))
    if files:
        _no_splits(place, split)
        names = [str(file) for file in files]
        return ArrowTable(_loaded("parquet", place, cache, data_files=names), place.name, "Parquet", place)
    if any(place.rglob("metadata.*")):
        rows = _one_split(_loaded("imagefolder", place, cache, data_dir=str(place), split=None), split, str(place))
        return ArrowTable(rows, place.name, "image folder", place)
    names = [p.name for p in sorted(place.iterdir())][:10]
    raise DataError(
        f"{place}: no .parquet file, no `save_to_disk` folder and no metadata.jsonl of an image folder: it has "
        f"{', '.join(names) or 'nothing'}; give the .jsonl file itself"
    )


def _saved(folder: Path, split: str | None) -> Table:
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise _unreadable(folder, "a saved dataset", error) from None
    return ArrowTable(_one_split(found, split, str(folder)), folder.name, "saved dataset", folder)


def _hub(name: str, split: str | None, subset: str | None, cache: Path) -> Table:
    try:
        found = _loaded(name, Path(name), cache, name=subset, split=None)
    except DataError as error:
        raise DataError(
            f"{name}: no such file or folder here, and no Hugging Face dataset of that name could be loaded "
            f"({str(error).split(': ', 1)[-1]}): check the path, the name, `subset` and the network"
        ) from None
    return ArrowTable(_one_split(found, split, name), name, "Hugging Face dataset", Path())


def _loaded(builder: str, place: Path, cache: Path, **more: Any) -> Any:
    """``datasets.load_dataset`` with its cache below ours and without its progress bars."""
    import datasets

    quiet = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(builder, cache_dir=str(cache / "datasets"), **{"split": "train", **more})
    except Exception as error:  # damaged file, unknown name, no network: the type differs
        raise _unreadable(place, builder, error) from None
    finally:
        if not quiet:
            datasets.enable_progress_bars()


def _unreadable(place: Path, what: str, error: Exception) -> DataError:
    cause = error.__cause__ or error
    return DataError(f"{place}: cannot be read as {what}: {one_line(cause, 200)}")


def _no_splits(place: Path, split: str | None) -> None:
    if split is not None:
        raise DataError(f"split {split!r}: {place} has no splits: remove `split`")


def _one_split(found: Any, split: str | None, name: str) -> Any:
    """The rows of ``split``; None selects the only one, or ``train``. Raises DataError."""
    if not isinstance(found, dict):
        if split is not None and str(found.split) != split:
            raise DataError(f"split {split!r}: {name} has no splits: remove `split`")
        return found
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    wanted = split or "train"
    if wanted not in found:
        hint = did_you_mean(wanted, found) if split else f"set `split` to one of: {', '.join(found)}"
        raise DataError(f"{name}: no split {wanted!r}: {hint}")
    return found[wanted]
