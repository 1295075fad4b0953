"""Exports BGE-M3: a transformers directory, sentence-transformers' module files, and the two heads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from embed_bge.build import FACTS_FILE, HEADS
from embed_bge.model import BGEM3Model
from embed_core.errors import CheckpointError
from embed_core.export.layout import submodule_state, write_directory, write_json
from embed_core.export.model_card import LOADERS, CardText, RunCard, write_card


class BGEM3Checkpointer:
    """Exports :class:`~embed_bge.model.BGEM3Model`."""

    def export(self, model: nn.Module, state: Mapping[str, Tensor], directory: Path, card: RunCard) -> None:
        """See :meth:`embed_core.protocols.Checkpointer.export`. Raises CheckpointError for a model of another kind."""
        if not isinstance(model, BGEM3Model):
            raise CheckpointError(
                f"checkpoint kind 'bge-m3' writes models of kind 'bge-m3', not {type(model).__name__}: "
                "use the `checkpoint.kind` of the model's own plugin, or 'transformers'"
            )
        write_directory(model, state, directory)
        for name in HEADS if model.config.unified_finetuning else ():
            head = submodule_state(model, model.get_submodule(name), state)
            torch.save({key: tensor.clone() for key, tensor in head.items()}, directory / f"{name}.pt")
        write_json(directory / FACTS_FILE, _facts(model))
        write_card(directory, card, _card_text(model, card))


def _facts(model: BGEM3Model) -> dict[str, object]:
    keys = (
        "unified_finetuning",
        "sentence_pooling_method",
        "normalize_embeddings",
        "query_max_len",
        "passage_max_len",
        "query_instruction_for_retrieval",
        "query_instruction_format",
        "passage_instruction_for_retrieval",
        "passage_instruction_format",
    )
    return {"colbert_dim": model.colbert_dim} | {key: getattr(model.config, key) for key in keys}


def _card_text(model: BGEM3Model, card: RunCard) -> CardText:
    notes = []
    if not model.config.unified_finetuning:
        notes.append("Dense vectors only: the lexical and multi-vector heads that BGEM3FlagModel offers are random.")
    unsaid = [
        role for role in ("query", "passage") if _instruction(model, role) and not _prefix_is_exported(model, role)
    ]
    notes += [
        f"The {role} instruction is no prefix (format `{getattr(model.config, f'{role}_instruction_format')!r}`): "
        "sentence-transformers cannot add it, apply it to the text yourself."
        for role in unsaid
    ]
    return CardText(
        title=card.name,
        summary="A BGE-M3 model: one encoder with dense, lexical and multi-vector retrieval "
        "([Chen et al. 2024](https://arxiv.org/abs/2402.03216)), trained with "
        "[embed](https://pypi.org/project/embed-core/).",
        tags=("feature-extraction", "sentence-similarity", "bge-m3"),
        loaders={"FlagEmbedding": _flag_embedding_code(model)} | dict(LOADERS),
        notes=tuple(notes),
    )


def _instruction(model: BGEM3Model, role: str) -> object:
    return getattr(model.config, f"{role}_instruction_for_retrieval")


def _prefix_is_exported(model: BGEM3Model, role: str) -> bool:
    return ("document" if role == "passage" else role) in model.prompts


def _flag_embedding_code(model: BGEM3Model) -> str:
    """How to load the directory with FlagEmbedding, with every argument that differs from its defaults."""
    arguments: dict[str, object] = {"use_fp16": False}
    if model.colbert_dim not in (None, int(model.encoder.config.hidden_size)):
        arguments["colbert_dim"] = model.colbert_dim
    if model.pooling != "cls":
        arguments["pooling_method"] = model.pooling
    if not model.normalize:
        arguments["normalize_embeddings"] = False
    if model.config.query_instruction_for_retrieval:
        arguments["query_instruction_for_retrieval"] = model.config.query_instruction_for_retrieval
        arguments["query_instruction_format"] = model.config.query_instruction_format
    listed = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    heads = model.config.unified_finetuning
    return f"""\
from FlagEmbedding import BGEM3FlagModel

model = BGEM3FlagModel("path/to/this/directory", {listed})
out = model.encode(["a passage"], return_dense=True, return_sparse={heads}, return_colbert_vecs={heads})
print(out["dense_vecs"].shape{', out["lexical_weights"][0], out["colbert_vecs"][0].shape' if heads else ""})
"""
