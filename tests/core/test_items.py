"""Items that are no texts: what the core asks of them, and what it does with those that have nothing to ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from embed_core.batch.collate import make_host_batch
from embed_core.types import Encoded, Example, Item, Role
from embed_core.utils.hashing import described, identity, sameness


@dataclass(frozen=True)
class Sound:
    """An item as a plugin would define it."""

    name: str

    @property
    def identity(self) -> bytes:
        return b"sound\0" + self.name.encode()

    def describe(self) -> str:
        return f"[sound {self.name}]"


class Counting:
    """Tokenises anything, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Item] = []

    def tokenize(self, items: Sequence[Item], role: Role, prompts: Sequence[str | None]) -> list[Encoded]:
        self.asked += items
        return [Encoded(repr((item, prompt)).encode(), 1, {}) for item, prompt in zip(items, prompts, strict=True)]


def test_an_item_that_fills_several_places_is_tokenised_once() -> None:
    model = Counting()
    rows = [
        Example(0, Sound("owl"), ("hoot", Sound("dog"))),
        Example(1, Sound("owl"), ("hoot", Sound("owl"))),
    ]
    host = make_host_batch(model, rows)
    assert model.asked == [Sound("owl"), "hoot", Sound("dog"), Sound("owl")]  # per column
    assert host.query_ids[0] == host.query_ids[1] == host.passage_ids[3] != host.passage_ids[1]
    assert host.query_index.tolist() == [0, 0]
    assert host.passage_index.tolist() == [1, 2, 1, 0]


def test_prompts_keep_equal_items_apart() -> None:
    model = Counting()
    make_host_batch(model, [Example(n, Sound("owl"), ("hoot",), query_prompt=prompt) for n, prompt in enumerate("ab")])
    assert model.asked == [Sound("owl"), Sound("owl"), "hoot"]


def test_an_item_without_an_identity_is_tokenised_wherever_it_is() -> None:
    model = Counting()
    array = np.zeros(2)  # neither hashable nor comparable
    make_host_batch(model, [Example(n, array, ("hoot",)) for n in range(2)])
    assert [item is array for item in model.asked] == [True, True, False]


@pytest.mark.parametrize(
    ("item", "same", "text"),
    [("hoot", "hoot", "hoot"), (Sound("owl"), b"sound\0owl", "[sound owl]"), (7, None, "7")],
)
def test_sameness_and_description(item: Item, same: object, text: str) -> None:
    assert sameness(item) == same
    assert described(item) == text


def test_identities_of_texts_and_other_items() -> None:
    assert identity(Sound("owl")) == identity(Sound("owl")) != identity(Sound("dog"))
    assert identity(Sound("owl")) == identity(b"sound\0owl")
    assert identity("owl") not in {identity(Sound("owl")), 0}
