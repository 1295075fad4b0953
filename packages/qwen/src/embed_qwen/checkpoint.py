"""Exports Qwen3-Embedding in its own layout; what was written is read back and compared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from embed_core.errors import CheckpointError
from embed_core.export.layout import submodule_state, write_directory, write_json
from embed_core.export.model_card import LOADERS, CardText, RunCard, write_card
from embed_core.protocols import Announce
from embed_qwen.build import weight_files
from embed_qwen.model import Qwen3EmbeddingModel


class Qwen3Checkpointer:
    """Exports :class:`~embed_qwen.model.Qwen3EmbeddingModel`."""

    def __init__(self, announce: Announce) -> None:
        self._announce = announce

    def export(self, model: nn.Module, state: Mapping[str, Tensor], directory: Path, card: RunCard) -> None:
        """See :meth:`embed_core.protocols.Checkpointer.export`.

        Raises CheckpointError for a model of another kind, where the written weights differ from the trained ones, and
        where steps were made but the weights are still those that training began with.
        """
        if not isinstance(model, Qwen3EmbeddingModel):
            raise CheckpointError(
                f"checkpoint kind 'qwen3-embedding' writes models of kind 'qwen3-embedding', not "
                f"{type(model).__name__}: use the `checkpoint.kind` of the model's own plugin, or 'transformers'"
            )
        write_directory(model, state, directory)
        _name_family(directory / "config.json")
        _check_written(submodule_state(model, model.encoder, state), directory)
        self._check_trained(model, directory, card)
        write_card(directory, card, _card_text(model, card))

    def _check_trained(self, model: Qwen3EmbeddingModel, directory: Path, card: RunCard) -> None:
        """Raises CheckpointError if every weight is still that which training began with."""
        if not card.steps or model.base is None:
            return
        base = dict(_files_by_weight(model.base))
        if not base:
            self._announce(f"{model.base} has no safetensors any more: whether the export differs from it is not known")
            return
        if not _differs(dict(_files_by_weight(directory)), base):
            raise CheckpointError(
                f"after {card.steps} steps every exported weight is still that of {str(model.base)!r}: nothing was "
                "trained; raise train.optimizer.learning_rate, or check that the weights are not frozen"
            )


def _name_family(path: Path) -> None:
    """Name the language model's architecture, by which servers know the family, as Qwen's own directories do. There too
    the weights have the decoder's names, and the tied head is not saved."""
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**config, "architectures": ["Qwen3ForCausalLM"]})


def _check_written(trained: Mapping[str, Tensor], directory: Path) -> None:
    """Raises CheckpointError unless every weight, read from the disk, equals the trained one to the bit."""
    files = dict(_files_by_weight(directory))
    odd = sorted(trained.keys() ^ files.keys())
    if not odd:
        odd = [name for name, value in trained.items() if not torch.equal(_read(files[name], name), value)]
    if odd:
        raise CheckpointError(
            f"{directory}: {len(odd)} exported weights are not those that were trained, {odd[0]!r} first: "
            "check the disk, and export again with --resume"
        )


def _differs(exported: Mapping[str, Path], base: Mapping[str, Path]) -> bool:
    """Whether any weight differs; reading ends at the first that does."""
    prefix = "model." if any(name.startswith("model.") for name in base) else ""
    for name, file in exported.items():
        origin = base.get(prefix + name)
        if origin is None or not torch.equal(_read(file, name).float(), _read(origin, prefix + name).float()):
            return True
    return False


def _files_by_weight(directory: Path) -> Iterator[tuple[str, Path]]:
    from safetensors import safe_open

    for file in weight_files(directory):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                yield name, file


def _read(file: Path, name: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        value: Tensor = tensors.get_tensor(name)
    return value


_SWIFT = """\
from swift.model import get_model_processor

model, tokenizer = get_model_processor("path/to/this/directory", task_type="embedding", model_type="qwen3_emb")
"""
_TRANSFORMERS = """\
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory", padding_side="left")
model = AutoModel.from_pretrained("path/to/this/directory")
states = model(**tokenizer([{query!r}, "a passage"], padding=True, return_tensors="pt")).last_hidden_state
vectors = torch.nn.functional.normalize(states[:, -1], dim=-1)
"""


def _card_text(model: Qwen3EmbeddingModel, card: RunCard) -> CardText:
    query = model.prompts.get("query", "") + "a question"
    return CardText(
        title=card.name,
        summary="A Qwen3-Embedding model: a decoder whose last token is the vector "
        "([Zhang et al. 2025](https://arxiv.org/abs/2506.05176)), trained with "
        "[embed](https://pypi.org/project/embed-core/).",
        tags=("feature-extraction", "sentence-similarity", "qwen3"),
        loaders=dict(LOADERS) | {"transformers": _TRANSFORMERS.format(query=query), "ms-swift": _SWIFT},
        notes=("Queries carry an instruction, passages are bare; every text ends with `<|endoftext|>`.",)
        if model.prompts
        else ("Every text ends with `<|endoftext|>`.",),
    )
