"""One row as a training example: a positive and hard negatives drawn from all the row has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from embed_core.types import Example

if TYPE_CHECKING:
    import numpy as np

    from embed_core.datasets.row import Row


@dataclass(frozen=True, slots=True)
class DrawOptions:
    """How rows are drawn; the same for every row of a dataset."""

    negatives: int = 7
    """Hard negatives of a row that has any."""
    query_prompt: str | None = None
    passage_prompt: str | None = None


def draw_example(
    row: Row,
    number: int,
    source: str,
    options: DrawOptions,
    rng: np.random.Generator,
    *,
    in_batch_negatives: bool = True,
) -> Example:
    """Draw one positive and the hard negatives at random, with their scores and ids.

    Negatives are drawn without replacement; a row with too few repeats them, each as often as any other give or take
    one, and a row without any has its positive only.
    """
    pos = int(rng.integers(len(row.pos)))
    negs = _draw(len(row.neg), _group_negatives(row, options.negatives), rng)
    query_prompt = options.query_prompt if row.prompt is None else row.prompt
    return Example(
        row=number,
        query=row.query,
        passages=(row.pos[pos], *(row.neg[n] for n in negs)),
        scores=_scores(row, pos, negs),
        passage_keys=_keys(row, pos, negs),
        positives=(*row.pos, *row.masked),
        positive_keys=row.pos_keys or (),
        query_prompt=query_prompt,
        passage_prompt=query_prompt if row.symmetric else options.passage_prompt,
        source=source,
        place=row.place,
        in_batch_negatives=in_batch_negatives,
    )


def _group_negatives(row: Row, wanted: int) -> int:
    if row.type == "only_1neg":
        return 1
    return min(wanted, len(row.neg)) if row.type == "symmetric_class" else wanted


def _draw(available: int, wanted: int, rng: np.random.Generator) -> list[int]:
    drawn: list[int] = []
    while available and len(drawn) < wanted:
        drawn.extend(int(n) for n in rng.permutation(available)[: wanted - len(drawn)])
    return drawn


def _scores(row: Row, pos: int, negs: list[int]) -> tuple[float, ...] | None:
    if row.pos_scores is None:
        return None
    scores = row.neg_scores or ()
    return (row.pos_scores[pos], *(scores[n] for n in negs))


def _keys(row: Row, pos: int, negs: list[int]) -> tuple[str | None, ...] | None:
    if row.pos_keys is None and row.neg_keys is None:
        return None
    positive = row.pos_keys[pos] if row.pos_keys else None
    return (positive, *(row.neg_keys[n] if row.neg_keys else None for n in negs))
