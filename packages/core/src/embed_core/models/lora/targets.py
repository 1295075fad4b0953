"""Finds the layers that get an adapter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from embed_core.errors import ConfigError, did_you_mean
from embed_core.models.lora.config import ALL_LINEAR

Roots = Mapping[str, Any]
"""The modules in which adapters are put, by their names in the inner model."""
Targets = Mapping[str, list[str]]
"""Root → the names, in it, of the layers that get an adapter."""


def roots_of(inner: nn.Module) -> Roots:
    """The outermost transformers models, by name; the whole model, named ``""``, where there is none.

    What lies outside them, such as heads, is trained as without LoRA; and an adapter in peft's own layout is one of a
    transformers model, which is what others can load.
    """
    found = dict(_outermost(inner, ""))
    return found or {"": inner}


def _outermost(module: nn.Module, name: str) -> Iterator[tuple[str, Any]]:
    from transformers import PreTrainedModel

    if isinstance(module, PreTrainedModel):
        yield name, module
        return
    for child_name, child in module.named_children():
        yield from _outermost(child, f"{name}.{child_name}" if name else child_name)


def resolve(roots: Roots, wanted: str | Sequence[str], kept: Sequence[str]) -> Targets:
    """The layers that ``wanted`` (``model.target_modules``) names, without those inside ``kept``
    (``model.modules_to_save``).

    Raises ConfigError for a name or expression that matches nothing, with the names there are.
    """
    free = {root: [n for n in adaptable(module) if not _inside(n, kept)] for root, module in roots.items()}
    everything = [name for names in free.values() for name in names]
    if not everything:
        kinds = ", ".join(type(module).__name__ for module in roots.values())
        raise ConfigError(
            f"model.inner: {kinds} has no linear layer that is trained, so there is nothing to adapt: train the "
            "encoder (`fix_encoder: false`), or use the inner model without `kind: lora`"
        )
    if wanted == ALL_LINEAR:
        return {root: names for root, names in free.items() if names}
    if isinstance(wanted, str):
        matched = {n for n in everything if re.fullmatch(wanted, n)}
        if not matched:
            raise ConfigError(
                f"model.target_modules: the expression {wanted!r} matches no linear layer; it has to match a whole "
                f"name such as {everything[0]!r} (a list, [{wanted}], matches the ends of names): "
                f"{did_you_mean(wanted, endings(everything))}"
            )
    else:
        matched = set().union(*(_matches(one, everything) for one in wanted))
    chosen = {root: [n for n in names if n in matched] for root, names in free.items()}
    return {root: names for root, names in chosen.items() if names}


def check_kept(roots: Roots, kept: Sequence[str]) -> None:
    """Raises ConfigError for a name of ``model.modules_to_save`` that no module has, or that has one inside another."""
    names = [name for module in roots.values() for name, _ in module.named_modules() if name]
    for one in kept:
        if not any(is_end(one, name) for name in names):
            raise ConfigError(
                f"model.modules_to_save: no module of the encoder is named {one!r}: {did_you_mean(one, endings(names))}"
            )
        # peft matches names without regard to their dots.
        taken = [name for name in names if name.endswith(one)]
        inside = next((n for n in taken for outer in taken if n.startswith(f"{outer}.")), None)
        if inside is not None:
            raise ConfigError(
                f"model.modules_to_save: {one!r} ends the names of a module and of one inside it, {inside!r}, and peft "
                f"would take both: name the parts, such as {inside.rsplit('.', 1)[-1]!r}"
            )


def adaptable(root: nn.Module) -> list[str]:
    """Linear layers that are trained and called. Frozen ones are not part of the embedding (an unused pooler) or must
    not change; torch's attention reads the weights of its output layer without calling it."""
    from transformers.pytorch_utils import Conv1D

    getter = getattr(root, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    uncalled = {id(m.out_proj) for m in root.modules() if isinstance(m, nn.MultiheadAttention)}
    return [
        name
        for name, module in root.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and module.weight.requires_grad
        and module is not head
        and id(module) not in uncalled
    ]


def endings(names: Sequence[str]) -> set[str]:
    """The last part of each name that is not a number."""
    return {next((part for part in reversed(name.split(".")) if not part.isdigit()), name) for name in names}


def is_end(one: str, name: str) -> bool:
    """Whether ``name`` is ``one`` or ends with it, whole parts only: peft's rule for names in a list."""
    return name == one or name.endswith(f".{one}")


def _inside(name: str, modules: Sequence[str]) -> bool:
    parts = name.split(".")
    above = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return any(whole.endswith(one) for one in modules for whole in above)


def _matches(one: str, names: Sequence[str]) -> set[str]:
    found = {name for name in names if is_end(one, name)}
    if not found:
        raise ConfigError(
            f"model.target_modules: no linear layer that is trained is named {one!r}: "
            f"{did_you_mean(one, endings(names))}"
        )
    return found
