"""The 16-byte keys of the store: digests of a text and of how the teacher was asked (prompt, length).

Suffixes as in :mod:`embed_core.types`; 2 counts the halves of a key.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embed_core.types import Item

    Keys = NDArray[np.uint64]

KEY_BYTES = 16


def salt_of(*facts: object) -> bytes:
    """Everything that a text's key depends on besides the text: 32 bytes for :func:`digest`."""
    return blake2b(repr(facts).encode("utf-8", "surrogatepass"), digest_size=32).digest()


def digest(item: Item, salt: bytes) -> bytes:
    """The key of a text, or of any other item by its ``identity`` bytes, else by its ``repr``."""
    if isinstance(item, str):
        content = b"text\0" + item.encode("utf-8", "surrogatepass")
    else:
        content = b"item\0" + (getattr(item, "identity", None) or repr(item).encode())
    return blake2b(content, digest_size=KEY_BYTES, key=salt).digest()


def keys_array(digests: Iterable[bytes]) -> Keys:
    """Keys as numpy compares them: uint64 ``[N, 2]``, first halves first."""
    whole = bytearray()
    for one in digests:  # a bytearray avoids a list of a hundred million small objects
        whole += one
    return np.frombuffer(whole, dtype="<u8").reshape(-1, 2)


def sorted_once(keys_N2: Keys) -> NDArray[np.int64]:
    """The first position of each distinct key, in the order of the keys."""
    order_N = np.lexsort((keys_N2[:, 1], keys_N2[:, 0]))  # the sort is stable: of equal keys the first stays first
    ordered_N2 = keys_N2[order_N]
    new_N = np.ones(len(order_N), dtype=np.bool_)
    new_N[1:] = (ordered_N2[1:] != ordered_N2[:-1]).any(axis=1)
    found: NDArray[np.int64] = order_N[new_N]
    return found
