"""``engine.compile``: torch.compile over the transformers models of a run."""

from __future__ import annotations

import shutil
import sys

import torch
from torch import nn

from embed_core.errors import ConfigError


def compile_encoders(model: nn.Module) -> None:
    """Compile every outermost transformers model in ``model``, in place: names of weights stay what they are.

    Raises ConfigError where there is no such model, or on a CPU no C++ compiler.
    """
    from transformers import PreTrainedModel

    if not torch.cuda.is_available() and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise ConfigError(
            f"engine.compile: true needs a C++ compiler on this machine ({sys.platform}, no CUDA) and g++, clang++ and "
            "c++ are not on the PATH: install one, or set engine.compile: false"
        )
    outermost: list[tuple[str, nn.Module]] = []
    for name, part in model.named_modules():  # a module comes before those inside it
        inside = any(not other or name.startswith(f"{other}.") for other, _ in outermost)
        if isinstance(part, PreTrainedModel) and not inside:
            outermost.append((name, part))
    if not outermost:
        raise ConfigError(
            f"engine.compile: true finds no transformers model in {type(model).__name__}: set engine.compile: false"
        )
    for _, part in outermost:
        # Chunks differ in length: compile one graph for all lengths.
        part.compile(dynamic=True)
