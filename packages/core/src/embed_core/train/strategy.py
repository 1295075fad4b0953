"""Chooses a batch's strategy (direct or cached) and the size of its chunks, by what fits in memory.

Every question is answered from numbers that all ranks have, so all ranks answer alike without asking each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from embed_core.batch.chunks import ChunkSizes
from embed_core.config.run import EngineConfig
from embed_core.distributed.process_group import Ranks
from embed_core.errors import EmbedError
from embed_core.hardware.memory import available_bytes, gib
from embed_core.hardware.oom import is_out_of_memory
from embed_core.profiling.storage_tracker import kept_bytes
from embed_core.protocols import Announce

Strategy = Literal["direct", "cached"]
USABLE = 0.8
"""The share of free memory that graphs may fill. Loss, gathered embeddings and fragmentation need the rest."""
LONGER = 1.25
"""Texts longer by this factor than those measured are measured again: attention may grow with the square."""


class Probe(NamedTuple):
    """A chunk whose forward is measured."""

    forward: Callable[[], Any]
    tokens: int
    """Tokens of the chunk, padding included."""


class StrategyChooser:
    """Resolves ``engine.strategy`` and ``engine.token_budget`` on this machine, and after running out of memory."""

    def __init__(self, config: EngineConfig, ranks: Ranks, announce: Announce) -> None:
        self.config, self._ranks, self._announce = config, ranks, announce
        self._auto = config.strategy == "auto"
        self._limit = 0.0 if config.strategy == "cached" else math.inf
        """Largest batch, in padded tokens of one rank, that is run directly."""
        self._ceiling = math.inf
        """The same limit, lowered after direct batches ran out of memory."""
        self._measured_text = 0
        self._told: Strategy | None = None

    def strategy(self, sizes: ChunkSizes) -> Strategy:
        """The strategy of a batch whose sizes, maximised over the ranks, are ``sizes``."""
        chosen: Strategy = "direct" if sizes.padded_tokens <= min(self._limit, self._ceiling) else "cached"
        if self._auto and self._told == "direct" != chosen and self._ceiling == math.inf:
            self._told = chosen
            self._announce(
                f"strategy cached for batches above {self._limit:,.0f} tokens, as this one of "
                f"{sizes.padded_tokens:,}: their graphs would not fit in memory"
            )
        return chosen

    def must_measure(self, sizes: ChunkSizes) -> bool:
        """Whether the strategy depends on a forward that nobody has measured yet."""
        return self._auto and sizes.text_tokens > LONGER * self._measured_text

    def measure(self, probes: Sequence[Probe], reserved: int, sizes: ChunkSizes) -> None:
        """Measure what the forwards of a first and of a second chunk keep, as the measure of all chunks. A collective.

        The first also makes what all chunks of a batch share, weights in the precision of the arithmetic above all;
        the second keeps what is its own. ``reserved`` bytes of what is free will be needed whatever the strategy. Where
        a forward is a collective (ZeRO-3), all ranks run as many.
        """
        first = self._measured_text == 0
        self._measured_text = sizes.text_tokens
        free = available_bytes(self._ranks)
        try:
            shared, per_token = self._kept(*probes)
        except Exception as error:
            if not is_out_of_memory(error) or (self._ranks.world_size > 1 and self.config.zero_stage == 3):
                raise
            shared, per_token = 0.0, math.inf
        # The backward of a chunk takes about as much again as the chunk keeps, one chunk at a time.
        room = USABLE * free - reserved - shared
        limit = room / per_token - probes[-1].tokens if per_token else math.inf
        # The rank with the least room decides, and its figures are announced.
        self._limit, free, per_token = min(self._ranks.gather((limit, free, per_token)))
        if first:
            self._tell(sizes, free, per_token)

    def _kept(self, warm: Probe, own: Probe) -> tuple[float, float]:
        """Bytes that all chunks share, and bytes per token of each."""
        both = kept_bytes(warm.forward, self._ranks)
        per_token = kept_bytes(own.forward, self._ranks) / own.tokens
        return max(0.0, both - per_token * warm.tokens), per_token

    def _tell(self, sizes: ChunkSizes, free: float, per_token: float) -> None:
        kept = gib(per_token * sizes.padded_tokens) if per_token < math.inf else "more"
        if sizes.padded_tokens <= self._limit:
            self._told = "direct"
            self._announce(f"strategy direct: a batch keeps {kept} of {gib(free)} free")
        else:
            self._told = "cached"
            self._announce(f"strategy cached: a batch would keep {kept} of {gib(free)} free")

    def shrink(self, sizes: ChunkSizes, failed: Strategy) -> None:
        """After a batch of these sizes ran out of memory: take less from here on. Raises EmbedError at the end."""
        if failed == "direct" and sizes.chunks > 1:
            self._ceiling = min(self._ceiling, sizes.padded_tokens - 1)
            self._announce(
                f"out of memory with strategy direct: batches of {sizes.padded_tokens:,} tokens and more run cached "
                "from here on"
            )
            return
        if sizes.chunk_tokens <= sizes.text_tokens:
            raise EmbedError(
                f"out of memory at one text per chunk, of {sizes.text_tokens:,} tokens: shorten the texts (the model's "
                "maximum length), set engine.gradient_checkpointing: true, or shard the model with engine.zero_stage: 3"
            )
        before, budget = self.config.chunk_tokens, sizes.chunk_tokens // 2
        self.config = self.config.model_copy(update={"token_budget": budget})
        # Graphs of more than a chunk are no smaller for being cut into chunks.
        self._ceiling = min(self._ceiling, budget)
        self._announce(
            f"out of memory in a chunk of {sizes.chunk_tokens:,} tokens: chunks of at most {budget:,}, one at a time, "
            f"from here on (engine.token_budget was {before:,})"
        )

    def remedy(self, sizes: ChunkSizes) -> str:
        """The setting to name in the error of a run that cannot go on by itself."""
        budget = f"engine.token_budget: {max(1, sizes.chunk_tokens // 2)}"
        return budget if self.config.strategy == "cached" else f"engine.strategy: cached or {budget}"
