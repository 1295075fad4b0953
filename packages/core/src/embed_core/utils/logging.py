"""Keeps libraries quiet while the live display runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger


@contextmanager
def quiet_transformers(*others: str) -> Iterator[None]:
    """Turn off progress bars and load reports, which would run through the live display; errors are still raised.

    ``others`` names loggers of libraries on top of transformers, which then report errors only, too.
    """
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    loggers = [(logger, logger.level) for logger in map(getLogger, others)]
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for logger, _ in loggers:
        logger.setLevel(ERROR)
    try:
        yield
    finally:
        for logger, before in loggers:
            logger.setLevel(before)
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
