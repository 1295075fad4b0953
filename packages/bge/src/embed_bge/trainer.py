"""The Python API with the names that FlagEmbedding's users know."""

from __future__ import annotations

from typing import Any, ClassVar

from embed_bge.config import BGEM3ModelConfig
from embed_bge.model import BGEM3Model
from embed_bge.recipe import BGERecipe
from embed_core.api import BaseRetrieverTrainer


class BGETrainer(BaseRetrieverTrainer):
    """Fine-tunes a BGE-M3 model from Python: ``BGETrainer(config=BGETrainerConfig(...)).train()``.

    The same run as ``embed run --plugin bge``: the config is the recipe of that name. A :class:`BGEM3Model` that is
    passed takes over what the config sets explicitly (maximum lengths, instructions, pooling, ``fix_encoder``) and
    keeps its own options otherwise; its weights stay as they are.
    """

    plugin: ClassVar[str] = "bge"
    recipe_class: ClassVar[type[BGERecipe]] = BGERecipe

    def __init__(
        self, model: Any = None, tokenizer: Any = None, train_dataset: Any = None, config: Any = None, **options: Any
    ) -> None:
        super().__init__(model, tokenizer, train_dataset, config, **options)
        if not isinstance(model, BGEM3Model):
            return
        if "model_name_or_path" not in self.config.model_fields_set:
            # Defaults such as the learning rate are those of the model that is trained.
            self.config = self.config.model_copy(update={"model_name_or_path": model.config.name_or_path})
        model.configure(_merged(model.config, self.config), tokenizer)


def _merged(own: BGEM3ModelConfig, recipe: Any) -> BGEM3ModelConfig:
    """The model's own options with those that the recipe sets; the recipe's loss decides on the heads."""
    shared = set(BGEM3ModelConfig.model_fields) & recipe.model_fields_set
    given = {key: getattr(recipe, key) for key in shared if getattr(recipe, key) is not None}
    chosen = {**own.model_dump(), "unified_finetuning": recipe.unified_finetuning, **given, **recipe.model}
    return BGEM3ModelConfig.model_validate({**chosen, "name_or_path": own.name_or_path})
