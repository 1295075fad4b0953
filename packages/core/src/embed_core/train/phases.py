"""The phases of a run: builds what each trains on, and passes the weights from one to the next.

A phase builds a new model and a new engine, and loads the weights of the phase before. So no hooks and shards of the
old DeepSpeed engine are left in the model, at any stage.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from embed_core.config.context import BuildContext
from embed_core.config.run import RunConfig
from embed_core.distributed.process_group import Ranks
from embed_core.errors import ConfigError
from embed_core.protocols import Dataset, Model, Sampler
from embed_core.train.build import seed_everything
from embed_core.train.output_dir import OutputDir
from embed_core.train.trainer import Pace


class Phases:
    """The phases of ``config``, whose `auto` values are chosen; a run without phases has one, without a name."""

    def __init__(self, config: RunConfig, context: BuildContext, outputs: OutputDir) -> None:
        self.configs = [config.in_phase(number) for number in range(max(1, len(config.phases)))]
        self.names = [phase.name for phase in config.phases] or [""]
        self.context, self.outputs = context, outputs
        self._own_data = [phase.data is not None for phase in config.phases] or [False]
        self._built: dict[int, tuple[Dataset, Sampler]] = {}
        self._steps: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.configs)

    def check(self, world_size: int) -> None:
        """Raises ConfigError where a phase has fewer rows a batch than there are ranks."""
        for config in self.configs:
            if config.sampler.batch_size < world_size:
                raise ConfigError(
                    f"sampler.batch_size: {config.sampler.batch_size} rows cannot be shared by "
                    f"{world_size} ranks: use at least one row per rank"
                )

    def build_ahead(self, first: int) -> None:
        """Build the data of the phases from ``first`` on, so that a missing file shows now. Data that is
        made with the model of the phases before is left for later."""
        for number in range(first, len(self)):
            if not self.configs[number].data.waits():
                self._build(number)

    def data(self, number: int) -> tuple[Dataset, Sampler]:
        """The dataset and the sampler of a phase, built now where they were not built ahead."""
        if number not in self._built:
            self._build(number)
        return self._built[number]

    def context_of(self, number: int) -> BuildContext:
        """The build context of a phase. All phases share the run's dataset."""
        name = self.names[number]
        folder = self.outputs.phase(name) if name else None
        self.context.dataset()
        return replace(self.context, phase=name, phase_dir=folder)

    def total_steps(self, before: int, number: int) -> int:
        """All steps of the run, of which ``before`` come before phase ``number``. A phase that cannot be built yet
        counts as if it had as many rows as the run's own dataset."""
        later = range(number, len(self))
        return before + sum(self._steps[n] if n in self._steps else self._expected(n) for n in later)

    def _expected(self, number: int) -> int:
        train, rows = self.configs[number].train, len(self.context.dataset())
        draws = rows // self.configs[number].sampler.batch_size
        return train.max_steps or max(1, int(train.epochs * draws / train.gradient_accumulation_steps))

    def _build(self, number: int) -> None:
        config, context = self.configs[number], self.context_of(number)
        dataset = config.data.build(context) if self._own_data[number] else self.context.dataset()
        sampler = config.sampler.build(context, dataset)
        self._built[number] = (dataset, sampler)
        self._steps[number] = Pace.of(config, sampler).total_steps


class PhaseModels:
    """Builds the model of each phase."""

    def __init__(self, configs: Sequence[RunConfig], given: Model | None) -> None:
        """``configs`` are the phases'. ``given`` is a model that the caller built, in place of theirs. It serves the
        last phase itself, so that the caller has the trained model in hand."""
        self.configs, self.given = configs, given

    def build(self, context: BuildContext, number: int) -> Model:
        """Build the model of phase ``number`` with the weights that it has at the start of a run."""
        if self.given is None:
            seed_everything(self.configs[number].seed)
            return self.configs[number].model.build(context)
        return self.given if number == len(self.configs) - 1 else copy.deepcopy(self.given)


def load_weights(model: nn.Module, state: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Load rank 0's ``state`` (:func:`embed_core.zero.state.full_state`) into every rank's ``model``, on CPU.

    Raises ConfigError, on every rank, where the model of a phase has other weights than that of the phase before.
    """
    persistent = model.state_dict(keep_vars=True)
    names: dict[str, Tensor] = dict(model.named_parameters())
    names |= {name: value for name, value in model.named_buffers() if name in persistent}
    if ranks.rank == 0:
        other = next((name for name, t in names.items() if name not in state or state[name].shape != t.shape), None)
    if (name := ranks.broadcast(other if ranks.rank == 0 else None)) is not None:
        raise ConfigError(
            f"phases: the model of a phase has another {name} than that of the phase before: `model` of a phase says "
            "how texts are read (lengths, prompts); leave out what changes its weights"
        )
    with torch.no_grad():
        for name, target in names.items():
            value = state[name].to(target.dtype) if ranks.rank == 0 else torch.empty_like(target)
            target.copy_(_broadcast(value, ranks))


def _broadcast(value: Tensor, ranks: Ranks) -> Tensor:
    if ranks.world_size == 1:
        return value
    import torch.distributed as dist

    moved = value.to(ranks.device).contiguous()
    dist.broadcast(moved, src=0)
    return moved.to("cpu")


def free_engine(destroy: Callable[[], Any]) -> None:
    """Free the memory of an engine that is no longer used."""
    destroy()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
