"""Trains the recipe from Python."""

from __future__ import annotations

from typing import Any, ClassVar

from embed_core.api import BaseRetrieverTrainer
from embed_core.errors import ConfigError
from embed_sbert.recipe import SbertRecipe


class SbertTrainer(BaseRetrieverTrainer):
    """Trains a sentence-transformers model from Python: ``SbertTrainer(config=SbertRecipe(model_id=...)).train()``.

    The same run as ``embed run --plugin sbert``. Raises ConfigError for a tokenizer: a model's modules have their own.
    """

    plugin: ClassVar[str] = "sbert"
    recipe_class: ClassVar[type[SbertRecipe]] = SbertRecipe

    def __init__(
        self, model: Any = None, tokenizer: Any = None, train_dataset: Any = None, config: Any = None, **options: Any
    ) -> None:
        if tokenizer is not None:
            raise ConfigError("tokenizer: the modules of a SentenceTransformer have their own: save the model with it")
        super().__init__(model, None, train_dataset, config, **options)
