"""Finds weights that a checkpoint lacks: sentence-transformers does not check, and transformers only logs them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGER = "transformers.modeling_utils"
_MISSING = re.compile(r"^\W*([\w.{},\- ]+?)\s*\|.*\bMISSING\b", re.MULTILINE)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class _Kept(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def lacking() -> Iterator[list[str]]:
    """Names of the weights that loading inside the block draws at random, without poolers; filled when it ends."""
    names: list[str] = []
    handler = _Kept(logging.WARNING)
    logger = logging.getLogger(_LOGGER)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield names
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
        found = (name for message in handler.messages for name in _MISSING.findall(_COLOURS.sub("", message)))
        names += [name.strip() for name in found if "pooler." not in name]
