"""Puts the finished model into the output directory itself, if a config asks for it (``checkpoint.in_output_dir``)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from embed_sbert.config import KIND


def publish(output_dir: Path, export_dir: Path) -> None:
    """Link the files of ``export_dir`` into ``output_dir``; copy them where the file system has no links."""
    for source in sorted(export_dir.rglob("*")):
        target = output_dir / source.relative_to(export_dir)
        if source.is_dir():
            target.mkdir(exist_ok=True)
            continue
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)


def is_asked_for(output_dir: Path) -> bool:
    """Whether the run's own config, which lies in the directory, asks for it."""
    path = output_dir / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    return isinstance(config, Mapping) and _asks(config.get("checkpoint"))


def _asks(checkpoint: Any) -> bool:
    """Whether a checkpoint config asks for it: one of this kind, or one around it (`matryoshka`)."""
    if not isinstance(checkpoint, Mapping):
        return False
    if checkpoint.get("kind") == KIND:
        return bool(checkpoint.get("in_output_dir"))
    return _asks(checkpoint.get("inner"))
