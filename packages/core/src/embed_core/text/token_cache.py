"""Caches token lists: a ``tokenize`` that looks into the store on disk before it asks the model."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from embed_core.errors import ConfigError
from embed_core.protocols import CachesTokens, provides
from embed_core.text.token_store import TokenStore
from embed_core.types import Encoded

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from embed_core.protocols import Announce
    from embed_core.types import Item, Role

VERSION = 1


class Tokenizes(Protocol):
    """The part of a model that makes token lists; see :class:`embed_core.protocols.Model`."""

    def tokenize(self, items: Sequence[Item], role: Role, prompts: Sequence[str | None]) -> list[Encoded]:
        """Unpadded token lists."""
        ...


class CachedTokens:
    """Returns what ``model.tokenize`` returns, from ``store`` for texts that were tokenised before.

    The store keeps each :class:`~embed_core.types.Encoded` of the form that
    :class:`embed_core.text.tokenizer.TextTokenizer` makes: the ids, and the same as bytes for a key. Everything else
    goes to the model every time. ``fingerprint`` stands for all that the ids depend on besides text, role and prompt.
    """

    def __init__(self, model: Tokenizes, fingerprint: str, store: TokenStore) -> None:
        self._model, self._store = model, store
        self._salt = blake2b(f"{VERSION}|{fingerprint}".encode(), digest_size=32).digest()

    def tokenize(self, items: Sequence[Item], role: Role, prompts: Sequence[str | None]) -> list[Encoded]:
        """Tokenise as the model does."""
        keys = [self._key(item, role, prompt) for item, prompt in zip(items, prompts, strict=True)]
        known: dict[object, Encoded] = {
            key: _encoded(ids) for key, ids in self._store.get(list({k for k in keys if k is not None})).items()
        }
        # Items without a key count as distinct.
        names = [place if key is None else key for place, key in enumerate(keys)]
        missing = {name: place for place, name in enumerate(names) if name not in known}
        if missing:
            places = list(missing.values())
            made = self._model.tokenize([items[n] for n in places], role, [prompts[n] for n in places])
            fresh: dict[object, Encoded] = dict(zip(missing, made, strict=True))
            known |= fresh
            self._store.put({k: ids for k, one in fresh.items() if isinstance(k, bytes) and (ids := _plain(one))})
        return [known[name] for name in names]

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def _key(self, item: Item, role: Role, prompt: str | None) -> bytes | None:
        if not isinstance(item, str):
            return None
        # The prompt's length is part of the key, so that no two triples read the same when joined.
        head = f"{role}|{-1 if prompt is None else len(prompt)}|{prompt or ''}|"
        return blake2b((head + item).encode("utf-8", "surrogatepass"), digest_size=16, key=self._salt).digest()


def cached_tokens(
    model: Any,
    choice: Literal["auto", "on", "off"],
    folder: Path,
    announce: Announce,
    *,
    repeats: bool,
) -> Tokenizes:
    """Return ``model``, or :class:`CachedTokens` around it, as ``engine.token_cache`` asks.

    ``repeats`` says whether the run sees texts a second time, which is when `auto` keeps them. The model names what its
    ids depend on by ``tokenizer_fingerprint()``; one that has no such method is never cached. Raises ConfigError where
    `on` asks for it.
    """
    cacheable = provides(model, CachesTokens)
    if choice == "on" and not cacheable:
        raise ConfigError(
            f"engine.token_cache: 'on' needs a model that has tokenizer_fingerprint(), {type(model).__name__} has not: "
            "set auto or off"
        )
    if not cacheable or choice == "off" or (choice == "auto" and not repeats):
        tokenizes: Tokenizes = model
        return tokenizes
    name: str = model.tokenizer_fingerprint()
    file = folder / "tokens" / f"{blake2b(name.encode(), digest_size=12).hexdigest()}.sqlite"
    return CachedTokens(model, name, TokenStore(file, announce))


def _encoded(ids: NDArray[np.integer]) -> Encoded:
    return Encoded(key=ids.astype(np.int32).tobytes(), length=len(ids), data={"input_ids": ids.tolist()})


def _plain(one: Encoded) -> list[int] | None:
    """The ids where the store can keep them, else ``None``."""
    ids = one.data.get("input_ids")
    if len(one.data) != 1 or not isinstance(ids, list) or not ids or len(ids) != one.length:
        return None
    return ids if min(ids) >= 0 and np.asarray(ids, dtype=np.int32).tobytes() == one.key else None
