"""The Python API: Qwen3-Embedding fine-tuned from a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ValidationError

from embed_core.api import BaseRetrieverTrainer
from embed_core.errors import ConfigError, did_you_mean
from embed_core.protocols import Announce
from embed_qwen.recipe import QwenRecipe

DEFAULT_MODEL = "Qwen/Qwen3-Embedding-0.6B"


class QwenTrainer(BaseRetrieverTrainer):
    """Fine-tunes Qwen3-Embedding: ``QwenTrainer(config=QwenTrainerConfig(...)).train()``.

    The same run as ``embed run --plugin qwen``: the config is the recipe of that name.
    """

    plugin: ClassVar[str] = "qwen"
    recipe_class: ClassVar[type[QwenRecipe]] = QwenRecipe


def create_qwen_trainer(
    dataset_paths: Sequence[str | Path] | str | Path,
    output_dir: str | Path | None = None,
    model_name_or_path: str = DEFAULT_MODEL,
    *,
    overrides: Mapping[str, Any] | None = None,
    observers: Sequence[Any] = (),
    announce: Announce = print,
    **keys: Any,
) -> QwenTrainer:
    """A trainer over files of ms-swift's or FlagEmbedding's rows; ``.train()`` runs it.

    ``keys`` are those of the recipe: ``learning_rate=6e-6``, ``num_train_epochs=10``, ``per_device_train_batch_size``,
    ``gradient_accumulation_steps``, ``tuner_type="lora"``, ``curriculum=True``. ``overrides`` is laid over the compiled
    run, ``observers`` and ``announce`` are as of :class:`embed_core.api.BaseRetrieverTrainer`. Raises ConfigError for a
    key that is none, or a value that does not fit.
    """
    paths = [dataset_paths] if isinstance(dataset_paths, (str, Path)) else dataset_paths
    given: dict[str, Any] = {"dataset_paths": tuple(map(str, paths)), "model_name_or_path": model_name_or_path, **keys}
    if output_dir is not None:
        given["output_dir"] = Path(output_dir)
    from embed_core.plugin.manager import activate

    try:
        # Stages may name components, which are looked up in the registry.
        config = QwenRecipe.model_validate(given, context={"registry": activate(["qwen"])[1]})
    except ValidationError as error:
        raise ConfigError(f"create_qwen_trainer: {_fault(error)}") from None
    return QwenTrainer(config=config, overrides=overrides, observers=observers, announce=announce)


def _fault(error: ValidationError) -> str:
    """The first fault as one line."""
    fault = error.errors(include_url=False)[0]
    key = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        return f"unknown key {key!r}: {did_you_mean(key, QwenRecipe.model_fields)}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not key or fault["type"] == "value_error":
        return message
    return f"{key}: {message[:1].lower()}{message[1:]}, got {fault['input']!r}"
