"""Writes a transformers directory with sentence-transformers' module files beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, get_type_hints

from torch import Tensor, nn

from embed_core.errors import CheckpointError
from embed_core.text.pooling import SENTENCE_TRANSFORMERS_NAMES, Pooling
from embed_core.utils.logging import quiet_transformers


class TransformersModel(Protocol):
    """What a model must have for the ``transformers`` checkpoint layout."""

    encoder: Any
    """A ``PreTrainedModel`` inside the model."""
    tokenizer: Any
    """A transformers tokenizer."""
    pooling: Pooling
    normalize: bool
    """Whether the dense vector leaves with unit length."""
    max_length: int
    """Tokens, special ones included, at which clients truncate."""
    prompts: Mapping[str, str]
    """Prefixes by sentence-transformers' prompt names, ``query`` and ``document``; none where there is no prompt."""


def check_exportable(model: nn.Module) -> None:
    """Raises CheckpointError naming what ``model`` lacks for this layout."""
    lacking = [name for name in get_type_hints(TransformersModel) if not hasattr(model, name)]
    if lacking:
        raise CheckpointError(
            f"the transformers checkpoint layout needs a model with {', '.join(lacking)}, which "
            f"{type(model).__name__} lacks: use the `checkpoint.kind` of the model's own plugin"
        )


def write_directory(model: Any, state: Mapping[str, Tensor], directory: Path) -> None:
    """Write config, safetensors, tokenizer and module files of ``model``; the weights come from ``state`` alone."""
    write_encoder(model, state, directory)
    write_tokenizer(model.tokenizer, directory)
    write_modules(model, int(model.encoder.config.hidden_size), directory)


def write_encoder(model: Any, state: Mapping[str, Tensor], directory: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` with the encoder's bare keys, in fp32."""
    encoder = model.encoder
    weights = submodule_state(model, encoder, state)
    with quiet_transformers():
        encoder.save_pretrained(directory, state_dict=weights)
    # save_pretrained notes the dtype of the (perhaps bf16) training weights; those on disk are the fp32 master's.
    path = directory / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    write_json(path, {**config, "dtype": "float32"})


def write_tokenizer(tokenizer: Any, directory: Path) -> None:
    """Write the tokenizer's files, under a class name that transformers 4 knows too."""
    with quiet_transformers():
        tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":  # version 5's name of the generic fast tokenizer
        write_json(path, {**config, "tokenizer_class": "PreTrainedTokenizerFast"})


def submodule_state(model: nn.Module, part: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of ``state`` that belong to ``part`` of ``model``, by the names ``part.state_dict()`` gives them.

    Buffers that are not saved (position ids) are left out. Raises CheckpointError for a weight that is not there.
    """
    prefix = next(name for name, module in model.named_modules() if module is part)
    picked: dict[str, Tensor] = {}
    for name in part.state_dict():
        full = f"{prefix}.{name}" if prefix else name
        if full not in state:
            raise CheckpointError(f"the weights to export lack {full!r}: the training state is incomplete")
        picked[name] = state[full].detach().float().contiguous()
    return picked


def write_modules(model: TransformersModel, width: int, directory: Path) -> None:
    """Write the files without which ``SentenceTransformer(directory)`` falls back to mean pooling."""
    modules = ["Transformer", "Pooling"] + (["Normalize"] if model.normalize else [])
    entries = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{name}" if index else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for index, name in enumerate(modules)
    ]
    write_json(directory / "modules.json", entries)
    for entry in entries[1:]:
        (directory / str(entry["path"])).mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": width} | {
        f"pooling_mode_{name}": method == model.pooling for method, name in SENTENCE_TRANSFORMERS_NAMES.items()
    }
    pooling |= {
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": False,
        "include_prompt": True,
    }
    write_json(directory / "1_Pooling" / "config.json", pooling)
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": model.max_length, "do_lower_case": False})
    write_json(
        directory / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "prompts": {"query": "", "document": ""} | dict(model.prompts),
            "default_prompt_name": None,
            "similarity_fn_name": "cosine" if model.normalize else "dot",
        },
    )


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented UTF-8 JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
