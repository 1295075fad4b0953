"""A dataset in memory, and one of a few rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from embed_core.types import Example, RetrievalSet

Row = tuple[str, Sequence[str], Sequence[str]]
"""Query, positives, negatives."""

_ANIMALS = ("badger", "crane", "dormouse", "eel", "ferret", "gannet", "heron", "ibex", "jay", "kestrel", "lynx", "mole")
_FACTS = (
    ("Where does the {} live?", "The {} lives near the river, in a shallow burrow that it digs itself."),
    ("What does a {} eat?", "Worms, beetles and fallen fruit are what the {} eats."),
    ("When is the {} awake?", "After dusk, and in winter hardly at all: that is when the {} is awake."),
)


class RowsDataset:
    """Rows in memory: one positive drawn, every negative kept. The first ``held_out_rows`` are for evaluation."""

    def __init__(self, rows: Sequence[Row], *, name: str = "rows", held_out_rows: int = 0, sources: int = 1) -> None:
        self.name = name
        self._held_out = list(rows[:held_out_rows])
        self._rows = list(rows[held_out_rows:])
        self._sources = sources

    def __len__(self) -> int:
        return len(self._rows)

    def example(self, row: int, rng: np.random.Generator) -> Example:
        """One of the positives, then all negatives."""
        query, positives, negatives = self._rows[row]
        drawn = positives[int(rng.integers(len(positives)))]
        return Example(
            row,
            query,
            (drawn, *negatives),
            positives=tuple(positives),
            source=self.source(row),
            place=f"{self.name}:{row}",
        )

    def identities(self, row: int) -> Iterable[bytes]:
        """Query and positives, as bytes."""
        query, positives, _ = self._rows[row]
        return [text.encode() for text in (query, *positives)]

    def source(self, row: int) -> str:
        """Sources alternate row by row."""
        return f"{self.name}-{row % self._sources}"

    def texts(self) -> Iterator[str]:
        """Every training text once, in the order of the rows."""
        every = (text for query, positives, negatives in self._rows for text in (query, *positives, *negatives))
        yield from dict.fromkeys(every)

    def held_out(self) -> RetrievalSet | None:
        """The held-out queries over their own positives."""
        if not self._held_out:
            return None
        documents = list(dict.fromkeys(text for _, positives, _ in self._held_out for text in positives))
        ids = {text: f"d{number}" for number, text in enumerate(documents)}
        return RetrievalSet(
            self.name,
            {f"q{number}": query for number, (query, _, _) in enumerate(self._held_out)},
            {ids[text]: text for text in documents},
            {f"q{n}": {ids[text]: 1 for text in positives} for n, (_, positives, _) in enumerate(self._held_out)},
        )

    def fingerprint(self) -> str:
        """Hash the rows of both splits."""
        content = json.dumps([self._held_out, self._rows])
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def tiny_dataset(*, held_out_rows: int = 0, sources: int = 1) -> RowsDataset:
    """36 rows of three questions about twelve animals; every second row has two hard negatives, the others none."""
    rows: list[Row] = []
    for number, animal in enumerate(_ANIMALS):
        for asked, (question, answer) in enumerate(_FACTS):
            wrong = [fact.format(animal) for other, (_, fact) in enumerate(_FACTS) if other != asked]
            rows.append((question.format(animal), [answer.format(animal)], wrong if (number + asked) % 2 else []))
    return RowsDataset(rows, name="animals", held_out_rows=held_out_rows, sources=sources)
