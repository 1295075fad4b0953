"""The public surface: modules whose names plugin authors may rely on say which those are."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = ("", ".api", ".embeddings", ".errors", ".events", ".protocols", ".scoring", ".testing", ".types")


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_listed_and_explained(name: str) -> None:
    """``__all__`` is sorted, holds what is there, and every class and function of it has a docstring."""
    module = import_module(f"embed_core{name}")
    assert sorted(module.__all__, key=str) == list(module.__all__)
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert (value.__doc__ or "").strip(), f"embed_core{name}.{public} has no docstring"


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in ("", ".api", ".scoring", ".testing")])
def test_what_a_public_module_defines_is_listed_or_private(name: str) -> None:
    path = ROOT / "packages/core/src/embed_core" / f"{name[1:]}.py"
    defined = [
        n.name
        for n in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(n, (ast.ClassDef, ast.FunctionDef))
    ]
    unlisted = [
        one for one in defined if not one.startswith("_") and one not in import_module(f"embed_core{name}").__all__
    ]
    assert not unlisted, (
        f"{path.name} defines {unlisted}: list them in __all__, or begin their names with an underscore"
    )


def test_the_example_plugin_needs_public_names_only() -> None:
    """What the complete third-party package imports is public, or one of the folders that the guide names."""
    allowed = {f"embed_core{name}" for name in PUBLIC} | {"embed_core.plugin.hookspecs"}
    folders = (
        "embed_core.config",
        "embed_core.models.hub",
        "embed_core.export",
        "embed_core.samplers",
        "embed_core.text",
    )
    for path in (ROOT / "examples/embed-hello/src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("embed_core"):
                assert node.module in allowed or str(node.module).startswith(folders), (
                    f"{path.name} imports {node.module}"
                )
