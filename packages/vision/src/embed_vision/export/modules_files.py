"""Writes the files by which sentence-transformers loads a directory: its modules and their settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from embed_core.export.layout import write_json

TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
NORMALIZE = "sentence_transformers.base.modules.normalize.Normalize"
DENSE = "sentence_transformers.base.modules.dense.Dense"
ROUTER = "sentence_transformers.base.modules.router.Router"
POOLING = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"


def write_transformer_module(
    folder: Path, modalities: Mapping[str, Any], output: str, processing: Mapping[str, Any]
) -> None:
    """Write how sentence-transformers' Transformer module calls the model and the processor, by modality."""
    facts: dict[str, Any] = {
        "transformer_task": "feature-extraction",
        "modality_config": modalities,
        "module_output_name": output,
    }
    write_json(folder / "sentence_bert_config.json", facts | ({"processing_kwargs": processing} if processing else {}))


def write_modules(directory: Path, modules: list[tuple[str, str]]) -> None:
    """Write ``modules.json`` from (folder, class) pairs; the last has to be Normalize."""
    entries = [
        {"idx": index, "name": str(index), "path": path, "type": kind} for index, (path, kind) in enumerate(modules)
    ]
    write_json(directory / "modules.json", entries)
    (directory / modules[-1][0]).mkdir()  # Normalize has an empty folder


def write_pooling(folder: Path, width: int, mode: str) -> None:
    """Write a Pooling module over states of ``width``."""
    folder.mkdir()
    write_json(folder / "config.json", {"embedding_dimension": width, "pooling_mode": mode, "include_prompt": True})


def write_dense(folder: Path, weight_DH: Tensor) -> None:
    """Write a Dense module: a linear layer without bias."""
    from safetensors.torch import save_file

    folder.mkdir()
    write_json(
        folder / "config.json",
        {
            "in_features": weight_DH.shape[1],
            "out_features": weight_DH.shape[0],
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    save_file({"linear.weight": weight_DH}, str(folder / "model.safetensors"), metadata={"format": "pt"})
