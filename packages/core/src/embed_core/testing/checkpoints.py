"""Checks what :class:`embed_core.protocols.Checkpointer` promises."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embed_core.export.model_card import RunCard
from embed_core.protocols import Checkpointer, Model
from embed_core.testing.models import assert_same_text, encode, text_vectors
from embed_core.types import Item, Role


def check_checkpointer(
    checkpointer: Checkpointer,
    model: Model,
    load: Callable[[Path], Model],
    items: Sequence[Item],
    directory: Path,
    *,
    tolerance: float = 1e-6,
) -> None:
    """Assert that a model exported into ``directory`` (empty) comes back from ``load`` with the same embeddings.

    Checked: the weights are taken from ``state`` and not from the model, which is empty under ZeRO-3; they leave as
    safetensors; there is a model card; the model in memory is left alone; the loaded one embeds ``items`` alike
    within ``tolerance`` (absolute, fp32), as query and as passage.

    Raises AssertionError.
    """
    module: Any = model
    state = {name: value.detach().cpu().float().clone() for name, value in _full_state(module).items()}
    roles: tuple[Role, Role] = ("query", "passage")
    expected = {role: encode(model, items, role) for role in roles}
    directory.mkdir(parents=True, exist_ok=True)
    kept = {name: value.clone() for name, value in state.items()}
    checkpointer.export(_emptied(module), state, directory, sample_card())
    for name, value in state.items():
        assert torch.equal(value, kept[name]), f"export changed the weights {name} in place"
    written = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    assert any(name.endswith(".safetensors") for name in written), f"no safetensors among {written}"
    assert "README.md" in written, f"no model card README.md among {written}"
    loaded = load(directory)
    for role, embeddings in expected.items():
        got = encode(loaded, items, role)
        assert got.count == len(items), f"the loaded model gave {got.count} embeddings for {len(items)} items"
        for index in range(len(items)):
            context = f"{role} {index}, before the export and after loading"
            assert_same_text(text_vectors(embeddings, index), text_vectors(got, index), tolerance, context)


def sample_card(name: str = "sample") -> RunCard:
    """The facts of an invented run."""
    return RunCard(
        name=name,
        base_model="from-scratch",
        config={"name": name, "model": {"kind": "sample"}},
        data={"name": "animals", "rows": 36, "fingerprint": "0" * 32},
        evaluations={0: {"held-out/dense/nDCG@10": 0.25}, 8: {"held-out/dense/nDCG@10": 0.5}},
        command="embed run --plugin sample",
        steps=8,
        versions={"embed": "0.1.0", "torch": torch.__version__},
    )


def _full_state(module: Any) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _emptied(module: Any) -> Any:
    """A copy whose parameters hold nothing, as ZeRO-3 leaves them between two forwards."""
    hollow = copy.deepcopy(module)
    for parameter in hollow.parameters():
        parameter.data = torch.empty(0, dtype=parameter.dtype)
    return hollow
