"""Adds to another layout's files the dimensions to which the vectors may be cut."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from embed_core.errors import CheckpointError, ConfigError
from embed_core.export.layout import write_json
from embed_core.export.model_card import RunCard
from embed_mrl import report
from embed_mrl.dims import resolved

if TYPE_CHECKING:
    from embed_core.protocols import Checkpointer
    from embed_mrl.config import MatryoshkaCheckpointConfig

SENTENCE_TRANSFORMERS = "config_sentence_transformers.json"
_WIDTHS = ("out_features", "embedding_dimension", "word_embedding_dimension")
"""Keys by which modules behind the encoder state their output width; the pooling has had two names for it."""
_USE = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/directory", truncate_dim={dim})
vectors = model.encode(["a passage"], prompt_name="document", normalize_embeddings=True)
"""


class MatryoshkaCheckpointer:
    """Writes what the inner checkpointer writes, and besides:

    * ``config.json``: ``matryoshka_dimensions``, from which vLLM lets its clients choose;
    * ``config_sentence_transformers.json``: ``truncate_dim``, where it is set;
    * ``README.md``: a section with the dimensions, how to use them, and the last evaluation's table and plot.
    """

    def __init__(self, config: MatryoshkaCheckpointConfig, inner: Checkpointer) -> None:
        self.config, self.inner = config, inner

    def export(self, model: nn.Module, state: Mapping[str, Tensor], directory: Path, card: RunCard) -> None:
        """See :meth:`embed_core.protocols.Checkpointer.export`. Raises CheckpointError where the layout has no place
        for ``truncate_dim``, or the vectors have fewer dimensions than are named."""
        self.inner.export(model, state, directory, card)
        dims = self._dims(directory)
        path = directory / "config.json"
        if dims and path.is_file():
            write_json(path, {**_read(path), "matryoshka_dimensions": list(dims)})
        if self.config.truncate_dim is not None:
            self._truncate(directory, dims)
        with (directory / "README.md").open("a", encoding="utf-8") as readme:
            readme.write("\n" + _section(dims, self.config.truncate_dim, directory, card))

    def _dims(self, directory: Path) -> tuple[int, ...]:
        """Dimensions, largest first; as configured where the layout does not say how wide its vectors are."""
        width = _width(directory)
        if width is None:
            return tuple(sorted(self.config.dims or (), reverse=True))
        try:
            return resolved(self.config.dims, width, "checkpoint.dims")
        except ConfigError as error:
            raise CheckpointError(str(error)) from None

    def _truncate(self, directory: Path, dims: tuple[int, ...]) -> None:
        path, dim = directory / SENTENCE_TRANSFORMERS, self.config.truncate_dim
        if not path.is_file():
            raise CheckpointError(
                f"checkpoint.truncate_dim {dim}: the layout {self.config.inner.kind!r} has no {SENTENCE_TRANSFORMERS} "
                "to say it in: leave the key out"
            )
        if dim not in dims:
            raise CheckpointError(f"checkpoint.truncate_dim {dim} is no dimension of the model: one of {list(dims)}")
        write_json(path, {**_read(path), "truncate_dim": dim})


def _width(directory: Path) -> int | None:
    """Width of the vectors by sentence-transformers' modules: a projection's, else the pooling's."""
    path = directory / "modules.json"
    modules = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    width = None
    for module in modules:
        config = directory / module["path"] / "config.json"
        facts = _read(config) if module["path"] and config.is_file() else {}
        width = facts.get(
            "out_features", facts.get("embedding_dimension", facts.get("word_embedding_dimension", width))
        )
    return None if width is None else int(width)


def _section(dims: tuple[int, ...], truncate_dim: int | None, directory: Path, card: RunCard) -> str:
    """The section as Markdown."""
    named = ", ".join(map(str, dims)) or "those of the training config"
    parts = [
        "## Dimensions",
        f"Trained to be cut (Matryoshka) to {named}: take the first values and bring them to unit length.",
    ]
    if truncate_dim is not None:
        parts.append(f"sentence-transformers cuts to {truncate_dim} unless `truncate_dim` says otherwise.")
    example = truncate_dim or (dims[1] if len(dims) > 1 else None)
    if example is not None:
        parts.append(f"```python\n{_USE.format(dim=example)}```")
    tables = report.last(card.evaluations)
    parts += [f"### {evaluator}: size against quality\n\n{report.markdown(of)}" for evaluator, of in tables.items()]
    if tables:
        report.drawn(tables, directory)
    if (directory / report.PLOT).is_file():
        parts.append(f"![quality against bytes per vector]({report.PLOT})")
    return "\n\n".join(parts) + "\n"


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
