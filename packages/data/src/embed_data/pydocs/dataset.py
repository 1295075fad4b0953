"""The embedded corpus as files: built once per set of package versions, then read like anybody's data."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from embed_core.datasets.retrieval import RetrievalDataset
from embed_core.datasets.sources.beir import read_beir
from embed_core.datasets.sources.jsonl import JsonlRows
from embed_core.errors import DataError
from embed_data.pydocs.corpus import Corpus, Sizes, build_corpus
from embed_data.pydocs.packages import find_packages

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from embed_core.config.context import BuildContext
    from embed_core.datasets.sampling import DrawOptions
    from embed_data.pydocs.packages import Package

BUILDER_VERSION = 1
"""Raised with every change of what this package makes of the same source."""
HELD_OUT = "pydocs-held-out"
MANIFEST = "manifest.json"


def pydocs(
    context: BuildContext, names: tuple[str, ...], sizes: Sizes, options: DrawOptions, limit: int | None
) -> RetrievalDataset:
    """The corpus of the installed ones of ``names``, built now or found in ``context.cache_dir / "pydocs"``.

    Raises DataError where none of them is installed as source, or the cache cannot be written.
    """
    packages = find_packages(names)
    if not packages:
        raise DataError(f"pydocs: none of {', '.join(names)} is installed as Python source: train on a file (`path`)")
    folder = context.cache_dir / "pydocs" / fingerprint(packages, sizes)
    with context.first():
        _ensure(folder, packages, sizes, context)
    read = ", ".join(f"{package.name} {package.version}" for package in packages)
    sources = [JsonlRows(path) for path in sorted(folder.glob("*.jsonl"))]
    for source in sources:
        source.format = f"docstrings of {read}"
    held_out = read_beir(folder / HELD_OUT) if (folder / HELD_OUT).exists() else None
    return RetrievalDataset("pydocs", sources, options, context.announce, limit=limit, held_out=held_out)


def fingerprint(packages: Iterable[Package], sizes: Sizes) -> str:
    """Hex digest of all that the corpus depends on."""
    facts = [BUILDER_VERSION, [[package.name, package.version] for package in packages], repr(sizes)]
    return blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()


def _ensure(folder: Path, packages: list[Package], sizes: Sizes, context: BuildContext) -> None:
    """Build ``folder`` unless it is there and whole."""
    if folder.exists():
        if _whole(folder):
            return
        context.announce(f"pydocs: {folder} is damaged and is built anew")
    else:
        context.announce("pydocs: reading the docstrings of the installed packages, once (about half a minute)")
    corpus = build_corpus(packages, sizes)
    if not corpus.train:
        raise DataError(
            f"pydocs: no docstrings in {', '.join(str(package.root) for package in packages)}: train on a file (`path`)"
        )
    try:
        _replace(folder, _files(corpus, sizes))
    except OSError as error:
        raise DataError(
            f"{folder}: the corpus cannot be cached: {error.strerror or error}: set EMBED_CACHE to a writable folder"
        ) from None


def _files(corpus: Corpus, sizes: Sizes) -> dict[str, str]:
    """Relative path → content."""
    files = {
        f"{name}.jsonl": _jsonl({"query": pair.query, "pos": [pair.passage]} for pair in of)
        for name, of in corpus.train.items()
    }
    queries = corpus.held_out[: sizes.held_out_queries]
    if queries:
        files[f"{HELD_OUT}/corpus.jsonl"] = _jsonl(
            {"_id": f"d{n}", "text": pair.passage} for n, pair in enumerate(corpus.held_out)
        )
        files[f"{HELD_OUT}/queries.jsonl"] = _jsonl({"_id": f"q{n}", "text": p.query} for n, p in enumerate(queries))
        files[f"{HELD_OUT}/qrels/test.tsv"] = "query-id\tcorpus-id\tscore\n" + "".join(
            f"q{n}\td{n}\t1\n" for n in range(len(queries))
        )
    return files


def _jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)


def _replace(folder: Path, files: dict[str, str]) -> None:
    """Write ``files`` under a temporary name and rename; another process that was faster wins."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
    made.mkdir()
    try:
        for name, content in files.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_text(content, encoding="utf-8", newline="\n")
        digests = {name: _digest(content.encode()) for name, content in files.items()}
        (made / MANIFEST).write_text(json.dumps(digests, indent=1), encoding="utf-8")
        if folder.exists() and not _whole(folder):
            shutil.rmtree(folder)
        try:
            made.rename(folder)
        except OSError:
            if not _whole(folder):
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _whole(folder: Path) -> bool:
    """Whether every file of a cached corpus is as it was written, and no other is there."""
    try:
        digests = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        there = {
            os.path.relpath(path, folder).replace(os.sep, "/"): path for path in folder.rglob("*") if path.is_file()
        }
        del there[MANIFEST]
        return bool(digests == {name: _digest(path.read_bytes()) for name, path in there.items()})
    except (OSError, ValueError):
        return False


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()
