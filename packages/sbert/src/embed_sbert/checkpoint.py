"""A plain sentence-transformers directory, written by sentence-transformers itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from embed_core.errors import CheckpointError
from embed_core.export.layout import write_json, write_tokenizer
from embed_core.export.model_card import LOADERS, CardText, RunCard, write_card
from embed_core.utils.logging import quiet_transformers
from embed_sbert.build import LOGGER
from embed_sbert.model import SentenceTransformersModel


class SentenceTransformersCheckpointer:
    """Exports :class:`~embed_sbert.model.SentenceTransformersModel`."""

    def export(self, model: nn.Module, state: Mapping[str, Tensor], directory: Path, card: RunCard) -> None:
        """See :meth:`embed_core.protocols.Checkpointer.export`. Raises CheckpointError for a model of another kind."""
        if not isinstance(model, SentenceTransformersModel):
            raise CheckpointError(
                f"checkpoint kind 'sentence-transformers' writes models of that kind, not {type(model).__name__}: "
                "use the `checkpoint.kind` of the model's own plugin, or 'transformers'"
            )
        filled = model.filled(state)
        with quiet_transformers(LOGGER):
            filled.save(str(directory), create_model_card=False)
        _for_transformers(model, directory)
        write_card(directory, card, _card_text(model, card, directory))


def _for_transformers(model: SentenceTransformersModel, directory: Path) -> None:
    """The dtype of the weights on disk, and a tokenizer class that transformers 4 knows too."""
    path = directory / "config.json"
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
        if "model_type" in config:
            config.pop("torch_dtype", None)
            write_json(path, {**config, "dtype": "float32"})
    if (directory / "tokenizer_config.json").is_file() and model.tokenizer is not None:
        write_tokenizer(model.tokenizer, directory)


def _card_text(model: SentenceTransformersModel, card: RunCard, directory: Path) -> CardText:
    built: Any = model.sentence_transformer
    chain = " → ".join(type(module).__name__ for module in built)
    notes = [f"Modules: {chain}. Similarity: {built.similarity_fn_name}."]
    if built.max_seq_length not in (None, float("inf")):
        notes[0] += f" Texts are cut at {built.max_seq_length} tokens."
    named = [name for name, prompt in built.prompts.items() if prompt]
    if named:
        notes.append(f"Prompts: {', '.join(f'`{name}`' for name in named)}.")
    loaders = {"sentence-transformers": _loader(built)}
    if (directory / "config.json").is_file() and "Transformer" in chain:
        loaders["transformers"] = LOADERS["transformers"]
    return CardText(
        title=card.name,
        summary="A [sentence-transformers](https://sbert.net) model trained with "
        "[embed](https://pypi.org/project/embed-core/).",
        loaders=loaders,
        notes=tuple(notes),
    )


def _loader(built: Any) -> str:
    code = 'model = SentenceTransformer("path/to/this/directory"'
    if built.trust_remote_code:
        code += ", trust_remote_code=True"
    return f"""\
from sentence_transformers import SentenceTransformer

{code})
queries = model.encode_query(["a question"])
passages = model.encode_document(["a passage", "another one"])
print(model.similarity(queries, passages))
"""
