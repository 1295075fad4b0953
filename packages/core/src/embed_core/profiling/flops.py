"""Counts the floating-point operations (FLOPs) of a transformer's step, from its weights and the texts' lengths.

The model of Kaplan et al. 2020 (arXiv 2001.08361) and of PaLM's appendix B (arXiv 2204.02311): a token costs 2 FLOPs
per weight that multiplies it and 4 · width per layer and token it attends to, and twice as much again in the backward:
6·N + 12 · layers · width · length in all. What is only looked up (embeddings) or added (biases) counts nothing. These
are the *model's* FLOPs: padding, and forwards that are repeated (GradCache, checkpointing), are the implementation's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Configs of mixtures of experts have one of these fields: a token then passes only a part of the weights."""


@dataclass(frozen=True, slots=True)
class TransformerCost:
    """FLOPs of texts by their lengths in tokens."""

    weights: int
    """Weights that multiply every token."""
    weights_backward: int
    """Products of that size in the backward: one for the gradient of each trained weight, one to pass it on."""
    layers: int
    width: int
    """Width of all attention heads together."""
    layers_backward: int
    """Layers with anything trained in or below them: a gradient passes their attention."""

    def forward(self, tokens: float, squares: float) -> float:
        """FLOPs of a forward over ``tokens`` tokens without padding; ``squares`` sums the texts' squared lengths."""
        return 2.0 * self.weights * tokens + 4.0 * self.layers * self.width * squares

    def backward(self, tokens: float, squares: float) -> float:
        """FLOPs of a backward over the same texts."""
        return 2.0 * self.weights_backward * tokens + 8.0 * self.layers_backward * self.width * squares

    def training(self, tokens: float, squares: float) -> float:
        """FLOPs of one forward and one backward."""
        return self.forward(tokens, squares) + self.backward(tokens, squares)


@dataclass(frozen=True, slots=True)
class Parameters:
    """Numbers of a model's parameters."""

    total: int
    trainable: int
    embedding: int
    """Parameters of embedding tables, which are looked up."""
    non_embedding: int


def count(model: nn.Module) -> Parameters:
    """Count every parameter once, sharded ones in full."""
    each = [(_size(p), p.requires_grad, _is_table(owner)) for _, owner, p in _parameters(model)]
    total, tables = sum(size for size, _, _ in each), sum(size for size, _, table in each if table)
    trainable = sum(size for size, trained, _ in each if trained)
    return Parameters(total, trainable, embedding=tables, non_embedding=total - tables)


def cost_of(model: nn.Module) -> TransformerCost | None:
    """The cost of ``model``; ``None`` unless it is one transformer with heads on its tokens.

    It is ``None`` for models without attention, several towers (a text passes one of them) and mixtures of experts.
    """
    shape = _shape(model)
    if shape is None:
        return None
    weights = backward = 0
    trained_below = False
    for name, owner, parameter in _parameters(model):
        multiplies = len(_dimensions(parameter)) > 1 and not _is_table(owner)
        # A frozen pooler is there for the checkpoint's sake: no embedding reads it.
        if multiplies and not ("pooler" in name.split(".") and not parameter.requires_grad):
            size = _size(parameter)
            weights += size
            backward += size * (parameter.requires_grad + trained_below)
        trained_below = trained_below or parameter.requires_grad
    layers, width = shape
    return TransformerCost(weights, backward, layers, width, _layers_with_gradient(model, layers))


def recomputes(model: nn.Module) -> bool:
    """Whether any layer checkpoints its activations."""
    return any(getattr(part, "gradient_checkpointing", False) is True for part in model.modules())


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Name, owner and parameter, each parameter once, in the order of the modules: about that of the forward."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{prefix}.{name}", module, parameter


def _is_table(owner: nn.Module) -> bool:
    return isinstance(owner, (nn.Embedding, nn.EmbeddingBag))


def _dimensions(parameter: Any) -> Sequence[int]:
    # Under ZeRO-3 the parameter itself is an empty stand-in.
    shape: Sequence[int] = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def _size(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _layers_with_gradient(model: nn.Module, layers: int) -> int:
    tower = next(part for part in model.modules() if _is_transformer(part))
    stack = next((part for part in tower.modules() if isinstance(part, nn.ModuleList) and len(part) == layers), None)
    if stack is None:
        return layers if _is_trained(tower) else 0
    inside = {id(parameter) for parameter in stack.parameters()}
    tables = [p for _, owner, p in _parameters(tower) if _is_table(owner) and id(p) not in inside]
    if any(table.requires_grad for table in tables):
        return layers
    return layers - next((number for number, layer in enumerate(stack) if _is_trained(layer)), layers)


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _is_transformer(part: nn.Module) -> bool:
    config = getattr(part, "config", None)
    return all(isinstance(getattr(config, key, None), int) for key in ("num_hidden_layers", "hidden_size"))


def _shape(model: nn.Module) -> tuple[int, int] | None:
    """(layers, width of all heads) of the one transformer in ``model``, by transformers' config."""
    configs: dict[int, Any] = {id(part.config): part.config for part in model.modules() if _is_transformer(part)}
    if len(configs) != 1:
        return None
    (config,) = configs.values()
    if any(getattr(config, key, None) for key in EXPERTS):
        return None
    heads, head = getattr(config, "num_attention_heads", None), getattr(config, "head_dim", None)
    width = heads * head if isinstance(heads, int) and isinstance(head, int) else config.hidden_size
    return int(config.num_hidden_layers), int(width)
