"""Makes the build context and sets the seeds, alike in a run and in the commands that inspect one."""

from __future__ import annotations

import random

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.config.run import RunConfig
from embed_core.distributed.process_group import Ranks
from embed_core.protocols import Announce, Dataset


def build_context(
    config: RunConfig, registry: Registry, ranks: Ranks, announce: Announce, dataset: Dataset | None = None
) -> BuildContext:
    """The context of ``config``'s components; ``dataset`` takes the place of ``config.data``'s."""
    context = BuildContext(
        registry=registry,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=ranks.device,
        announce=announce,
        barrier=ranks.barrier,
        data=config.data if dataset is None else None,
    )
    data = config.data
    context.dataset_factory = lambda: data.build(context) if dataset is None else data.around(dataset, context)
    return context


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, numpy and torch, so that building a component draws the same numbers again."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
