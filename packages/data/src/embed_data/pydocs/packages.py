"""The installed source that the embedded corpus is read from: found, never imported."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

STDLIB = "stdlib"
_NOT_DOCUMENTATION = {"test", "tests", "testing", "_internal", "idle_test", "testdata", "examples", "turtledemo"}
_NOT_ITS_OWN = {"_vendor", "vendor", "_vendored", "third_party", "_bundled", "site-packages", "dist-packages"}
SKIPPED = frozenset(_NOT_DOCUMENTATION | _NOT_ITS_OWN | {"__pycache__"})
"""Folders that are not read."""


@dataclass(frozen=True, slots=True)
class Package:
    """Installed Python source."""

    name: str
    """``stdlib``, or the import name."""
    version: str
    root: Path

    def modules(self) -> Iterator[tuple[str, Path]]:
        """Dotted name and file of every module, sorted by name; tests and vendored code left out."""
        prefix = () if self.name == STDLIB else (self.name,)
        found = []
        for path in self.root.rglob("*.py"):
            inside = path.relative_to(self.root)
            if not SKIPPED.intersection(inside.parts[:-1]) and not inside.name.startswith("test_"):
                parts = (*prefix, *inside.with_suffix("").parts)
                found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
        yield from sorted(found)


def find_packages(names: tuple[str, ...]) -> list[Package]:
    """Those of ``names`` that are installed as source. ``stdlib`` is the running Python's own library."""
    found = [_stdlib() if name == STDLIB else _installed(name) for name in names]
    return [package for package in found if package is not None]


def _stdlib() -> Package | None:
    root = Path(sysconfig.get_path("stdlib"))
    return Package(STDLIB, platform.python_version(), root) if root.is_dir() else None


def _installed(name: str) -> Package | None:
    # Of a top-level name find_spec looks for files only; of a dotted one it would import the parent.
    spec = importlib.util.find_spec(name) if "." not in name and name not in sys.builtin_module_names else None
    if spec is None or not spec.submodule_search_locations:
        return None
    root = Path(next(iter(spec.submodule_search_locations)))
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = "?"
    return Package(name, version, root) if root.is_dir() else None
