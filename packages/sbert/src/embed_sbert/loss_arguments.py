"""Turns a config's plain values into arguments of a loss's constructor: functions, distances, modules."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from embed_core.errors import ConfigError, did_you_mean

_SIMILARITIES = ("similarity_fct",)
_DISTANCES = ("distance_metric",)
_MODULES = ("loss_fct", "cos_score_transformation")
_GIVEN = ("self", "model", "guide", "gather_across_devices")


def resolved(loss: type, arguments: Mapping[str, Any], embedding_dimension: int | None) -> dict[str, Any]:
    """The keyword arguments of ``loss``'s constructor. Raises ConfigError for a name or value that it does not know."""
    # From `__init__`, because a class that is marked as deprecated shows the marker's own signature.
    parameters = inspect.signature(loss.__init__).parameters  # type: ignore[misc]
    known = [name for name in parameters if name not in _GIVEN]
    for name in arguments:
        if name not in known and name != "gather_across_devices":
            raise ConfigError(
                f"loss.arguments.{name}: {loss.__name__} has no such argument: {did_you_mean(name, known)}"
            )
    found = {name: _value(loss, name, value, parameters[name].default) for name, value in arguments.items()}
    if "embedding_dimension" in parameters and embedding_dimension is not None:
        found.setdefault("embedding_dimension", embedding_dimension)
    lacking = [name for name in known if parameters[name].default is inspect.Parameter.empty and name not in found]
    if lacking:
        raise ConfigError(f"loss.arguments: {loss.__name__} needs {lacking[0]!r}: set loss.arguments.{lacking[0]}")
    return found


def _value(loss: type, name: str, value: Any, default: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, str):
        return value
    if name in _SIMILARITIES:
        return _similarity(name, value)
    if name in _DISTANCES and callable(default):
        return _distance(loss, name, value)
    return _module(name, value) if name in _MODULES else value


def _similarity(name: str, value: str) -> Any:
    from sentence_transformers import util

    names = [one for one in util.__all__ if one.endswith(("_sim", "_score"))]
    if value.rsplit(".", 1)[-1] not in names:
        raise ConfigError(f"loss.arguments.{name}: {value!r} is no similarity: {did_you_mean(value, names)}")
    return getattr(util, value.rsplit(".", 1)[-1])


def _distance(loss: type, name: str, value: str) -> Any:
    """A distance by its name in the loss's own collection: ``COSINE``, ``cosine_distance``."""
    from sentence_transformers.sentence_transformer import losses

    collection: Any = {
        "TripletLoss": losses.TripletDistanceMetric,
        "ContrastiveLoss": losses.SiameseDistanceMetric,
        "OnlineContrastiveLoss": losses.SiameseDistanceMetric,
    }.get(loss.__name__, losses.BatchHardTripletLossDistanceFunction)
    names = [one for one in vars(collection) if not one.startswith("_")]
    wanted = value.rsplit(".", 1)[-1]
    if wanted not in names:
        raise ConfigError(f"loss.arguments.{name}: {value!r} is no distance: {did_you_mean(wanted, names)}")
    return getattr(collection, wanted)


def _module(name: str, value: str) -> Any:
    """A class by its path, ``torch.nn.L1Loss``; only of torch, since a config must not run arbitrary code."""
    from torch import nn

    found = getattr(nn, value.rsplit(".", 1)[-1], None) if value.startswith("torch.nn.") else None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ConfigError(
            f"loss.arguments.{name}: {value!r} is no module of torch: write its path, for instance 'torch.nn.MSELoss'"
        )
    return found()
