"""The Python API with the names that FlagEmbedding's users know."""

from __future__ import annotations

from typing import ClassVar

from embed_core.api import BaseRetrieverTrainer

from embed_bge.recipe import BGERecipe


class BGETrainer(BaseRetrieverTrainer):
    """Fine-tunes a BGE-M3 model from Python: ``BGETrainer(BGETrainerConfig(...)).train()``.

    The same run as ``embed run --plugin bge``: the config is the recipe of that name. A model, a tokenizer or a
    dataset that is passed takes the place of the one that the config names.
    """

    plugin: ClassVar[str] = "bge"
    recipe_class: ClassVar[type[BGERecipe]] = BGERecipe
