"""Starting values of a learned scale and bias: as configured, as in the model, or as in the paper."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import nn

from embed_core.errors import ConfigError

if TYPE_CHECKING:
    from embed_core.protocols import Model
    from embed_vision.losses.config import ClipLossConfig, SiglipLossConfig

CLIP_TEMPERATURE = 0.07
SIGLIP_SCALE, SIGLIP_BIAS = 10.0, -10.0


def start_of_clip(config: ClipLossConfig, model: Model | None) -> float:
    """The natural logarithm of the scale at the start. Raises ConfigError where it is beyond ``max_scale``."""
    limit = math.log(config.max_scale)
    if config.temperature is None:
        found = model_value(model, "logit_scale")
        return min(-math.log(CLIP_TEMPERATURE) if found is None else found, limit)
    start = -math.log(config.temperature)
    if start > limit:
        raise ConfigError(
            f"loss.temperature={config.temperature:g} is a scale of {1 / config.temperature:g}, above max_scale="
            f"{config.max_scale:g}: raise max_scale, or the temperature to {1 / config.max_scale:g}"
        )
    return start


def start_of_siglip(config: SiglipLossConfig, model: Model | None) -> tuple[float, float]:
    """The natural logarithm of the scale at the start, and the bias."""
    scale, bias = model_value(model, "logit_scale"), model_value(model, "logit_bias")
    if config.scale is not None or scale is None:
        scale = math.log(config.scale or SIGLIP_SCALE)
    if config.bias is not None or bias is None:
        bias = SIGLIP_BIAS if config.bias is None else config.bias
    return scale, bias


def model_value(model: Model | None, name: str) -> float | None:
    """The value of the model's one-element parameter or buffer whose name ends in ``name``, or None.

    CLIPModel has ``logit_scale``, SiglipModel also ``logit_bias``; adapters and wrappers only add prefixes.
    """
    if not isinstance(model, nn.Module):
        return None
    held: list[Any] = [*model.named_parameters(), *model.named_buffers()]
    return next((float(v.detach()) for key, v in held if key.split(".")[-1] == name and v.numel() == 1), None)
