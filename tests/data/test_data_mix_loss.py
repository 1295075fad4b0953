"""The loss kind `by-source`: weights and own-only sources, value and gradient against a loop over the rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from embed_core.config.context import BuildContext
from embed_core.errors import ConfigError
from embed_core.plugin.manager import activate
from embed_core.testing import build, check_loss, permuted, random_batch, tiny_dataset
from embed_core.types import Batch, Targets

torch.set_num_threads(1)
TAU = 0.1
INFONCE = {"kind": "infonce", "temperature": TAU, "mask": {"same_text": False, "same_id": False}}
LOSS = {"kind": "by-source", "inner": INFONCE, "own_only": INFONCE | {"in_batch": False}}


@pytest.fixture(scope="module")
def registry() -> Any:
    return activate(["data"])[1]


def context_of(registry: Any, folder: Path, sources: Sequence[dict[str, Any]], rows: int = 4) -> BuildContext:
    """Of a run on a mix whose source n has the row ids ``n * rows`` to ``(n + 1) * rows - 1``."""
    folder.mkdir(exist_ok=True)
    named = []
    for number, source in enumerate(sources):
        path = folder / f"s{number}.jsonl"
        path.write_text(
            "".join(json.dumps({"query": f"{number} {n}", "pos": [f"p {number} {n}"]}) + "\n" for n in range(rows))
        )
        named.append({"data_path": str(path), **source})
    context = BuildContext(registry, cache_dir=folder / "cache", announce=lambda _: None)
    options = {"kind": "mix", "use_all": True, "datasets": named}
    context.dataset_factory = lambda: build(registry, "dataset", options, context)
    return context


def by_hand(batch: Batch, targets: Targets, weights: Sequence[float], alone: Sequence[bool], rows: int) -> Tensor:
    """Row by row in float64: who is whose negative, said once more."""
    query, passage = batch.query.dense_ND, batch.passage.dense_ND
    assert query is not None
    assert passage is not None
    groups, part = targets.groups_B1.tolist(), [int(row) // rows for row in targets.row_ids_B]
    owner = [row for row in range(len(part)) for _ in range(groups[row], groups[row + 1])]
    total = torch.zeros((), dtype=torch.float64)
    for row, source in enumerate(part):
        seen = [
            column for column, of in enumerate(owner)
            if of == row or not (alone[source] or alone[part[of]])
        ]  # fmt: skip
        logits = torch.stack([query[row].double() @ passage[column].double() for column in seen]) / TAU
        target = torch.tensor(seen.index(groups[row]))
        total = total + weights[source] * torch.nn.functional.cross_entropy(logits, target)
    return total / len(part)


@pytest.mark.parametrize(
    ("weights", "alone"),
    [
        ((1, 1, 1), (False, False, False)),
        ((1, 0.5, 3), (False, False, False)),
        ((1, 1, 1), (False, True, False)),
        ((2, 0.5, 3), (True, False, True)),
        ((2, 0.5, 3), (True, True, True)),
    ],
)
@pytest.mark.parametrize("order", [range(12), (11, 2, 5, 0, 7, 8, 3, 1, 10, 9, 4, 6), (4, 5, 6, 7)])
def test_against_a_loop(
    weights: Sequence[float], alone: Sequence[bool], order: Sequence[int], registry: Any, tmp_path: Path
) -> None:
    sources = [
        {"weight": w, "negative_strategy": "own-only" if own else "in-batch"}
        for w, own in zip(weights, alone, strict=True)
    ]
    loss = build(registry, "loss", LOSS, context_of(registry, tmp_path, sources))
    batch, targets = permuted(*random_batch(12, repeats=False, dtype=torch.float64), list(order))
    output = loss(batch, targets)
    expected = by_hand(batch, targets, weights, alone, 4)
    torch.testing.assert_close(output.loss, expected, rtol=0, atol=1e-9)
    leaves = [batch.query.dense_ND, batch.passage.dense_ND]
    found = torch.autograd.grad(output.loss, leaves, allow_unused=True)
    wanted = torch.autograd.grad(expected, leaves)
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got if got is not None else torch.zeros_like(want), want, rtol=0, atol=1e-8)


def test_metrics_are_means_over_the_rows(registry: Any, tmp_path: Path) -> None:
    """Without weights or own-only rows, and with rows that see all others anyway, they are the inner loss's."""
    sources = [{"weight": 2.0}, {"weight": 0.5}, {}]
    loss = build(registry, "loss", LOSS, context_of(registry, tmp_path, sources))
    batch, targets = random_batch(12)
    plain = build(registry, "loss", INFONCE, BuildContext(registry))(batch, targets).metrics
    ours = loss(batch, targets).metrics
    assert set(ours) == set(plain)
    for name, value in plain.items():
        torch.testing.assert_close(ours[name], value)


@pytest.mark.parametrize("sources", [[{}, {}], [{"weight": 2.0}, {"negative_strategy": "own-only"}]])
def test_it_keeps_the_contract_of_losses(sources: list[dict[str, Any]], registry: Any, tmp_path: Path) -> None:
    check_loss(build(registry, "loss", LOSS, context_of(registry, tmp_path, sources, rows=10)))


class Whole(torch.nn.Module):
    """A loss that cannot tell rows apart."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, batch: Batch, targets: Targets) -> Any:
        assert targets.own_rows is None
        return self.inner(batch, targets)


def test_a_loss_that_cannot_tell_rows_apart_needs_batches_of_one_weight(registry: Any, tmp_path: Path) -> None:
    loss = build(registry, "loss", LOSS, context_of(registry, tmp_path, [{"weight": 2.0}, {}, {}]))
    inner = loss.inner
    loss.inner = Whole(inner)
    batch, targets = random_batch(12)
    with pytest.raises(ConfigError, match="sources of different weight are in one batch, and Whole cannot tell rows"):
        loss(batch, targets)
    one = permuted(batch, targets, [0, 1, 2, 3])
    torch.testing.assert_close(loss(*one).loss, 2 * inner(*one).loss)


def test_faults(registry: Any, tmp_path: Path) -> None:
    context = BuildContext(registry, dataset_factory=tiny_dataset)
    with pytest.raises(ConfigError, match="loss by-source: the data is 'animals', no `mix`: use the loss `infonce`"):
        build(registry, "loss", LOSS, context)
    context = context_of(registry, tmp_path, [{"negative_strategy": "own-only"}])
    with pytest.raises(ConfigError, match="source 's0' has negative_strategy own-only: set `own_only`"):
        build(registry, "loss", {"kind": "by-source", "inner": INFONCE}, context)
