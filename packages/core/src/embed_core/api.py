"""The Python API: the run that ``embed run`` starts, from a recipe object and parts built by the caller."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from embed_core.config.document import Document, lay_over
from embed_core.config.recipe import Recipe
from embed_core.config.resolve import Request, resolve
from embed_core.config.run import RunConfig
from embed_core.distributed.process_group import environment
from embed_core.errors import ConfigError, DataError
from embed_core.observers.progress import ProgressLines
from embed_core.plugin.manager import activate
from embed_core.protocols import Announce, Dataset
from embed_core.train.run import Options, RunResult, run


class BaseRetrieverTrainer:
    """Trains what a recipe describes: ``Trainer(config=...).train()``. Plugins subclass it with their recipe.

    ``model`` (an :class:`embed_core.protocols.Model`), ``tokenizer`` (takes the place of the model's own) and
    ``train_dataset`` (a :class:`~embed_core.protocols.Dataset`, or a sequence of FlagEmbedding rows such as a list of
    dicts or a ``datasets.Dataset``) take the place of what the config names. ``overrides`` is laid over the compiled
    run, as ``--set`` is: ``{"engine": {"zero_stage": 2}}``. Under torchrun or the deepspeed launcher every rank runs
    the same program. Progress, results and notices go to ``announce``, line by line; ``observers`` implement the hooks
    ``embed_step_ended`` and ``embed_run_ended``. Raises EmbedError for everything a user can mend.
    """

    plugin: ClassVar[str]
    """Entry-point name of the plugin to activate."""
    recipe_class: ClassVar[type[Recipe]]

    def __init__(
        self,
        model: Any = None,
        tokenizer: Any = None,
        train_dataset: Dataset | Sequence[Mapping[str, Any]] | None = None,
        config: Recipe | None = None,
        *,
        overrides: Mapping[str, Any] | None = None,
        observers: Sequence[Any] = (),
        announce: Announce = print,
    ) -> None:
        if config is not None and not isinstance(config, self.recipe_class):
            raise ConfigError(f"config: {self.recipe_class.__name__} is needed, got {type(config).__name__}")
        if tokenizer is not None and model is not None:
            model.tokenizer = tokenizer
        elif tokenizer is not None:
            raise ConfigError("tokenizer: without a model it would not be used: pass the model too, or neither")
        self.config = config if config is not None else self.recipe_class()
        self.model, self.train_dataset = model, train_dataset
        self.overrides, self.observers, self.announce = dict(overrides or {}), observers, announce

    def train(self, *, resume: bool = False, overwrite: bool = False) -> RunResult:
        """Evaluate, step, checkpoint, evaluate again, export; the result says where and how well."""
        manager, registry = activate([self.plugin])
        keys = {**self.config.addon_keys, **self.config.model_dump(exclude_unset=True)}
        given = Document(data=lay_over(keys, self.overrides))
        run_config = resolve(
            registry, Request(self.recipe_class, given, world_size=environment()[1], flags={"plugins": [self.plugin]})
        )
        dataset = self._dataset(run_config)
        if dataset is not None and dataset.held_out() is None:
            run_config = _without_held_out(run_config)
        for observer in (ProgressLines(self.announce), *self.observers):
            manager.register(observer)
        options = Options(
            resume=resume,
            overwrite=overwrite,
            command=f"{type(self).__name__}(...).train() in {sys.argv[0] or 'python'}",
            announce=self.announce,
            model=self.model,
            dataset=dataset,
        )
        return run(run_config, manager, registry, options)

    def _dataset(self, config: RunConfig) -> Dataset | None:
        rows = self.train_dataset
        if rows is None or isinstance(rows, Dataset):
            return rows
        if not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
            raise DataError(f"train_dataset: a sequence of rows is needed, got {type(rows).__name__}: put it in a list")
        from embed_core.datasets.retrieval import RetrievalDataset
        from embed_core.datasets.sampling import DrawOptions
        from embed_core.datasets.sources.memory import InMemoryRows

        data = getattr(config.data, "inner", config.data)  # of what adds a teacher's vectors, the rows' own config
        options = DrawOptions(
            getattr(data, "negatives", 7), getattr(data, "query_prompt", None), getattr(data, "passage_prompt", None)
        )
        return RetrievalDataset(
            "train_dataset",
            [InMemoryRows(rows)],
            options,
            self.announce if environment()[0] == 0 else lambda line: None,
            getattr(data, "held_out_rows", 0),
            getattr(data, "limit", None),
        )


def _without_held_out(config: RunConfig) -> RunConfig:
    """Drop evaluations on the held-out split, which the dataset lacks; those on folders stay."""
    kept = tuple(e for e in config.evaluation if getattr(e, "path", "") is not None)
    return config.model_copy(update={"evaluation": kept})


__all__ = ["BaseRetrieverTrainer", "RunResult"]
