"""Runs a loss of sentence-transformers on embeddings, where it expects a model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from embed_core.config.context import BuildContext
from embed_core.errors import ConfigError
from embed_core.types import Batch, LossOutput, Targets
from embed_core.utils.messages import one_line
from embed_sbert.columns import Columns, columns_of
from embed_sbert.loss_arguments import resolved
from embed_sbert.loss_config import SentenceTransformersLossConfig
from embed_sbert.loss_names import SUPPORTED

EMBEDDING = "sentence_embedding"


class GivenEmbeddings(nn.Module):
    """Takes the model's place in a loss: its "features" are the embeddings already."""

    def __init__(self, embedding_dimension: int | None) -> None:
        super().__init__()
        self._embedding_dimension = embedding_dimension
        self.device = torch.device("cpu")

    def __getitem__(self, index: int) -> nn.Module:
        """Losses check the first module against those that they do not support; this one is none of them."""
        return self

    def get_embedding_dimension(self) -> int | None:
        """Width of the vectors, for losses with parameters of that width."""
        return self._embedding_dimension

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns its input."""
        return features


class GivenLoss(nn.Module):
    """``sentence_transformers.losses``' own class on the columns of the global batch, computed whole on every rank.

    The cached variants compute their loss stage in chunks as usual; encoding in chunks is left to the engine
    (``engine.strategy``). Metrics: ``loss``, and the terms of a loss that has several.
    """

    def __init__(self, name: str, loss: nn.Module) -> None:
        super().__init__()
        self.name, self.loss = name, loss
        self._form = SUPPORTED[name]

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        """As the loss reduces it, mostly the mean over rows. Raises ConfigError for a batch that it cannot take."""
        columns = columns_of(batch, targets, self._form, self.name)
        with self._in_its_precision(columns.vectors[0]):
            value = self._value(columns)
        terms = value if isinstance(value, dict) else {}
        loss = torch.stack(list(terms.values())).sum() if terms else value
        return LossOutput(loss, {name: term.detach() for name, term in {"loss": loss, **terms}.items()})

    def _value(self, columns: Columns) -> Any:
        loss: Any = self.loss
        if hasattr(loss, "calculate_loss"):  # a loss that encodes in chunks: its loss stage alone
            return loss.calculate_loss([[vectors] for vectors in columns.vectors], columns.labels)
        return loss([{EMBEDDING: vectors} for vectors in columns.vectors], columns.labels)

    def _in_its_precision(self, vectors: Tensor) -> torch.autocast:
        """Autocast to the precision of the loss's own projection, which may be half, while embeddings are fp32."""
        dtypes = {parameter.dtype for parameter in self.loss.parameters()}
        half = next(iter(dtypes & {torch.bfloat16, torch.float16}), None)
        return torch.autocast(vectors.device.type, dtype=half or torch.bfloat16, enabled=half is not None)


def build_loss(config: SentenceTransformersLossConfig, context: BuildContext) -> GivenLoss:
    """The loss of a run. Raises ConfigError for arguments that it refuses."""
    from sentence_transformers.sentence_transformer import losses

    from embed_core.models.from_scratch.encoder import seeded

    kind: Any = getattr(losses, config.name, None)
    if kind is None:
        from sentence_transformers import __version__

        raise ConfigError(
            f"loss.name: {config.name} is not in sentence-transformers {__version__}: install a newer one"
        )
    width = _width(kind, config.arguments, context.model)
    arguments = resolved(kind, {k: v for k, v in config.arguments.items() if k != "gather_across_devices"}, width)
    try:
        with seeded(context.seed + 3):  # the model and its adapters have drawn from the seeds before
            return GivenLoss(config.name, kind(model=GivenEmbeddings(width), **arguments))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"loss.arguments: {config.name} refuses them: {one_line(error)}") from None


def _width(kind: Any, arguments: Mapping[str, Any], model: Any) -> int | None:
    """Width of the dense vectors, if the loss has a layer of that width: as the model says, else measured on a text."""
    if (
        "embedding_dimension" not in inspect.signature(kind.__init__).parameters
        and arguments.get("projection_dim") is None
    ):
        return None
    own = getattr(model, "embedding_dimension", None)
    if model is None or own is not None:
        return own
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            dense_ND = model(**model.collate(model.tokenize(["a"], "query", [None]))).dense_ND
    finally:
        model.train(training)
    return None if dense_ND is None else int(dense_ND.shape[1])
