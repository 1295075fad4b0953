"""The base class of models around another one, such as adapters and projections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from embed_core.types import Embeddings, Encoded, Item, Role, ScoreWeights

INNER = "inner."
"""The prefix of the inner model's weights in the names of the wrapper's."""


class WrappedModel(nn.Module):
    """Wraps a model. Tokenisation, collation and scoring are delegated, and so are all other public attributes.

    A class derived from this one calls :meth:`_share` at the end of its ``__init__``, or where its own attributes are
    set: those stay its own.
    """

    hidden: ClassVar[frozenset[str]] = frozenset()
    """Attributes of the inner model that would be wrong for this one, and are not delegated."""
    inner: Any

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def _share(self) -> None:
        # Fixed now, because attributes that DeepSpeed sets on the inner module later must not appear on this one.
        names = public_names(self.inner) - self.hidden
        self._shared = frozenset(name for name in names if not hasattr(self, name))

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_shared", ()):
            return getattr(self.inner, name)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_shared", ()):
            setattr(self.inner, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def scores(self) -> Mapping[str, ScoreWeights]:
        """The ways to rank of the inner model."""
        scores: Mapping[str, ScoreWeights] = self.inner.scores
        return scores

    def tokenize(self, items: Sequence[Item], role: Role, prompts: Sequence[str | None]) -> list[Encoded]:
        """Tokenise as the inner model does."""
        encoded: list[Encoded] = self.inner.tokenize(items, role, prompts)
        return encoded

    def collate(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        """Collate as the inner model does."""
        inputs: dict[str, Tensor] = self.inner.collate(encoded)
        return inputs

    def forward(self, **inputs: Tensor) -> Embeddings:
        """The inner model's embeddings."""
        embeddings: Embeddings = self.inner(**inputs)
        return embeddings


def public_names(model: Any) -> frozenset[str]:
    """Public names of a model and of those inside it, which wrappers pass on without listing them."""
    names: set[str] = set()
    while model is not None:
        names |= {name for name in dir(model) if not name.startswith("_")}
        model = getattr(model, "inner", None)
    return frozenset(names)


def part_of(state: Mapping[str, Tensor], prefix: str = INNER) -> dict[str, Tensor]:
    """The entries of ``state`` that belong to a sub-module, under its own names."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
