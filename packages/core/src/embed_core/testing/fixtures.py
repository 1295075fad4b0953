"""Pytest fixtures. In a conftest: ``from embed_core.testing.fixtures import embed_context, embed_registry``.

Imported rather than registered as a pytest plugin: installing embed-core changes nobody's test session.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.plugin.manager import activate
from embed_core.protocols import Dataset


@pytest.fixture
def embed_registry() -> Callable[..., Registry]:
    """``embed_registry("hello")``: a frozen registry with the core's kinds and those of the named plugins."""

    def make(*plugins: str) -> Registry:
        return activate(plugins)[1]

    return make


@pytest.fixture
def embed_context(tmp_path: Path) -> Callable[..., BuildContext]:
    """``embed_context(registry, dataset, seed=1)``: a build context on CPU whose cache is the test's own."""

    def make(registry: Registry, dataset: Dataset | None = None, *, seed: int = 42) -> BuildContext:
        factory = None if dataset is None else (lambda: dataset)
        return BuildContext(
            registry, seed=seed, cache_dir=tmp_path / "cache", announce=lambda _: None, dataset_factory=factory
        )

    return make
