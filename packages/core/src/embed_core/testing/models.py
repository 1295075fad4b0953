"""Checks what :class:`embed_core.protocols.Model` promises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from embed_core.protocols import Model
from embed_core.types import Embeddings, Encoded, Item, Role

PARTS = ("dense", "sparse", "multi")


def check_model(model: Model, items: Sequence[Item], *, role: Role = "query", tolerance: float = 1e-5) -> None:
    """Assert a model's promises on ``items``, at least two of them, best of very different lengths.

    Checked: the ways to score; tokenisation does not depend on the other texts of the call and counts at least one
    token; equal keys for equal texts; ``collate`` gives CPU tensors; the embeddings have a text each, are finite, hold
    every part the ways to score name, and are the same within ``tolerance`` (absolute, fp32) whether texts are
    encoded together, in another order or one by one; gradients reach the parameters.

    Raises AssertionError.
    """
    assert isinstance(model, nn.Module), f"a model must be an nn.Module, {type(model).__name__} is none"
    assert isinstance(model, Model), f"{type(model).__name__} lacks one of: scores, tokenize, collate, __call__"
    assert len(items) > 1, "check_model needs at least two items"
    _check_scores(model)
    encoded = _check_tokenize(model, items, role)
    module: Any = model
    training = module.training
    try:
        module.eval()
        _check_chunks(model, encoded, tolerance)
        module.train()
        _check_gradient(module, encoded)
    finally:
        module.train(training)


def encode(model: Model, items: Sequence[Item], role: Role = "query") -> Embeddings:
    """Embeddings of ``items`` in one chunk, in evaluation mode, without gradient."""
    module: Any = model
    training = module.training
    try:
        module.eval()
        with torch.no_grad():
            return model(**model.collate(model.tokenize(items, role, [None] * len(items))))
    finally:
        module.train(training)


def text_vectors(embeddings: Embeddings, index: int) -> dict[str, Tensor]:
    """The embeddings of one text by part; lexical weights come sorted by id."""
    found: dict[str, Tensor] = {}
    if embeddings.dense_ND is not None:
        found["dense"] = embeddings.dense_ND[index]
    if embeddings.sparse is not None:
        part = slice(*embeddings.sparse.offsets_N1[index : index + 2].tolist())
        order = embeddings.sparse.ids_K[part].argsort()
        found["sparse ids"] = embeddings.sparse.ids_K[part][order]
        found["sparse"] = embeddings.sparse.weights_K[part][order]
    if embeddings.multi is not None:
        found["multi"] = embeddings.multi.vectors_TC[slice(*embeddings.multi.offsets_N1[index : index + 2].tolist())]
    return found


def assert_same_text(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float, context: str) -> None:
    """Assert that two answers of :func:`text_vectors` agree."""
    assert first.keys() == second.keys(), f"{context}: parts {sorted(first)} became {sorted(second)}"
    for part, value in first.items():
        other = second[part]
        assert value.shape == other.shape, f"{context}: {part} has shape {tuple(value.shape)} and {tuple(other.shape)}"
        gap = float((value.double() - other.double()).abs().max()) if value.numel() else 0.0
        assert gap <= tolerance, f"{context}: {part} differs by {gap:.2e}, more than {tolerance:.0e}"


def _check_scores(model: Model) -> None:
    assert model.scores, "scores must name at least one way to rank"
    for name, weights in model.scores.items():
        unknown = set(weights) - set(PARTS)
        assert not unknown, f"scores[{name!r}] weighs {sorted(unknown)}, which is none of {PARTS}"
        assert weights, f"scores[{name!r}] weighs nothing"


def _check_tokenize(model: Model, items: Sequence[Item], role: Role) -> list[Encoded]:
    together = model.tokenize(items, role, [None] * len(items))
    assert len(together) == len(items), f"tokenize gave {len(together)} texts for {len(items)} items"
    again = model.tokenize(list(items)[::-1], role, [None] * len(items))[::-1]
    for index, (one, other) in enumerate(zip(together, again, strict=True)):
        assert one.length >= 1, f"item {index} has length {one.length}: the token budget needs at least 1"
        assert isinstance(one.key, bytes), f"item {index}: key must be bytes, not {type(one.key).__name__}"
        alone = model.tokenize([items[index]], role, [None])[0]
        assert one.key == other.key == alone.key, f"item {index}: the key depends on the other items of the call"
        assert one.length == other.length == alone.length, f"item {index}: the length depends on the other items"
    _check_keys(items, together)
    return together


def _check_keys(items: Sequence[Item], encoded: Sequence[Encoded]) -> None:
    """Two texts with one key are encoded once: what collate needs of them must be the same."""
    for first in range(len(encoded)):
        for second in range(first + 1, len(encoded)):
            if encoded[first].key == encoded[second].key:
                same = _plain(encoded[first].data) == _plain(encoded[second].data)
                assert same, f"items {first} and {second} share a key but not their data: one would be lost"
            elif isinstance(items[first], str):
                assert items[first] != items[second], f"items {first} and {second} are equal but have two keys"


def _check_chunks(model: Model, encoded: Sequence[Encoded], tolerance: float) -> None:
    for name, value in model.collate(encoded).items():
        assert isinstance(value, Tensor), f"collate: {name} is {type(value).__name__}, not a tensor"
        assert value.device.type == "cpu", f"collate: {name} is on {value.device}: the loop moves chunks, not the model"
    with torch.no_grad():
        together = model(**model.collate(encoded))
        backwards = model(**model.collate(list(encoded)[::-1]))
        _check_embeddings(model, together, len(encoded))
        for index, one in enumerate(encoded):
            whole = text_vectors(together, index)
            alone = text_vectors(model(**model.collate([one])), 0)
            assert_same_text(whole, alone, tolerance, f"item {index}, encoded with others and alone")
            turned = text_vectors(backwards, len(encoded) - 1 - index)
            assert_same_text(whole, turned, tolerance, f"item {index}, encoded in two orders")


def _check_embeddings(model: Model, embeddings: Embeddings, count: int) -> None:
    assert isinstance(embeddings, Embeddings), f"forward must return Embeddings, not {type(embeddings).__name__}"
    present = {part for part, value in zip(PARTS, embeddings, strict=True) if value is not None}
    named = {part for weights in model.scores.values() for part in weights}
    assert named <= present, f"scores name {sorted(named - present)}, which forward does not return"
    if embeddings.dense_ND is not None:
        rows = embeddings.dense_ND.shape[0]
        assert rows == count, f"dense has {rows} rows for {count} texts"
    for part, ragged, flat in _ragged(embeddings):
        offsets = ragged.offsets_N1.tolist()
        assert len(offsets) == count + 1, f"{part}: {len(offsets)} offsets for {count} texts, not {count + 1}"
        assert offsets == sorted(offsets), f"{part}: the offsets decrease"
        assert [offsets[0], offsets[-1]] == [0, flat.shape[0]], (
            f"{part}: the offsets must run from 0 to {flat.shape[0]}"
        )
    if embeddings.sparse is not None:
        for index in range(count):
            ids = text_vectors(embeddings, index)["sparse ids"].tolist()
            assert len(ids) == len(set(ids)), f"text {index} has a lexical id twice"
    for index in range(count):
        for part, value in text_vectors(embeddings, index).items():
            assert bool(torch.isfinite(value).all()), f"text {index}: {part} is not finite"


def _check_gradient(model: Any, encoded: Sequence[Encoded]) -> None:
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert parameters, "no parameter requires a gradient"
    kept = {name: value.grad for name, value in parameters.items()}
    model.zero_grad(set_to_none=True)
    embeddings = model(**model.collate(encoded))
    values = [embeddings.dense_ND, *(flat for _, _, flat in _ragged(embeddings))]
    torch.stack([_probe(value) for value in values if value is not None]).sum().backward()
    reached = {name: value.grad for name, value in parameters.items() if value.grad is not None}
    assert reached, "the gradient of the embeddings reaches no parameter: is forward under no_grad?"
    for name, gradient in reached.items():
        assert bool(torch.isfinite(gradient).all()), f"the gradient of {name} is not finite"
    for name, value in parameters.items():
        value.grad = kept[name]


def _probe(value: Tensor) -> Tensor:
    """A scalar whose gradient does not vanish on normalised vectors, unlike their squared norm's."""
    return (value.float() * torch.linspace(0.5, 1.5, value.shape[-1])).sum()


def _ragged(embeddings: Embeddings) -> Iterator[tuple[str, Any, Tensor]]:
    if embeddings.sparse is not None:
        yield "sparse", embeddings.sparse, embeddings.sparse.weights_K
    if embeddings.multi is not None:
        yield "multi", embeddings.multi, embeddings.multi.vectors_TC


def _plain(data: Any) -> Any:
    """Token lists and tensors as plain lists, so that they compare."""
    if isinstance(data, dict) or hasattr(data, "items"):
        return {key: _plain(value) for key, value in data.items()}
    return data.tolist() if hasattr(data, "tolist") else list(data) if isinstance(data, (list, tuple)) else data
