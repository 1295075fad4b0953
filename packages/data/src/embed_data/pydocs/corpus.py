"""From the pairs of all packages to training rows and a held-out evaluation set that share no module and no text."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from embed_core.errors import ConfigError
from embed_data.pydocs.docstrings import REST_CHARACTERS, Pair, pairs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from embed_data.pydocs.packages import Package

FAMILY_PARTS = 3
"""Modules whose first three names agree (``transformers.models.bert``) are held out together."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of the corpus is used."""

    max_rows: int
    held_out_queries: int
    held_out_documents: int


@dataclass(frozen=True, slots=True)
class Corpus:
    """Training rows by package; held-out pairs, the first ``held_out_queries`` of which are queries."""

    train: dict[str, list[Pair]]
    held_out: list[Pair]


def build_corpus(packages: Iterable[Package], sizes: Sizes) -> Corpus:
    """Read, deduplicate, split by module, choose: every choice by a hash of the content, no randomness.

    Pairs whose passage is more than a signature are taken first. Raises ConfigError where nothing can be held out.
    """
    found = {package.name: _read(package) for package in packages}
    unique = _deduplicated(found)
    everything = sorted((pair for of in unique.values() for pair in of), key=_preference)
    held_families = _held_families(everything, max(sizes.held_out_queries, sizes.held_out_documents))
    held = [pair for pair in everything if family(pair.module) in held_families]
    queries = held[: sizes.held_out_queries]
    documents = held[len(queries) : max(len(queries), sizes.held_out_documents)]
    free = (pair for pair in everything if family(pair.module) not in held_families)
    chosen = {id(pair) for pair, _ in zip(free, range(sizes.max_rows), strict=False)}
    train = {name: [pair for pair in of if id(pair) in chosen] for name, of in unique.items()}
    return Corpus({name: of for name, of in train.items() if of}, queries + documents)


def family(module: str) -> str:
    """What a module is split with."""
    return ".".join(module.split(".")[:FAMILY_PARTS])


def _read(package: Package) -> list[Pair]:
    found: list[Pair] = []
    for module, path in package.modules():
        try:
            source = path.read_bytes()
        except OSError:
            continue  # a file without read permission is no reason not to train
        found.extend(pairs(source, module))
    return found


def _deduplicated(found: dict[str, list[Pair]]) -> dict[str, list[Pair]]:
    """One pair per query and per passage; an inherited docstring counts once, whatever class it is repeated in."""
    seen: set[str] = set()
    unique: dict[str, list[Pair]] = {name: [] for name in found}
    for name, of in found.items():
        for pair in of:
            marks = {f"q{pair.query.casefold()}", f"p{pair.passage.casefold()}"}
            if len(pair.rest) >= REST_CHARACTERS:
                marks.add(f"r{pair.rest}")
            if seen.isdisjoint(marks):
                unique[name].append(pair)
                seen |= marks
    return unique


def _held_families(everything: Sequence[Pair], wanted: int) -> set[str]:
    """Families in the order of a hash until ``wanted`` pairs are held; at most a quarter of all, none too large."""
    size: dict[str, int] = {}
    for pair in everything:
        size[family(pair.module)] = size.get(family(pair.module), 0) + 1
    left = min(wanted, len(everything) // 4)
    most = max(wanted // 10, min(size.values(), default=0))  # one large module would be most of the evaluation
    held: set[str] = set()
    for name in sorted(size, key=_hash):
        if size[name] <= min(left, most):
            held.add(name)
            left -= size[name]
    if everything and wanted and not held:
        raise ConfigError(
            f"pydocs: no {wanted} of {len(everything)} pairs in {len(size)} modules can be held out by whole modules: "
            "read more `packages`, or set `held_out_queries` (`held_out_rows`) to 0"
        )
    return held


def _preference(pair: Pair) -> tuple[bool, bytes]:
    return len(pair.rest) < REST_CHARACTERS, _hash(pair.passage)


def _hash(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
