"""Exports the model that a phase or a run leaves, with a card of the run's facts."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from embed_core.config.resolve import plain
from embed_core.config.run import RunConfig
from embed_core.distributed.process_group import Ranks
from embed_core.export.model_card import RunCard
from embed_core.protocols import Checkpointer, ExportsOtherwise, provides
from embed_core.train.checkpoint import TrainState
from embed_core.train.output_dir import replace_directory
from embed_core.train.trainer import Components, Trainer
from embed_core.zero.state import full_state


def export_model(
    trainer: Trainer, checkpointer: Checkpointer, config: RunConfig, command: str, ranks: Ranks, target: Path
) -> Path:
    """Write the trained model to the directory ``target``, on rank 0, in one piece. A collective; returns ``target``.

    ``config`` and ``command`` are the run's, for the model's card.
    """
    model: Any = trainer.parts.model
    loss: Any = trainer.parts.loss
    state = full_state(trainer.engine, model, ranks)
    loss_state = full_state(trainer.engine, loss, ranks) if isinstance(loss, nn.Module) else {}

    def write() -> Path:
        temporary = target.with_name(f".{target.name}.tmp")
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)
        card = run_card(config, trainer.parts, trainer.state, command, loss_state)
        if provides(model, ExportsOtherwise):
            model.export_with(checkpointer, state, temporary, card)
        else:
            checkpointer.export(model, state, temporary, card)
        replace_directory(temporary, target)
        return target

    return ranks.on_rank_0(write)


def run_card(
    config: RunConfig, parts: Components, state: TrainState, command: str, loss_state: Mapping[str, Tensor]
) -> RunCard:
    """The facts of a run that its model's card is written from."""
    written, dataset = plain(config), parts.dataset
    return RunCard(
        name=config.name,
        base_model=str(written["model"].get("name_or_path", written["model"]["kind"])),
        config=written,
        data={"name": dataset.name, "rows": len(dataset), "fingerprint": dataset.fingerprint()},
        evaluations=state.evaluations,
        command=command,
        steps=state.step,
        versions=versions(),
        loss_state=loss_state,
    )


@cache
def versions() -> dict[str, str]:
    """Versions of Python, of embed-core and of the libraries that compute."""
    found = {"python": sys.version.split()[0]}
    for package in ("embed-core", "torch", "transformers", "deepspeed"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
