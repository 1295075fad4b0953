"""Rows of Parquet and Arrow files and of Hugging Face datasets, in batches; files are mapped, not read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed_core.errors import DataError, did_you_mean
from embed_data.formats.records import Record, Records

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 1000


def parquet_rows(path: Path) -> Records:
    """Rows of a Parquet file. Raises DataError where it is none."""
    import pyarrow.parquet as pq

    with _blamed(path, "Parquet"), pq.ParquetFile(path, memory_map=True) as file:
        yield from _numbered(file.iter_batches(BATCH))


def arrow_rows(path: Path) -> Records:
    """Rows of an Arrow IPC file (Feather 2) or stream. Raises DataError where it is neither."""
    import pyarrow as pa

    with _blamed(path, "Arrow"), pa.memory_map(str(path)) as source:
        yield from _numbered(_arrow_batches(source))


def dataset_rows(dataset: Any) -> Records:
    """Rows of a ``datasets.Dataset``, which is memory-mapped Arrow itself."""
    line = 0
    for batch in dataset.iter(BATCH):
        names = list(batch)
        for values in zip(*batch.values(), strict=True):
            line += 1
            yield Record(line, dict(zip(names, values, strict=True)))


def saved_dataset(folder: Path, split: str | None) -> Any:
    """What ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote. Raises DataError."""
    import datasets

    with _blamed(folder, "saved dataset"):
        return one_split(datasets.load_from_disk(str(folder)), split, str(folder))


def named_dataset(name: str, subset: str | None, split: str | None) -> Any:
    """A dataset of the hub, or a folder laid out like one. Raises DataError where it cannot be had."""
    import datasets

    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(name, subset)
    except Exception as error:  # offline, unknown, gated, a wrong subset, files of no known format
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{name}: no such file or folder here, and no Hugging Face dataset of that name could be loaded "
            f"[{type(error).__name__}: {reason}]: check the path, the name, `subset` and the network"
        ) from None
    finally:
        if not bars:
            datasets.enable_progress_bars()
    return one_split(found, split, name)


def one_split(found: Any, split: str | None, name: str) -> Any:
    """The ``Dataset`` of ``split``: without one the only one there is, or ``train``. Raises DataError."""
    if not isinstance(found, dict):
        if split is not None and str(found.split) != split:
            raise DataError(f"{name}: has no splits: remove `split: {split}`")
        return found
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    wanted = "train" if split is None else split
    if wanted not in found:
        hint = did_you_mean(wanted, found) if split else f"set `split` to one of: {', '.join(found)}"
        raise DataError(f"{name}: no split {wanted!r}: {hint}")
    return found[wanted]


def _arrow_batches(source: Any) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    try:
        file = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        yield from pa.ipc.open_stream(source)
        return
    for number in range(file.num_record_batches):
        yield file.get_batch(number)


def _numbered(batches: Iterator[pa.RecordBatch]) -> Records:
    line = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH):
            for value in batch.slice(start, BATCH).to_pylist():
                line += 1
                yield Record(line, value)


@contextmanager
def _blamed(path: Path, what: str) -> Iterator[None]:
    """Turns Arrow's errors into one line about the file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{path}: cannot be read as {what}: {reason}") from None
