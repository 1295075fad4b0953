"""Stores token lists on disk by a hash of the text: one SQLite file per tokenizer, shared by ranks and runs.

SQLite does what such a file needs: several processes at once, little memory, a state that a killed process cannot
spoil. It does not notice flipped bits, so every value carries a checksum; and as a lost file costs nothing but
tokenising again, nothing waits for the disk.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from embed_core.protocols import Announce

T = TypeVar("T")
MAX_BYTES = 16 << 30
"""Size of a file from which on nothing is added: some 50 million texts of 150 tokens."""
UNUSED_SECONDS = 30 * 24 * 3600
"""Age since the last use at which another tokenizer's file is removed."""
ASKED_AT_ONCE = 500
"""Keys of one query; all versions of SQLite take 999."""
WAIT_SECONDS = 10.0
"""How long to wait for another process that is writing."""
HEAD = 13
"""Bytes before the tokens: the second half of the key, a CRC-32 of all the rest, and the bytes of a token."""
SUFFIXES = ("", "-wal", "-shm", "-journal")


class TokenStore:
    """``get`` and ``put`` of token ids by 16-byte keys. Safe in threads; a failure turns the store off.

    A store that is off finds nothing and keeps nothing. ``announce`` gets one line where a file is damaged, and made
    anew, and one where the store is turned off. Nothing is raised.
    """

    def __init__(self, path: Path, announce: Announce, max_bytes: int = MAX_BYTES) -> None:
        self.path, self._announce, self._max_bytes = path, announce, max_bytes
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._off = self._renewed = self._full = False

    def get(self, keys: Sequence[bytes]) -> dict[bytes, NDArray[np.integer]]:
        """Return the tokens of those keys that are known."""
        return self._attempt(lambda database: _read(database, keys)) or {}

    def put(self, tokens: Mapping[bytes, Sequence[int]]) -> None:
        """Store tokens (ids from 0), in one transaction."""
        if tokens and not self._full:
            self._attempt(lambda database: _write(database, tokens))
            with suppress(OSError):
                self._full = sum(map(os.path.getsize, self._files())) >= self._max_bytes

    def close(self) -> None:
        """Close the file. The store is off from then on."""
        with self._lock, suppress(sqlite3.Error):
            self._off = True
            if self._database is not None:
                self._database.close()
                self._database = None

    def _attempt(self, action: Callable[[sqlite3.Connection], T]) -> T | None:
        """Run ``action`` on the file, and once more on a new file where the first is damaged."""
        with self._lock:
            while not self._off:
                try:
                    if self._database is None:
                        self._database = self._opened()
                    return action(self._database)
                except (sqlite3.Error, OSError) as error:
                    self._failed(error)
        return None

    def _failed(self, error: Exception) -> None:
        damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = None
        if damaged and not self._renewed:
            self._renewed = True
            self._announce(f"{self.path}: damaged ({error}): made anew, texts are tokenised once more")
            for path in self._files():
                with suppress(OSError):
                    os.remove(path)
            return
        self._off = True
        self._announce(f"{self.path}: {error}: texts are tokenised every time (engine.token_cache: off silences this)")

    def _opened(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _remove_unused(self.path)
        database = sqlite3.connect(self.path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            # With WAL readers need not wait for a writer; where WAL cannot be, SQLite keeps its journal.
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = OFF")
            database.execute("CREATE TABLE IF NOT EXISTS tokens (key INTEGER PRIMARY KEY, value BLOB NOT NULL)")
            os.utime(self.path)
        except BaseException:
            database.close()
            raise
        return database

    def _files(self) -> list[str]:
        return [name for suffix in SUFFIXES if os.path.exists(name := f"{self.path}{suffix}")]


def _read(database: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, NDArray[np.integer]]:
    numbers = {_number(key): key for key in keys}
    asked, found = list(numbers), {}
    for start in range(0, len(asked), ASKED_AT_ONCE):
        some = asked[start : start + ASKED_AT_ONCE]
        marks = ",".join("?" * len(some))
        for number, value in database.execute(f"SELECT key, value FROM tokens WHERE key IN ({marks})", some):
            tokens = _unpacked(numbers[number], value)
            if tokens is not None:
                found[numbers[number]] = tokens
    return found


def _write(database: sqlite3.Connection, tokens: Mapping[bytes, Sequence[int]]) -> None:
    # In the order of the file's pages: each is visited once.
    rows = sorted((_number(key), _packed(key, value)) for key, value in tokens.items())
    database.execute("BEGIN IMMEDIATE")
    try:
        database.executemany("INSERT OR REPLACE INTO tokens VALUES (?, ?)", rows)
        database.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise


def _number(key: bytes) -> int:
    return int.from_bytes(key[:8], "little", signed=True)


def _packed(key: bytes, tokens: Sequence[int]) -> bytes:
    width = 2 if max(tokens, default=0) < 1 << 16 else 4
    rest = bytes([width]) + np.asarray(tokens, dtype=f"<u{width}").tobytes()
    return key[8:] + zlib.crc32(rest, zlib.crc32(key)).to_bytes(4, "little") + rest


def _unpacked(key: bytes, value: bytes) -> NDArray[np.integer] | None:
    """The tokens; None where they are another text's whose key begins alike, or the checksum is wrong."""
    if len(value) < HEAD or value[:8] != key[8:]:
        return None
    if zlib.crc32(value[12:], zlib.crc32(key)) != int.from_bytes(value[8:12], "little"):
        return None
    return np.frombuffer(value, dtype=f"<u{value[12]}", offset=HEAD)


def _remove_unused(path: Path) -> None:
    """Remove the files of tokenizers that no run has used for a month."""
    for other in path.parent.glob("*.sqlite"):
        with suppress(OSError):
            if other != path and time.time() - other.stat().st_mtime > UNUSED_SECONDS:
                for suffix in SUFFIXES:
                    other.with_name(other.name + suffix).unlink(missing_ok=True)
