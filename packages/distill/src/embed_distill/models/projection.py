"""The projection from a student's vectors to its teacher's space, and its files in sentence-transformers' layout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from embed_core.errors import CheckpointError
from embed_core.export.layout import write_json
from embed_core.utils.messages import one_line
from embed_distill.models.config import Activation

ACTIVATIONS: Mapping[Activation, str] = {
    "gelu": "torch.nn.modules.activation.GELU",
    "relu": "torch.nn.modules.activation.ReLU",
    "silu": "torch.nn.modules.activation.SiLU",
    "tanh": "torch.nn.modules.activation.Tanh",
    "identity": "torch.nn.modules.linear.Identity",
}
"""Activations by the names that sentence-transformers' files use."""
_MODULES = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh, "identity": nn.Identity}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: ``activation(x · weightᵀ + bias)``."""

    inputs: int
    outputs: int
    bias: bool
    activation: Activation

    def __str__(self) -> str:
        return f"{self.outputs}" if self.activation == "identity" else f"{self.outputs} ({self.activation})"


class Dense(nn.Module):
    """One layer, whose weights have the names of sentence-transformers' Dense module."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer
        self.linear = nn.Linear(layer.inputs, layer.outputs, bias=layer.bias)
        self.activation = _MODULES[layer.activation]()

    def forward(self, vectors_NX: Tensor) -> Tensor:
        """``[N, inputs]`` → ``[N, outputs]``, in the precision of the weights."""
        result: Tensor = self.activation(self.linear(vectors_NX.to(self.linear.weight.dtype)))
        return result


@dataclass(frozen=True)
class Saved:
    """A projection read from sentence-transformers' files."""

    layers: tuple[Layer, ...]
    state: Mapping[str, Tensor]
    """Weights by the names of :func:`projection_of`'s parameters."""
    normalized_before: bool
    """Whether the vectors are scaled to unit length before the projection."""


def projection_of(layers: Sequence[Layer]) -> nn.Sequential:
    """A new projection with torch's own random initialisation."""
    return nn.Sequential(*(Dense(layer) for layer in layers))


def start_orthogonal(projection: nn.Sequential) -> None:
    """Initialise with orthonormal columns where a layer widens, orthonormal rows where it narrows, and biases of 0."""
    for dense in projection:
        nn.init.orthogonal_(dense.linear.weight)
        if dense.linear.bias is not None:
            nn.init.zeros_(dense.linear.bias)


def described(layers: Sequence[Layer]) -> str:
    """The layers as text: ``768 → 1536 (gelu) → 3584``."""
    return " → ".join([str(layers[0].inputs), *map(str, layers)])


def read(directory: Path) -> Saved | None:
    """Read the Dense modules after the pooling; None where the model has none. Raises CheckpointError for modules that
    cannot be used."""
    path = directory / "modules.json"
    if not path.is_file():
        return None
    kinds = [(str(entry["type"]).rsplit(".", 1)[-1], directory / str(entry["path"])) for entry in _json(path)]
    dense = [place for kind, place in kinds if kind == "Dense"]
    if not dense:
        return None
    before = [kind for kind, _ in kinds[: next(i for i, (kind, _) in enumerate(kinds) if kind == "Dense")]]
    layers: list[Layer] = []
    state: dict[str, Tensor] = {}
    for number, place in enumerate(dense):
        layers.append(_layer(place))
        state |= {f"{number}.{name}": value for name, value in _weights(place, layers[-1]).items()}
    return Saved(tuple(layers), state, "Normalize" in before)


def write(projection: nn.Sequential, state: Mapping[str, Tensor], directory: Path, *, normalize: bool) -> None:
    """Append Dense modules, and Normalize where ``normalize``, to a sentence-transformers directory.

    ``state`` has the weights by the projection's own names. Raises CheckpointError where modules.json is missing.
    """
    from safetensors.torch import save_file

    path = directory / "modules.json"
    if not path.is_file():
        raise CheckpointError(
            "the checkpoint layout writes no modules.json, in which sentence-transformers would find the projection: "
            "use another `checkpoint.kind`, or `model.alignment: student-native`"
        )
    entries = _json(path)
    for number, dense in enumerate(projection):
        place = _append(entries, "Dense", directory)
        write_json(place / "config.json", _settings(dense.layer))
        weights = {name: state[f"{number}.{name}"].detach().float().contiguous() for name in dense.state_dict()}
        save_file(weights, place / "model.safetensors")
    if normalize:
        _append(entries, "Normalize", directory)
    write_json(path, entries)
    facts = directory / "config_sentence_transformers.json"
    if facts.is_file():
        write_json(facts, {**_json(facts), "similarity_fn_name": "cosine" if normalize else "dot"})


def _append(entries: list[dict[str, Any]], kind: str, directory: Path) -> Path:
    index = len(entries)
    name = f"{index}_{kind}"
    entries.append({"idx": index, "name": str(index), "path": name, "type": f"sentence_transformers.models.{kind}"})
    (directory / name).mkdir()
    return directory / name


def _settings(layer: Layer) -> dict[str, Any]:
    return {
        "in_features": layer.inputs,
        "out_features": layer.outputs,
        "bias": layer.bias,
        "activation_function": ACTIVATIONS[layer.activation],
    }


def _layer(place: Path) -> Layer:
    config = _json(place / "config.json")
    named = str(config.get("activation_function", ACTIVATIONS["tanh"]))
    known = {theirs.rsplit(".", 1)[-1]: ours for ours, theirs in ACTIVATIONS.items()}
    activation = known.get(named.rsplit(".", 1)[-1])
    other = next(
        (
            key
            for key in ("module_input_name", "module_output_name")
            if key in config and config[key] != "sentence_embedding" and config[key] is not None
        ),
        None,
    )
    if activation is None or config.get("use_residual") or other is not None:
        what = f"activation {named}" if activation is None else other or "use_residual"
        raise CheckpointError(
            f"{place / 'config.json'}: a Dense module with {what} is not offered; activations are "
            f"{', '.join(get_args(Activation))}: train the model with the plugin `sbert`"
        )
    return Layer(int(config["in_features"]), int(config["out_features"]), bool(config.get("bias", True)), activation)


def _weights(place: Path, layer: Layer) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    names = {"linear.weight", "linear.bias"} if layer.bias else {"linear.weight"}
    try:
        file = place / "model.safetensors"
        found = load_file(file) if file.is_file() else torch.load(place / "pytorch_model.bin", weights_only=True)
        weights = {name: cast(Tensor, found[name]).float() for name in names}
    except Exception as error:  # SafetensorError, OSError, UnpicklingError, KeyError
        reason = one_line(error, 160)
        raise CheckpointError(
            f"the projection in {place} cannot be read ({type(error).__name__}: {reason}): copy it again"
        ) from None
    if weights["linear.weight"].shape != (layer.outputs, layer.inputs):
        raise CheckpointError(
            f"the projection in {place} has weights of shape {list(weights['linear.weight'].shape)}, its config.json "
            f"says {[layer.outputs, layer.inputs]}: copy both from the same model"
        )
    return weights


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}): restore the file") from None
