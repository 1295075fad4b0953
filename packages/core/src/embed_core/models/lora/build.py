"""Builds a model with adapters: builds the inner model, freezes its encoder and inserts peft's layers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from embed_core.config.context import BuildContext
from embed_core.errors import ConfigError
from embed_core.models.lora.config import LoraModelConfig
from embed_core.models.lora.model import LoraModel
from embed_core.models.lora.targets import check_kept, resolve, roots_of


def build_model(config: LoraModelConfig, context: BuildContext) -> LoraModel:
    """The model of a run. Raises ConfigError without peft, for layers that are not there and for an adapter without a
    base; CheckpointError for an adapter that does not fit."""
    _check_peft()
    inner: Any = config.inner.build(context)
    model = adapt(inner, config, context)
    context.announce(summary(model, config))
    return model


def adapt(inner: nn.Module, config: LoraModelConfig, context: BuildContext) -> LoraModel:
    """Insert adapters into ``inner`` itself, as ``config`` says; their weights are drawn from ``context.seed``."""
    from embed_core.models.from_scratch.encoder import seeded
    from embed_core.models.lora import adapter

    roots = roots_of(inner)
    check_kept(roots, config.modules_to_save)
    targets = resolve(roots, config.target_modules, config.modules_to_save)
    bases = {name: _base(roots[name], config, single=len(targets) == 1) for name in targets}
    for module in roots.values():
        module.requires_grad_(False)
        _call_every_layer(module)
    if not config.train_heads:
        inner.requires_grad_(False)
    settings = {name: _settings(config, layers, bases[name]) for name, layers in targets.items()}
    if config.adapter is not None:
        settings = adapter.read_settings(config, {n: (roots[n], s) for n, s in settings.items()})
    # The inner model has drawn from `seed`, and its heads perhaps from `seed + 1`.
    with seeded(context.seed + 2):
        handles = {name: _inject(roots[name], one) for name, one in settings.items()}
    if config.adapter is not None:
        adapter.load(config.adapter, inner, handles, context.announce)
    return LoraModel(inner, handles, config)


def summary(model: LoraModel, config: LoraModelConfig) -> str:
    """One line: ``LoRA r 16, alpha 32: trainable 0.42 M of 24.1 M parameters (1.7 %)``."""
    from embed_core.zero.optimizer import count_parameters

    trained = count_parameters(p for p in model.parameters() if p.requires_grad)
    everything = count_parameters(model.parameters())
    kind = "DoRA" if config.use_dora else "LoRA"
    return (
        f"{kind} r {config.r}, alpha {config.alpha}: trainable {_millions(trained)} of {_millions(everything)} "
        f"parameters ({100 * trained / everything:.2g} %)"
    )


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g} M" if count >= 1e5 else f"{count:,}"


def _check_peft() -> None:
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"model.kind 'lora' needs peft, which cannot be imported ({error}): pip install 'embed-core[lora]'"
        ) from None


def _base(root: Any, config: LoraModelConfig, *, single: bool) -> str:
    """The place where peft finds the weights of the base model. Raises ConfigError where they are saved nowhere."""
    loaded_from = str(getattr(root, "name_or_path", "") or "")
    if not loaded_from:
        if config.export == "adapter":
            raise ConfigError(
                f"model.export: 'adapter' needs a base that others can load, and the {type(root).__name__} of "
                f"model.inner ({config.inner.kind!r}) was drawn at random: use 'merged'"
            )
        return ""
    # The name that the user gave: a name of the hub is worth more than a path in this machine's cache.
    given = str(getattr(config.inner, "name_or_path", "")) if single else ""
    base = given or loaded_from
    return str(Path(base).expanduser().resolve()) if Path(base).expanduser().is_dir() else base


def _settings(config: LoraModelConfig, layers: list[str], base: str) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        base_model_name_or_path=base or None,
        revision=getattr(config.inner, "revision", None),
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=layers,
        modules_to_save=list(config.modules_to_save) or None,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
    )


def _inject(root: nn.Module, settings: Any) -> Any:
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns that a model other than a language model has no task
        return get_peft_model(root, settings, autocast_adapter_dtype=False)


def _call_every_layer(root: nn.Module) -> None:
    """Turn off the fast path of torch's encoder layer, which in evaluation reads weights without calling the layers
    that hold them, and so skips their adapters. Without a known activation it is not taken."""
    for module in root.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
