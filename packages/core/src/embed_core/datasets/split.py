"""Splitting a dataset into training rows and a held-out evaluation set that share no query and no positive."""

from __future__ import annotations

from array import array
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from embed_core.datasets.dedup import shared_ids
from embed_core.types import RetrievalSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from embed_core.datasets.dedup import Blocks, SharedIds
    from embed_core.datasets.row import Row


def text_id(text: str) -> bytes:
    """8 bytes that stand for a text (64-bit blake2b: among 10 million texts a collision has a chance of 3e-6)."""
    return blake2b(text.encode(), digest_size=8).digest()


def key_id(key: str) -> bytes:
    """8 bytes that stand for an external id; a text that reads the same has other bytes."""
    return blake2b(key.encode(), digest_size=8, person=b"key").digest()


def row_identities(row: Row) -> list[bytes]:
    """Ids of the query, the positives and the positives' external ids. Two rows that share one are tied together."""
    return list(dict.fromkeys([text_id(row.query), *map(text_id, row.pos), *map(key_id, row.pos_keys or ())]))


def choose_held_out(identities: Sequence[Sequence[int]], wanted: int) -> np.ndarray:
    """Choose at most ``wanted`` rows to hold out, whole families at a time, as a boolean mask.

    A family is all rows tied by shared identities (64-bit integers), directly or through others. Families are taken in
    the order of a hash of their identities, skipping those that are too large, so that the choice depends on the
    content alone: not on a seed, and hardly on rows added later.
    """
    counts = np.fromiter(map(len, identities), dtype=np.int64, count=len(identities))
    flat = np.fromiter((i for row in identities for i in row), dtype=np.uint64)
    mask = np.zeros(len(identities), dtype=bool)
    mask[held_out_rows(lambda: [(counts, flat)], wanted)] = True
    return mask


def held_out_rows(blocks: Callable[[], Blocks], wanted: int) -> np.ndarray:
    """Choose the same rows as :func:`choose_held_out`, ascending, from identities in blocks.

    Memory is some 40 bytes a row, plus the identities that rows share.
    """
    family_N = _families(shared_ids(blocks))
    mark_N = np.concatenate([np.empty(0, np.uint64), *(_smallest(counts, ids) for counts, ids in blocks())])
    tied = np.flatnonzero(family_N != np.arange(len(family_N)))
    np.minimum.at(mark_N, family_N[tied], mark_N[tied])
    size_N = np.bincount(family_N, minlength=len(family_N))
    roots = np.flatnonzero(size_N)
    roots = roots[np.argsort(_scrambled(mark_N[roots]), kind="stable")]
    chosen, left = [], wanted
    for root in roots:
        if size_N[root] <= left:
            chosen.append(root)
            left -= size_N[root]
        if not left:
            break
    return np.flatnonzero(np.isin(family_N, np.asarray(chosen, dtype=family_N.dtype)))


def retrieval_set(name: str, rows: Iterable[Row]) -> RetrievalSet:
    """Held-out rows as queries; the corpus is their positives and negatives. Equal texts are one."""
    queries: dict[str, str] = {}
    corpus: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for row in rows:
        query = _named("q", row.query, queries)
        judged = qrels.setdefault(query, {})
        for text in row.pos:
            judged[_named("d", text, corpus)] = 1
        for text in row.neg:
            _named("d", text, corpus)
    return RetrievalSet(name, queries, corpus, qrels)


def _named(prefix: str, text: str, texts: dict[str, str]) -> str:
    key = prefix + text_id(text).hex()
    texts[key] = text
    return key


def _families(shared: SharedIds) -> np.ndarray:
    """The root row of every row's family, its first: union-find with path halving."""
    parent = array("q", range(len(shared)))
    first = array("q", [-1]) * shared.count

    def find(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for row, numbers in shared.rows():
        for number in numbers:
            if first[number] < 0:
                first[number] = row
                continue
            a, b = find(first[number]), find(row)
            parent[max(a, b)] = min(a, b)
    family_N = np.frombuffer(parent, dtype=np.int64)
    # Every row points to an earlier one of its family or to itself: follow all of them at once.
    while not np.array_equal(family_N, further := family_N[family_N]):
        family_N = further
    return family_N


def _smallest(counts: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return np.minimum.reduceat(ids, np.cumsum(counts) - counts)


def _scrambled(values: np.ndarray) -> np.ndarray:
    """The smallest of many hashes is small: ordering by it directly would take large families first."""
    raw = memoryview(values.astype("<u8").tobytes())
    out = np.empty(len(values), dtype=">u8")
    for start in range(0, len(values), 1 << 16):
        stop = min(start + (1 << 16), len(values))
        hashes = (blake2b(raw[8 * at : 8 * at + 8], digest_size=8).digest() for at in range(start, stop))
        out[start:stop] = np.frombuffer(b"".join(hashes), dtype=">u8")
    return out
