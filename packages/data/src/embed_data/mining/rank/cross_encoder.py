"""Judges pairs with a sentence-transformers CrossEncoder."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed_core.errors import CheckpointError, ConfigError
from embed_core.utils.messages import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embed_data.mining.corpus.collection import Collection
    from embed_data.mining.corpus.rows import Rows

BATCH = 32
"""Pairs per forward; they are sorted by length first."""


class CrossEncoderJudge:
    """A :class:`~embed_data.mining.rank.judges.Judge` by the model's scores before any activation.

    Raises CheckpointError for a directory that is no cross-encoder with one score, ConfigError where
    sentence-transformers is not installed.
    """

    def __init__(self, rows: Rows, collection: Collection, path: str, device: str) -> None:
        self._rows, self._collection = rows, collection
        self._model = _load(path, device)
        self.digest = _digest(self._model)

    def pairs(self, rows: Sequence[int], documents: Sequence[Sequence[int]]) -> list[list[float]]:
        """Logits: a sigmoid would push a good reranker's scores so close to 1 that no margin tells them apart."""
        import torch

        texts = [
            (self._rows[row].row.query, self._collection.document(n).text)
            for row, wanted in zip(rows, documents, strict=True)
            for n in wanted
        ]
        if not texts:
            return [[] for _ in rows]
        flat = self._model.predict(
            texts, batch_size=BATCH, show_progress_bar=False, activation_fn=torch.nn.Identity(), convert_to_numpy=True
        )
        scores = iter(flat.astype(float).tolist())
        return [[next(scores) for _ in wanted] for wanted in documents]


def _load(path: str, device: str) -> Any:
    try:
        from sentence_transformers import CrossEncoder
    except ImportError:
        raise ConfigError("--cross-encoder needs sentence-transformers: pip install sentence-transformers") from None
    from embed_core.models.hub import model_directory
    from embed_core.utils.logging import quiet_transformers

    directory = model_directory(path)
    try:
        with quiet_transformers():
            model = CrossEncoder(str(directory), device=device)
    except Exception as error:  # whatever transformers raises for another kind of directory
        reason = one_line(error, 200)
        raise CheckpointError(f"--cross-encoder {path!r} cannot be loaded: {type(error).__name__}: {reason}") from error
    if model.num_labels != 1:
        raise CheckpointError(
            f"--cross-encoder {path!r} has {model.num_labels} labels: a reranker has one, its score; "
            "give one that was trained for ranking"
        )
    _check_head(directory, path)
    return model


def _check_head(directory: Path, path: str) -> None:
    """Raises CheckpointError for an encoder without a head, which would load with a random one."""
    import json

    names = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    if not any("SequenceClassification" in name or "CausalLM" in name for name in names):
        raise CheckpointError(
            f"--cross-encoder {path!r} is a {names[0] or 'model without a head'}, which scores no pairs: give a model "
            "for sequence classification, or a registered one with --teacher"
        )


def _digest(model: Any) -> str:
    hasher = blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        hasher.update(name.encode())
        hasher.update(value.detach().cpu().float().contiguous().numpy())
    return hasher.hexdigest()
