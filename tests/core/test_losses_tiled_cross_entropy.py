"""The search in tiles: equal to the table kept whole, and linear in memory, false-negative masks included."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.losses import tiled_cross_entropy
from embed_core.losses.config import InfoNCEConfig, MaskConfig
from embed_core.losses.false_negatives import KnownPositives
from embed_core.testing.batches import random_batch
from embed_core.types import LossOutput, Targets

torch.set_num_threads(1)
WIDTH = 16


@contextmanager
def tile_bytes(size: int) -> Iterator[None]:
    with mock.patch.object(tiled_cross_entropy, "TILE_BYTES", size):
        yield


class Largest(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that any operator made."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [leaf.untyped_storage().nbytes() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.bytes = max([self.bytes, *made])
        return result


def run(rows: int, dtype: torch.dtype = torch.float32, targets: Any = None, **options: Any) -> tuple[Any, LossOutput]:
    """Gradients of the query and passage vectors, and the output."""
    batch, found = random_batch(rows, negatives=(1, 0), width=WIDTH, dtype=dtype)
    loss = InfoNCEConfig(**options).build(BuildContext(registry=Registry(), announce=lambda line: None))
    output = loss(batch, targets(found) if targets else found)
    return torch.autograd.grad(output.loss, [batch.query.dense_ND, batch.passage.dense_ND]), output


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
@pytest.mark.parametrize("options", [{}, {"symmetric": True, "mask": {"margin": 0.2}}, {"temperature": 1.0}], ids=str)
def test_tiles_change_nothing(options: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    gradients, whole = run(90, dtype, **options)
    with tile_bytes(1000):
        tiled_gradients, tiled = run(90, dtype, **options)
    torch.testing.assert_close(tiled.loss, whole.loss, rtol=tolerance, atol=tolerance)
    for name, value in whole.metrics.items():
        torch.testing.assert_close(tiled.metrics[name], value, rtol=tolerance, atol=tolerance, msg=name)
    for one, other in zip(tiled_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def one_query(targets: Targets) -> Targets:
    """The worst case of the masks: all rows ask the same, so every positive is known to every row."""
    return targets._replace(query_ids_B=torch.ones_like(targets.query_ids_B))


def one_passage(targets: Targets) -> Targets:
    """The other one: all passages are the same text."""
    return targets._replace(passage_ids_P=torch.full_like(targets.passage_ids_P, int(targets.passage_ids_P[0])))


@pytest.mark.parametrize("targets", [None, one_query, one_passage])
@pytest.mark.parametrize("options", [{}, {"symmetric": True, "mask": {"margin": 0.1}}, {"in_batch": False}], ids=str)
def test_no_tensor_grows_with_the_product_of_queries_and_passages(options: dict[str, Any], targets: Any) -> None:
    """The largest is the passages' vectors or a few tiles, whatever the masks have to do; it may double, not more."""
    largest = {}
    with tile_bytes(16 * 1024):
        for rows in (256, 512):
            with Largest() as watch:
                run(rows, targets=targets, **options)
            largest[rows] = watch.bytes
            # A tile's positions as int64 take twice the bytes of its fp32 similarities.
            assert watch.bytes <= max(rows * 3 // 2 * WIDTH * 4, 2 * 16 * 1024)
    assert largest[512] <= 2 * largest[256]


def test_a_table_that_is_kept_whole_would_be_noticed() -> None:
    with Largest() as watch:
        run(512)
    assert watch.bytes >= 512 * 768 * 4


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_tiles_of_known_positives_are_those_of_the_whole(data: st.DataObject) -> None:
    """Any tile, of all passages or of the rows' positives, against a loop over the definition."""
    B = data.draw(st.integers(1, 6))
    _, targets = random_batch(B)
    P = targets.passage_ids_P.shape[0]

    def drawn(count: int, low: int = 1, high: int = 5) -> Tensor:
        return torch.tensor(data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count)))

    targets = targets._replace(
        query_ids_B=drawn(B, 1, 3), passage_ids_P=drawn(P), passage_keys_P=drawn(P, 0, 5), positives_K=drawn(B)
    )
    mask = MaskConfig(same_text=data.draw(st.booleans()), same_id=data.draw(st.booleans()))
    wanted = torch.tensor([[definition(targets, mask, b, p) for p in range(P)] for b in range(B)])
    own_B = targets.positive_columns_B
    for known, table in (
        (KnownPositives(targets, mask), wanted),
        (KnownPositives(targets, mask, own_B), wanted[:, own_B]),
    ):
        rows, columns = (slice(*sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2)))) for n in table.shape)
        tile = known.tile(rows, columns)
        expected = table[rows, columns]
        assert torch.equal(tile if tile is not None else torch.zeros_like(expected), expected)
    row_P = torch.repeat_interleave(torch.arange(B), targets.groups_B1.diff())
    assert torch.equal(KnownPositives(targets, mask).pairs(row_P), wanted[row_P, torch.arange(P)])


def definition(targets: Targets, mask: MaskConfig, b: int, p: int) -> bool:
    if p == targets.groups_B1[b]:
        return False
    asked_alike = [o for o in range(targets.row_ids_B.shape[0]) if targets.query_ids_B[o] == targets.query_ids_B[b]]
    text, key = int(targets.passage_ids_P[p]), int(targets.passage_keys_P[p])
    by_text = any(text in (targets.positives_K[o], targets.passage_ids_P[targets.groups_B1[o]]) for o in asked_alike)
    by_key = any(key in (targets.positives_K[o], targets.passage_keys_P[targets.groups_B1[o]]) for o in asked_alike)
    return (mask.same_text and by_text) or (mask.same_id and key != 0 and by_key)


REAL_SIZE = """
import psutil, resource, torch
from embed_core.config.context import BuildContext
from embed_core.losses.config import InfoNCEConfig
from embed_core.config.registry import Registry
from embed_core.testing.batches import random_batch
torch.set_num_threads(1)
batch, targets = random_batch(65_536, negatives=(0,), width=256)
loss = InfoNCEConfig().build(BuildContext(registry=Registry(), announce=print))
loss(batch, targets._replace(own_rows=(0, 1))).loss.backward()  # torch's own libraries are loaded
batch.query.dense_ND.grad = batch.passage.dense_ND.grad = None
before = psutil.Process().memory_info().rss
loss(batch, targets._replace(own_rows=(30_000, 30_000 + ROWS))).loss.backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)
"""


@pytest.mark.slow
def test_65536_queries_and_passages_stay_under_a_gibibyte() -> None:
    """Rows of one rank of sixteen, against all passages; the gradients of both sides are counted in."""
    code = REAL_SIZE.replace("ROWS", "4096")
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert 2 * 65_536 * 256 * 4 < int(answer.stdout) < 2**30, f"{int(answer.stdout) / 2**20:.0f} MiB"
