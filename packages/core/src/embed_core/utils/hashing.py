"""64-bit identities of texts and external ids, comparable across columns, ranks and runs."""

from __future__ import annotations

from hashlib import blake2b

from embed_core.types import Item


def identity(item: Item) -> int:
    """A non-zero signed 64-bit hash of a text (or of any item by its ``identity`` bytes, else its ``repr``)."""
    if isinstance(item, str):
        data = item.encode("utf-8", "surrogatepass")
    elif isinstance(item, bytes):
        data = item
    else:
        data = getattr(item, "identity", None) or repr(item).encode()
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little", signed=True) or 1


def sameness(item: Item) -> object:
    """A hashable value that is equal for equal items: a text itself, else the ``identity`` bytes; ``None`` for an item
    that has none and so cannot be compared."""
    return item if isinstance(item, str) else getattr(item, "identity", None)


def described(item: Item) -> str:
    """An item for displays: a text itself, else what its ``describe()`` says, else its ``repr``."""
    if isinstance(item, str):
        return item
    describe = getattr(item, "describe", None)
    return str(describe()) if callable(describe) else repr(item)


def key_identity(key: str | None) -> int:
    """Identity of an external id, kept apart from texts that read the same; 0 for none."""
    return 0 if key is None else identity(b"key\0" + key.encode("utf-8", "surrogatepass"))
