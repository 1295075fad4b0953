"""Meanings of the recipe's keys: defaults by kind of model, ms-swift's losses, the stages of the curriculum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

LossType = Literal["qwen3", "infonce", "cosine_similarity", "contrastive", "online_contrastive"]


BY_MODEL: Mapping[str, tuple[Any, Any]] = {
    "learning_rate": (1e-3, 6e-6),
    "num_train_epochs": (1.6, 10),
    "per_device_train_batch_size": (64, 8),
    "max_length": (128, 512),
}
"""Key → value for a small random decoder, value for a model that is loaded.

From scratch: large steps and large batches; a query has room for an instruction in single bytes. A trained model has
the learning rate and the epochs of ARK (arXiv 2511.16326)."""

SCRATCH_TEMPERATURE = 0.05
"""Temperature for a random decoder; a trained model has the loss's own."""

SCRATCH_LOSS = {"infonce_mask_fake_negative": False}
"""Of qwen3 for a random decoder: what it ranks above the positive is chance, not an unlabelled positive. With the mask
it stands still for half as long again."""

CURRICULUM_LEARNING_RATE = 1e-5
"""The learning rate of stage 1 for a trained model, where none is given."""
EPOCHS = (0.3, 0.4, 0.3)
"""Share of the epochs of each stage: 3, 4 and 3 of ARK's ten."""
RATES = (1.0, 0.8, 0.4)
"""Learning rate of each stage, of the first one's."""
SHORT_EPOCHS = (10 / 16, 3 / 16, 3 / 16)
"""The stages' epochs for a random decoder, most of whose learning is in its first pass."""
WARMUP_STEPS = (50, 0, 0)

_PREFIX = "infonce_"
_OF_QWEN3 = {
    "infonce_use_batch": "in_batch",
    "infonce_include_qq": "query_query",
    "infonce_include_dd": "document_document",
}


def ark_stages(epochs: float, learning_rate: float, own: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The three stages of ARK, of rows that have negatives: none, then their easier half, then their harder half.

    ``own`` are keys of the two stages with hard negatives.
    """
    rows: list[dict[str, Any]] = [
        {"name": "stage-1-in-batch", "negatives": "in-batch"},
        {"name": "stage-2-easier", "difficulty": {"by": "share", "band": [0.5, 1.0]}, **own},
        {"name": "stage-3-harder", "difficulty": {"by": "share", "band": [0.0, 0.5]}, **own},
    ]
    return _paced(rows, epochs, EPOCHS, learning_rate, WARMUP_STEPS)


def short_stages(epochs: float, learning_rate: float, own: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Three stages for rows without negatives: those of the batch, then easier, then harder ones that the model mines.

    No margin in mining: a random decoder has most to learn from what it ranks above the positive.
    """
    mined = {"negatives": 2, **own}
    rows: list[dict[str, Any]] = [
        {"name": "stage-1-in-batch", "negatives": "in-batch"},
        {"name": "stage-2-easier", "remine": {"ranks": [11, 60]}, **mined},
        {"name": "stage-3-harder", "remine": {"ranks": [1, 20]}, **mined},
    ]
    return _paced(rows, epochs, SHORT_EPOCHS, learning_rate, (None, 5, 5))


def _paced(
    rows: list[dict[str, Any]],
    epochs: float,
    shares: tuple[float, ...],
    learning_rate: float,
    warmup_steps: tuple[int | None, ...],
) -> list[dict[str, Any]]:
    return [
        {**row, "epochs": epochs * share, "learning_rate": learning_rate * rate}
        | ({} if warmup is None else {"warmup_steps": warmup})
        for row, share, rate, warmup in zip(rows, shares, RATES, warmup_steps, strict=True)
    ]


def loss_of(loss_type: LossType, temperature: float | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The loss with ms-swift's ``infonce_*`` options, those that are given. Raises ValueError for one it does not have.

    ``options``: by the recipe's keys; ``hard_negatives`` is qwen3's, ``labels`` of the losses over pairs.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if loss_type == "qwen3":
        loss = _qwen3(given)
    elif loss_type == "infonce":
        loss = _known(loss_type, given, lambda key: key.startswith(_PREFIX))
        loss = {key.removeprefix(_PREFIX): value for key, value in loss.items()}
    else:
        loss = _known(loss_type, given, lambda key: key == "labels")
        if temperature is not None:
            raise ValueError(f"temperature: {temperature} is no option of loss_type {loss_type!r}: leave it out")
        temperature = None
    scaled = {} if temperature is None else {"temperature": temperature}
    kind = "qwen3-infonce" if loss_type == "qwen3" else "swift-" + loss_type.replace("_", "-")
    return {"kind": kind, **scaled, **loss}


def _qwen3(given: Mapping[str, Any]) -> dict[str, Any]:
    """ms-swift's options by the names of our loss; its false-negative mask is our margin."""
    masked = ("infonce_mask_fake_negative", "infonce_fake_neg_margin")
    known = _known("qwen3", given, lambda key: key in (*_OF_QWEN3, *masked, "hard_negatives"))
    loss = {_OF_QWEN3.get(key, key): value for key, value in known.items() if key not in masked}
    if known.get(masked[0]) is False:
        loss["mask"] = {"margin": None}
    elif masked[1] in known:
        loss["mask"] = {"margin": known[masked[1]]}
    return loss


def _known(loss_type: str, given: Mapping[str, Any], is_known: Any) -> dict[str, Any]:
    for key, value in given.items():
        if not is_known(key):
            raise ValueError(f"{key}: {value!r} is no option of loss_type {loss_type!r}: leave it out{_where(key)}")
    return dict(given)


def _where(key: str) -> str:
    if key == "hard_negatives":
        return ", or use loss_type qwen3"
    if key == "labels":
        return ", or use loss_type cosine_similarity, contrastive or online_contrastive"
    return ", or use loss_type infonce" + (" or qwen3" if key != "infonce_hard_negatives" else "")
