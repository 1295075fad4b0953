"""Kept token lists: what the model would give, however the file fares, from several processes at once."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import processes
from embed_core.config.component import CheckpointConfig
from embed_core.errors import ConfigError
from embed_core.testing.tiny import TinyModel
from embed_core.text import token_store as store_module
from embed_core.text.token_cache import CachedTokens, cached_tokens
from embed_core.text.token_store import TokenStore
from embed_core.types import Encoded


class CountingModel(TinyModel):
    """Encoded in ``TextTokenizer``'s form; counts the texts it tokenises."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.tokenised: list[tuple[str, str | None]] = []

    def tokenizer_fingerprint(self) -> str:
        return f"tiny {self.vocabulary}"

    def tokenize(self, items, role, prompts):
        self.tokenised += list(zip(items, prompts, strict=True))
        plain = super().tokenize(items, role, prompts)
        # Roles differ here, as they may in a model: a prefix of its own.
        ids = [([2] if role == "query" else []) + one.data["input_ids"] for one in plain]
        return [Encoded(np.asarray(i, np.int32).tobytes(), len(i), {"input_ids": i}) for i in ids]


def key(text: str) -> bytes:
    from hashlib import blake2b

    return blake2b(text.encode(), digest_size=16).digest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens" / "x.sqlite"


def opened(file: Path, said: list[str] | None = None, **options: Any) -> TokenStore:
    return TokenStore(file, (said if said is not None else []).append, **options)


TEXT = st.text(max_size=6)
CALLS = st.lists(
    st.tuples(st.lists(st.tuples(TEXT, st.none() | TEXT), max_size=6), st.sampled_from(["query", "passage"])),
    max_size=6,
)


@settings(deadline=None, max_examples=40)
@given(CALLS)
def test_the_same_as_the_model_whatever_is_asked_in_whatever_order(tmp_path_factory, calls):
    model = CountingModel()
    cached = CachedTokens(model, "f", opened(tmp_path_factory.mktemp("tokens") / "x.sqlite"))
    asked = set()
    for pairs, role in calls + calls:
        items, prompts = [text for text, _ in pairs], [prompt for _, prompt in pairs]
        assert cached.tokenize(items, role, prompts) == CountingModel().tokenize(items, role, prompts)
        asked |= {(pair, role) for pair in pairs}
    assert len(model.tokenised) == len(asked), "each text, role and prompt once"


def test_another_fingerprint_finds_nothing(file):
    model = CountingModel()
    for name in ("a", "b", "a"):
        CachedTokens(model, name, opened(file)).tokenize(["one two"], "query", [None])
    assert len(model.tokenised) == 2


@given(st.lists(st.integers(0, 2**31 - 1), max_size=20))
def test_ids_of_any_size(tmp_path_factory, ids):
    store = opened(tmp_path_factory.mktemp("ids") / "x.sqlite")
    store.put({key("a"): ids})
    assert store.get([key("a"), key("b")])[key("a")].tolist() == ids
    assert list(store.get([key("b")])) == []


def test_more_keys_than_one_query_takes(file):
    tokens = {key(str(n)): [n] for n in range(2 * store_module.ASKED_AT_ONCE + 7)}
    store = opened(file)
    store.put(tokens)
    assert {k: v.tolist() for k, v in store.get(list(tokens)).items()} == tokens


def test_a_text_whose_hash_begins_alike_is_another_text(file):
    store = opened(file)
    one, other = b"01234567" + b"a" * 8, b"01234567" + b"b" * 8
    store.put({one: [1]})
    assert store.get([other]) == {}
    store.put({other: [2]})
    assert {k: v.tolist() for k, v in store.get([other]).items()} == {other: [2]}
    assert store.get([one]) == {}


def test_flipped_bits_are_tokenised_again(file):
    store = opened(file)
    store.put({key(str(n)): [n, n + 1] for n in range(50)})
    store.close()
    with sqlite3.connect(file) as database:
        for number, value in database.execute("SELECT key, value FROM tokens").fetchall():
            at = abs(number) % len(value)
            database.execute(
                "UPDATE tokens SET value = ? WHERE key = ?",
                (value[:at] + bytes([value[at] ^ 4]) + value[at + 1 :], number),
            )
    assert opened(file).get([key(str(n)) for n in range(50)]) == {}


