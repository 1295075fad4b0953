"""Exports and loads the layout of a finished model: ``model.safetensors``, ``config.json``, ``README.md``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from embed_core.errors import CheckpointError
from embed_core.export.model_card import RunCard
from embed_hello.model import NgramEncoder, Sizes

LAYOUT = "hello-1"


class HelloCheckpointer:
    """Writes the layout."""

    def export(self, model: nn.Module, state: Mapping[str, Tensor], directory: Path, card: RunCard) -> None:
        """Write the files. Under ZeRO-3 the weights inside ``model`` are empty, so they are read from ``state``."""
        assert isinstance(model, NgramEncoder), f"the checkpoint kind 'hello' writes 'hello' models, not {type(model)}"
        config = {"layout": LAYOUT, "sizes": asdict(model.sizes), "max_characters": model.max_characters}
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file({name: value.contiguous() for name, value in state.items()}, directory / "model.safetensors")
        (directory / "README.md").write_text(_card(card), encoding="utf-8")


def load(path: str | Path, max_characters: int | None = None, **sizes: int) -> NgramEncoder:
    """Load the model exported to ``path``.

    ``max_characters`` overrides the exported one; ``sizes`` are only checked. Raises CheckpointError where the
    directory holds no such export, or one of other sizes.
    """
    directory = Path(path).expanduser()
    config = _read_config(directory)
    for name, asked in sizes.items():
        if config["sizes"].get(name) != asked:
            raise CheckpointError(
                f"{directory / 'config.json'}: {name} is {config['sizes'].get(name)}, not {asked}: "
                f"leave model.{name} out to take the directory's"
            )
    model = NgramEncoder(Sizes(**config["sizes"]), max_characters or config["max_characters"], seed=0)
    weights = directory / "model.safetensors"
    try:
        model.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        cause = str(error).splitlines()[0]
        raise CheckpointError(f"{weights}: cannot be loaded ({cause}): export the model again") from error
    return model


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({type(error).__name__}): name a directory that `embed run --plugin hello` "
            "exported to, or from-scratch"
        ) from error
    if not isinstance(config, dict) or config.get("layout") != LAYOUT:
        raise CheckpointError(
            f"{path}: is no model of layout {LAYOUT!r}: name a directory that embed-hello exported to"
        )
    return config


def _card(card: RunCard) -> str:
    table = [
        f"| {step} | {metric} | {value:.4f} |"
        for step, metrics in sorted(card.evaluations.items())
        for metric, value in sorted(metrics.items())
    ]
    lines = [
        f"# {card.name}",
        "",
        f"Hashed character n-grams, from {card.base_model}, {card.steps} steps on {card.data.get('name', 'own data')}.",
        "",
        "    from embed_hello.checkpoint import load",
        "    model = load('this directory')",
        "",
        f"Trained with `{card.command}`.",
    ]
    return "\n".join([*lines, "", "| step | metric | value |", "|---|---|---|", *table] if table else lines) + "\n"
