"""Run in place of the worker of `embed prove` by its test: hello with dropout, and faults in four variants."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

import torch

from embed_core.batch.chunks import Chunks
from embed_core.distributed import collectives
from embed_core.embeddings import detach
from embed_core.inspection.prove import worker
from embed_core.losses import tiled_cross_entropy
from embed_hello.config import HelloModelConfig

build, forward, gather_rows = HelloModelConfig.build, Chunks.forward, collectives.gather_rows
backward, measure, slices = collectives._GatherRows.backward, worker.measure, tiled_cross_entropy._slices


def with_dropout(self: Any, context: Any) -> Any:
    model = build(self, context)
    model.refine.append(torch.nn.Dropout(0.3))
    return model


def chunk_dropped(self: Any, engine: Any, number: int) -> Any:
    result = forward(self, engine, number)
    return detach(result) if number == len(self) - 1 else result


def random_state_not_replayed(self: Any, engine: Any, number: int) -> Any:
    again = self.__dict__.setdefault("again", set())
    if number in again:
        self._seed = None
    again.add(number)
    return forward(self, engine, number)


def detached_gather(local: Any, ranks: Any, *args: Any, **named: Any) -> Any:
    """What all_gather without a gradient gives, one's own rows put back: the mistake of most training code."""
    whole = gather_rows(local.detach(), ranks, *args, **named)
    if not local.requires_grad:
        return whole
    counts = ranks.gather(len(local))
    start = sum(counts[: ranks.rank])
    return torch.cat([whole[:start], local, whole[start + len(local) :]])


def wrong_world_size_factor(ctx: Any, *gradients: Any) -> Any:
    first, *rest = backward(ctx, *gradients)
    return (first * ctx.world, *rest)


def tile_dropped(total: int, size: int) -> Any:
    """All tiles but the last, where there are several."""
    whole = list(slices(total, size))
    return iter(whole[:-1] or whole)


FAULTS: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {
    "1 rank, ZeRO 0, direct": lambda: patch.object(Chunks, "forward", chunk_dropped),
    "1 rank, ZeRO 0, cached, dropout on": lambda: patch.object(Chunks, "forward", random_state_not_replayed),
    "2 ranks, ZeRO 0, direct": lambda: patch.object(collectives, "gather_rows", detached_gather),
    "2 ranks, ZeRO 1, cached": lambda: patch.object(
        collectives._GatherRows, "backward", staticmethod(wrong_world_size_factor)
    ),
    # Shows with a loss that is computed in tiles; hello's own is not.
    "1 rank, ZeRO 0, direct, loss in tiles": lambda: patch.object(tiled_cross_entropy, "_slices", tile_dropped),
}


def measure_with_fault(variant: Any, *args: Any) -> Any:
    with FAULTS.get(variant.name, nullcontext)():
        return measure(variant, *args)


if __name__ == "__main__":
    with (
        patch.object(HelloModelConfig, "build", with_dropout),
        patch.object(worker, "measure", measure_with_fault),
    ):
        worker.main(sys.argv[1])