@pytest.mark.parametrize("damage", ["no database", "cut", "garbage inside"])
def test_a_damaged_file_is_made_anew_with_one_line(file, damage):
    store = opened(file)
    store.put({key(str(n)): list(range(40)) for n in range(2000)})
    store.close()
    content = file.read_bytes()
    file.write_bytes(
        {
            "no database": b"something else entirely" * 50,
            "cut": content[: len(content) // 2],
            "garbage inside": content[:100] + os.urandom(len(content) - 100),
        }[damage]
    )
    said: list[str] = []
    model, store = CountingModel(), opened(file, said)
    cached = CachedTokens(model, "f", store)
    words = [f"word{n}" for n in range(40)]
    for _ in range(2):
        assert cached.tokenize(words, "query", [None] * 40) == CountingModel().tokenize(words, "query", [None] * 40)
    assert len(said) == 1
    assert said[0].startswith(f"{file}: damaged (")
    assert said[0].endswith("): made anew, texts are tokenised once more")
    assert len(model.tokenised) == 40


def test_a_store_that_cannot_be_written_is_off_with_one_line(tmp_path):
    (tmp_path / "tokens").write_text("in the way")
    said: list[str] = []
    model = CountingModel()
    cached = CachedTokens(model, "f", opened(tmp_path / "tokens" / "x.sqlite", said))
    for _ in range(2):
        assert len(cached.tokenize(["a"], "query", [None])) == 1
    assert len(model.tokenised) == 2
    assert len(said) == 1
    assert said[0].endswith(": texts are tokenised every time (engine.token_cache: off silences this)")


def test_a_full_store_takes_nothing_more(file):
    store = opened(file, max_bytes=1)
    store.put({key("a"): [1]})
    store.put({key("b"): [2]})
    assert list(store.get([key("a"), key("b")])) == [key("a")]


def test_a_closed_store_is_off(file):
    store = opened(file)
    store.put({key("a"): [1]})
    store.close()
    assert store.get([key("a")]) == {}
    assert [path.name for path in file.parent.iterdir()] == ["x.sqlite"], "no journal is left"


def test_other_tokenizers_files_go_when_unused(file):
    old, young = file.with_name("old.sqlite"), file.with_name("young.sqlite")
    for path in (old, young):
        store = opened(path)
        store.put({key("a"): [1]})
        store.close()
    os.utime(old, (0, time.time() - store_module.UNUSED_SECONDS - 60))
    opened(file).get([key("a")])
    assert sorted(path.name for path in file.parent.glob("*.sqlite")) == ["x.sqlite", "young.sqlite"]


WRITER = """
import sys
from pathlib import Path
from hashlib import blake2b
from embed_core.text.token_store import TokenStore
key = lambda n: blake2b(str(n).encode(), digest_size=16).digest()
said = []
store = TokenStore(Path(sys.argv[1]), said.append)
first = int(sys.argv[2])
for start in range(first, first + 3000, 100):
    numbers = range(start, start + 100)
    known = store.get([key(n) for n in numbers])
    assert all(known[key(n)].tolist() == [n, 70_000] for n in numbers if key(n) in known)
    store.put({key(n): [n, 70_000] for n in numbers})
assert not said, said
"""


def test_processes_write_at_once(file):
    """Two ranks and another run, whose texts overlap."""
    command = [sys.executable, "-c", WRITER, str(file)]
    writers = [processes.Popen([*command, str(first)]) for first in (0, 1500, 1000)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    found = opened(file).get([key(str(n)) for n in range(4500)])
    assert {k: v.tolist() for k, v in found.items()} == {key(str(n)): [n, 70_000] for n in range(4500)}


def test_a_killed_writer_leaves_what_it_had_committed(file):
    """A torn transaction is no transaction."""
    script = WRITER.replace("assert not said, said", "store._database.execute('BEGIN IMMEDIATE')\n"
        "store._database.execute('DELETE FROM tokens')\nimport os\nos.kill(os.getpid(), 9)")  # fmt: skip
    assert processes.run([sys.executable, "-c", script, str(file), "0"]).returncode == -9
    assert len(opened(file).get([key(str(n)) for n in range(3000)])) == 3000


def test_threads_share_a_store(file):
    store, failed = opened(file), []

    def work(first: int) -> None:
        for n in range(first, first + 300):
            store.put({key(str(n)): [n]})
            if store.get([key(str(n))])[key(str(n))].tolist() != [n]:
                failed.append(n)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 150)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(store.get([key(str(n)) for n in range(450)])) == 450


class Odd(CountingModel):
    """Says more of a text than its ids, or has another key: nothing of that may be lost."""

    def tokenize(self, items, role, prompts):
        first, second, third = super().tokenize(items, role, prompts)
        return [
            Encoded(first.key, first.length, {**first.data, "more": 1}),
            Encoded(second.key + b"!", second.length, second.data),
            Encoded(third.key, third.length + 1, third.data),
        ]


def test_what_is_more_than_ids_is_not_kept(file):
    model = Odd()
    cached = CachedTokens(model, "f", opened(file))
    asked = (["a", "b", "c"], "query", [None] * 3)
    for _ in range(2):
        assert cached.tokenize(*asked) == Odd().tokenize(*asked)
    assert len(model.tokenised) == 6


def test_items_that_are_no_texts_go_to_the_model(file):
    model = CountingModel()
    cached = CachedTokens(model, "f", opened(file))
    for _ in range(2):
        assert cached.tokenize([7, "a", 7], "query", [None] * 3) == CountingModel().tokenize(
            [7, "a", 7], "query", [None] * 3
        )
    assert [item for item, _ in model.tokenised] == [7, "a", 7, 7, 7]


def test_what_the_option_asks_for(tmp_path):
    def kind(model: Any, choice: Any, *, repeats: bool) -> type:
        return type(cached_tokens(model, choice, tmp_path, print, repeats=repeats))

    assert kind(CountingModel(), "auto", repeats=True) is CachedTokens
    assert kind(CountingModel(), "on", repeats=False) is CachedTokens
    assert kind(CountingModel(), "auto", repeats=False) is CountingModel
    assert kind(CountingModel(), "off", repeats=True) is CountingModel
    assert kind(TinyModel(), "auto", repeats=True) is TinyModel
    with pytest.raises(ConfigError) as caught:
        kind(TinyModel(), "on", repeats=True)
    assert str(caught.value) == (
        "engine.token_cache: 'on' needs a model that has tokenizer_fingerprint(), TinyModel has not: set auto or off"
    )


class NoCheckpoint(CheckpointConfig):
    kind: Literal["none"] = "none"

    def build(self, context: Any) -> Any:
        return SimpleNamespace(export=lambda model, state, directory, card: None)


def test_a_run_is_the_same_with_and_without(hello_run, tmp_path, monkeypatch):
    """Three epochs, two evaluations: equal losses to the last bit, every text tokenised once, and by no later run."""
    monkeypatch.setenv("EMBED_CACHE", str(tmp_path / "cache"))
    counts, losses, scores = [], [], []
    for number, choice in enumerate(("off", "auto", "on")):
        model = CountingModel()
        settings = ("train.max_steps=15", f"engine.token_cache={choice}")
        parts = {"checkpoint": NoCheckpoint(every_minutes=0)}
        recorder = hello_run(*settings, out=f"run{number}", model=model, parts=parts)
        losses.append(recorder.losses)
        scores.append(recorder.result.evaluations)
        counts.append((len(model.tokenised), len(set(model.tokenised))))
    assert losses[0] == losses[1] == losses[2]
    assert scores[0] == scores[1] == scores[2]
    assert counts[0][0] > 3 * counts[0][1], "without, every text every time"
    assert counts[1][0] <= 2 * counts[1][1], "once as query and once as passage at most"
    assert counts[2][0] == 0, "the second run finds all of them"
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 1


def test_a_text_in_several_places_is_tokenised_once():
    from embed_core.batch.collate import make_host_batch
    from embed_core.types import Example

    model = CountingModel()
    rows = [Example(n, "q", ("p", "n", "p"), passage_prompt=None if n else "x", place="f") for n in range(2)]
    host = make_host_batch(model, rows)
    assert sorted(model.tokenised, key=str) == sorted(
        [("q", None), ("p", "x"), ("n", "x"), ("p", None), ("n", None)], key=str
    )
    assert host.passage_index.tolist() == [1, 2, 1, 3, 4, 3]
