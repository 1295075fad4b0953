"""The context that ``build`` gets: facts of the run, the ranks, and the dataset on demand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from embed_core.protocols import Announce, Dataset, Encoder, Model

if TYPE_CHECKING:
    from embed_core.config.component import DatasetConfig
    from embed_core.config.registry import Registry


def cache_root() -> Path:
    """``$EMBED_CACHE``, else ``$XDG_CACHE_HOME/embed``, else ``~/.cache/embed``."""
    explicit = os.environ.get("EMBED_CACHE")
    if explicit:
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "embed"


@dataclass
class BuildContext:
    """Passed to every ``Component.build``."""

    registry: Registry
    seed: int = 42
    rank: int = 0
    world_size: int = 1
    device: str = "cpu"
    """Where the model will run, ``cpu`` or ``cuda:N``; components are built on CPU."""
    cache_dir: Path = field(default_factory=cache_root)
    announce: Announce = print
    """One line for the user, shown by rank 0 only."""
    data: DatasetConfig | None = None
    """Config of the run's training dataset; ``None`` where the caller gave the dataset itself."""
    dataset_factory: Callable[[], Dataset] | None = None
    barrier: Callable[[], None] = lambda: None
    """Waits for all ranks."""
    model: Model | None = None
    """The run's model, once it is built: a loss may start from what is in it. Its weights are not to be changed."""
    encoder: Encoder | None = None
    """In a phase but the first: the model as the phases before left it. A dataset may mine with it while it is built;
    all ranks have to call it alike."""
    phase: str = ""
    """Name of the phase that is being built; empty in a run without phases."""
    phase_dir: Path | None = None
    """A folder of this phase, in a run with phases: what a component computes once (rows mined with ``encoder``) it
    keeps here and finds here after a resume, where ``encoder`` has moved on. Shared by the ranks, emptied by a new run;
    ``None`` outside a run."""
    wrapped_modules: frozenset[str] = frozenset()
    """Kinds of sentence-transformers modules (``Dense``) that a model around the one being built reads from its
    directory itself; any other that a model kind does not know is an error."""
    _dataset: Dataset | None = None

    def dataset(self) -> Dataset:
        """The run's training dataset, built at the first call: a from-scratch model trains its tokenizer on it."""
        if self._dataset is None:
            assert self.dataset_factory is not None, "this context has no dataset"
            self._dataset = self.dataset_factory()
        return self._dataset

    @contextmanager
    def first(self) -> Iterator[None]:
        """Rank 0 runs the body first and fills the cache; the others run it after and find it filled."""
        if self.rank != 0:
            self.barrier()
            yield
            return
        try:
            yield
        finally:  # also when it failed: the others must not wait for ever
            self.barrier()
