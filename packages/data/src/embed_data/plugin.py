"""Dataset kinds: ``pydocs``, the corpus that is on every machine, and ``auto``, that or the user's own file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embed_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embed_core.config.base import DatasetConfig


@hookimpl
def embed_register_datasets() -> Sequence[type[DatasetConfig]]:
    """``pydocs`` and ``auto``."""
    from embed_data.config import AutoConfig, PydocsConfig

    return [PydocsConfig, AutoConfig]
