"""Compare what two trainings answered: a worker's JSON of losses, metrics, gradients and weights."""

from __future__ import annotations

from typing import Any

import pytest


def assert_same_training(found: Any, wanted: Any, tolerance: float) -> None:
    """Every step and the weights after the last agree within ``tolerance``, weights within ten times as much."""
    for one, other in zip(found["steps"], wanted["steps"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=tolerance)
        assert one["metrics"] == pytest.approx(other["metrics"], abs=tolerance)
        assert one["gradients"].keys() >= other["gradients"].keys()
        for name, gradient in one["gradients"].items():
            # A part that no loss reads has no gradient on one rank, and zeros where ranks add theirs up.
            wanted_gradient = other["gradients"].get(name, [0.0] * len(gradient))
            assert gradient == pytest.approx(wanted_gradient, abs=tolerance), name
    for name, weights in found["weights"].items():
        assert weights == pytest.approx(wanted["weights"][name], abs=10 * tolerance), name
