"""The ways `embed prove` computes a batch's loss and gradients: by plain autograd, or by the loop's own step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from embed_core.acceleration.attention import FLASH
from embed_core.batch.chunks import Chunks
from embed_core.batch.global_batch import GlobalBatch
from embed_core.config.run import RunConfig
from embed_core.distributed.process_group import Ranks
from embed_core.distributed.seeds import seed_of
from embed_core.embeddings import select, values
from embed_core.errors import EmbedError
from embed_core.inspection.parts import Parts
from embed_core.inspection.prove.variants import Variant
from embed_core.train.step import Step
from embed_core.types import Batch
from embed_core.zero.engine import Trainable, initialize
from embed_core.zero.optimizer import set_learning_rate
from embed_core.zero.state import full_gradient

CHUNKS = 4
"""At least about so many chunks per rank."""


class Method(Protocol):
    """A way of computing loss and gradients of a batch."""

    chunks: int
    random: bool

    def measure(self, number: int) -> float:
        """Forward and backward of batch ``number``; the global loss on this rank."""
        ...

    def gradients(self) -> Iterator[tuple[str, Tensor | None]]:
        """The full gradient of each trained parameter (a collective)."""
        ...

    def clear(self) -> None:
        """Drop the gradients and keep the weights."""
        ...


class AutogradMethod:
    """The oracle: plain autograd over all texts in one padded chunk."""

    def __init__(self, parts: Parts, module: Trainable, ranks: Ranks, loss: Any) -> None:
        self.parts, self.module, self.loss, self.ranks = parts, module.to(ranks.device), loss, ranks
        self.chunks, self.random = 1, False

    def measure(self, number: int) -> float:
        """Loss and gradients of the whole batch at once. Raises EmbedError where the forward is random."""
        host = self.parts.batches.host(self.module.model, number, deduplicate=False)
        inputs = self.module.model.collate(host.encoded)
        moved = {name: value.to(self.ranks.device) for name, value in inputs.items()}
        torch.manual_seed(1)
        again = [value.detach() for value in values(self.module(**moved))]
        torch.manual_seed(2)
        embeddings = self.module(**moved)
        if not _alike(again, values(embeddings)):
            raise EmbedError(
                f"model.kind {self.parts.config.model.kind!r}: two forwards of the same texts differ with all dropout "
                "at 0: without its other randomness there is nothing to compare"
            )
        shared = GlobalBatch(host, _step(self.parts.config, number), self.ranks)
        batch = Batch(select(embeddings, shared.query_index_B), select(embeddings, shared.passage_index_P))
        loss = self.loss(batch, shared.targets).loss
        loss.backward()
        return float(loss.detach())

    def gradients(self) -> Iterator[tuple[str, Tensor | None]]:
        """The gradients that autograd left."""
        yield from ((name, p.grad) for name, p in self.module.named_parameters() if p.requires_grad)

    def clear(self) -> None:
        """Set all gradients to None."""
        self.module.zero_grad(set_to_none=True)


class EngineMethod:
    """The loop's own step over a DeepSpeed engine."""

    def __init__(self, parts: Parts, module: Trainable, ranks: Ranks, loss: Any, variant: Variant) -> None:
        self.parts, self.module, self.ranks, self.variant = parts, module, ranks, variant
        engine = parts.config.engine
        self.config = engine.model_copy(
            update={
                "zero_stage": variant.zero_stage,
                "strategy": variant.strategy,
                "precision": "fp32",
                # Flash-attention has no fp32; what it is told is the model's matter, and proven at the start of runs.
                "attention": "sdpa" if engine.attention == FLASH else engine.attention,
            }
        )
        # Accumulated batches are compared one by one; DeepSpeed would divide them by their number.
        train = parts.config.train.model_copy(update={"gradient_accumulation_steps": 1})
        self.engine = initialize(module, self.config, train, ranks, lambda line: None)
        self.engine.train()
        # A step at learning rate 0 clears the gradients at every stage and leaves the weights.
        set_learning_rate(self.engine, 0.0)
        self.loss = loss
        self.chunks, self.random = 0, False

    def measure(self, number: int) -> float:
        """Run one forward and backward of the loop, with chunks small enough that there are several."""
        model = self.module.model
        host = self.parts.batches.host(model, number, self.ranks.rank, self.ranks.world_size)
        # A budget that takes a whole share would compare nothing.
        share = max(1, sum(self.ranks.gather(host.tokens)) // (CHUNKS * self.ranks.world_size))
        config = self.config.model_copy(update={"token_budget": min(self.config.chunk_tokens, share)})
        seed = seed_of(self.parts.config.seed, number, 0, self.ranks.rank)
        if number == 0:
            self._look(*(Chunks(host.encoded, model, config, self.ranks, s) for s in (seed, seed + 1)))
        step = Step(self.engine, model, self.loss, config, self.ranks)
        return float(step.forward_backward(host, _step(self.parts.config, number), seed=seed).loss)

    def _look(self, chunks: Chunks, other_seed: Chunks) -> None:
        """Note how many chunks there are, and whether the seed changes them: whether dropout does anything."""
        self.chunks = len(chunks)
        if self.variant.dropout:
            with torch.no_grad():
                pair = [values(one.forward(self.engine, 0)) for one in (chunks, other_seed)]
            self.random = not _alike(*pair)

    def gradients(self) -> Iterator[tuple[str, Tensor | None]]:
        """The gradients averaged over the ranks, gathered one by one."""
        trained = ((name, p) for name, p in self.module.named_parameters() if p.requires_grad)
        yield from ((name, full_gradient(self.engine, parameter)) for name, parameter in trained)

    def clear(self) -> None:
        """Drop them by a step at learning rate 0."""
        self.engine.step()


def _alike(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Equal but for rounding: a device may sum in another order each time."""
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True) for a, b in zip(one, other, strict=True))


def _step(config: RunConfig, number: int) -> int:
    return number // config.train.gradient_accumulation_steps


def without_dropout(module: nn.Module) -> None:
    """Set every dropout of ``module`` to 0: torch's modules, and the rates that transformers keep as attributes."""
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        for name, value in list(vars(part).items()):
            if "drop" in name.lower() and isinstance(value, float):
                setattr(part, name, 0.0)
