"""The core's own components keep the contracts they ask of plugins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.testing import build, check_loss, check_sampler, tiny_dataset
from embed_core.testing.fixtures import embed_context, embed_registry

__all__ = ["embed_context", "embed_registry"]
torch.set_num_threads(1)
BATCH = 4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.1, "symmetric": True},
        {"in_batch": False},
        {"mask": {"same_text": True, "same_id": True, "margin": -0.1}},
    ],
)
def test_infonce(
    options: dict[str, Any],
    embed_registry: Callable[..., Registry],
    embed_context: Callable[..., BuildContext],
) -> None:
    registry = embed_registry()
    check_loss(build(registry, "loss", {"kind": "infonce", **options}, embed_context(registry)))


@pytest.mark.parametrize("kind", ["shuffled", "no-duplicates", "by-source"])
def test_sampler(
    kind: str, embed_registry: Callable[..., Registry], embed_context: Callable[..., BuildContext]
) -> None:
    registry = embed_registry()

    def factory(dataset: Any, seed: int) -> Any:
        options = {"kind": kind, "batch_size": BATCH}
        return build(registry, "sampler", options, embed_context(registry, seed=seed), dataset)

    check_sampler(factory, tiny_dataset(sources=2), batch_size=BATCH)


def test_every_kind_of_the_core_is_tested_here(embed_registry: Callable[..., Registry]) -> None:
    registry = embed_registry()
    assert set(registry.kinds("loss")) == {"infonce"}
    assert set(registry.kinds("sampler")) == {"shuffled", "no-duplicates", "by-source"}
