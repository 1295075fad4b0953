"""Splitting a dataset into training rows and a held-out evaluation set that share no query and no positive."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

from embed_core.types import RetrievalSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np

    from embed_core.datasets.rows import Row


def text_id(text: str) -> bytes:
    """8 bytes that stand for a text (64-bit blake2b: among 10 million texts a collision has a chance of 3e-6)."""
    return blake2b(text.encode(), digest_size=8).digest()


def row_identities(row: Row) -> list[bytes]:
    """Ids of the query, the positives and the positives' external ids: what ties two rows together."""
    keys = [blake2b(key.encode(), digest_size=8, person=b"key").digest() for key in row.pos_keys or ()]
    return list(dict.fromkeys([text_id(row.query), *map(text_id, row.pos), *keys]))


def choose_held_out(identities: Sequence[Sequence[int]], wanted: int) -> np.ndarray:
    """Boolean mask of at most ``wanted`` rows to hold out, whole families at a time.

    A family is all rows tied by shared identities (64-bit integers), directly or through others. Families are taken in
    the order of a hash of their identities, skipping those that are too large, so that the choice depends on the
    content alone: not on a seed, and hardly on rows added later.
    """
    import numpy as np

    family = _families(identities)
    mark: dict[int, int] = {}
    size: dict[int, int] = {}
    for row, root in enumerate(family):
        mark[root] = min(mark.get(root, 1 << 64), min(identities[row]))
        size[root] = size.get(root, 0) + 1
    left, chosen = wanted, set()
    for root in sorted(mark, key=lambda r: _scrambled(mark[r])):
        if size[root] <= left:
            chosen.add(root)
            left -= size[root]
        if not left:
            break
    return np.fromiter((root in chosen for root in family), dtype=bool, count=len(family))


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


def _families(identities: Sequence[Sequence[int]]) -> list[int]:
    """The root row of every row's family: union-find with path halving."""
    parent = list(range(len(identities)))
    find = _finder(parent)
    first: dict[int, int] = {}
    for row, ids in enumerate(identities):
        for identity in ids:
            a, b = find(first.setdefault(identity, row)), find(row)
            parent[max(a, b)] = min(a, b)
    return [find(row) for row in range(len(identities))]


def _finder(parent: list[int]) -> Callable[[int], int]:
    def find(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    return find


def _scrambled(value: int) -> bytes:
    # The smallest of many hashes is small: ordering by it directly would take large families first.
    return blake2b(value.to_bytes(8, "little"), digest_size=8).digest()
