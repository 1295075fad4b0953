"""`check_checkpointer` passes an honest exporter and catches each broken promise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from embed_core.export.model_card import RunCard
from embed_core.testing import check_checkpointer
from embed_core.types import Embeddings, Encoded, ScoreWeights

torch.set_num_threads(1)
ITEMS = ["a", "some words", "other words"]


class Lengths(nn.Module):
    """Embeds a text by its length."""

    scores: Mapping[str, ScoreWeights] = {"dense": {"dense": 1.0}}

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.linear = nn.Linear(1, 4)

    def tokenize(self, items: Sequence[str], role: str, prompts: Sequence[str | None]) -> list[Encoded]:
        return [Encoded(bytes([len(text)]), 1, {"length": len(text)}) for text in items]

    def collate(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        return {"lengths_N1": torch.tensor([[float(one.data["length"])] for one in encoded])}

    def forward(self, lengths_N1: Tensor) -> Embeddings:
        return Embeddings(dense_ND=self.linear(lengths_N1))


class Exporter:
    def export(self, model: nn.Module, state: Mapping[str, Tensor], directory: Path, card: RunCard) -> None:
        save_file(dict(state), directory / "model.safetensors")
        (directory / "README.md").write_text(card.name)


def load(directory: Path) -> Lengths:
    model = Lengths(seed=1)
    model.load_state_dict(load_file(directory / "model.safetensors"))
    return model


def test_honest_exporter_passes(tmp_path: Path) -> None:
    check_checkpointer(Exporter(), Lengths(), load, ITEMS, tmp_path / "export")


class ReadsTheModel(Exporter):
    def export(self, model: nn.Module, state: Mapping[str, Tensor], directory: Path, card: RunCard) -> None:
        super().export(model, {name: value.clone() for name, value in model.state_dict().items()}, directory, card)


class NoCard(Exporter):
    def export(self, model: nn.Module, state: Mapping[str, Tensor], directory: Path, card: RunCard) -> None:
        super().export(model, state, directory, card)
        (directory / "README.md").unlink()


class Pickles(Exporter):
    def export(self, model: nn.Module, state: Mapping[str, Tensor], directory: Path, card: RunCard) -> None:
        torch.save(dict(state), directory / "model.bin")
        (directory / "README.md").write_text(card.name)


class Rounds(Exporter):
    def export(self, model: nn.Module, state: Mapping[str, Tensor], directory: Path, card: RunCard) -> None:
        super().export(model, {name: value.bfloat16().float() for name, value in state.items()}, directory, card)


class InPlace(Exporter):
    def export(self, model: nn.Module, state: Mapping[str, Tensor], directory: Path, card: RunCard) -> None:
        super().export(model, state, directory, card)
        next(iter(state.values())).zero_()


@pytest.mark.parametrize(
    ("exporter", "error", "message"),
    [
        (ReadsTheModel, RuntimeError, "size mismatch"),
        (NoCard, AssertionError, "no model card README.md"),
        (Pickles, AssertionError, "no safetensors among"),
        (Rounds, AssertionError, "query 0, before the export and after loading: dense differs"),
        (InPlace, AssertionError, "export changed the weights linear.weight in place"),
    ],
)
def test_broken_promise_is_named(exporter: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        check_checkpointer(exporter(), Lengths(), load, ITEMS, tmp_path / "export")


def test_reader_that_ignores_the_weights_is_caught(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="dense differs"):
        check_checkpointer(Exporter(), Lengths(), lambda _: Lengths(seed=2), ITEMS, tmp_path / "export")
