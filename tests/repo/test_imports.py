"""Who may import whom, and what must stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MEMBERS = {
    next((path.parent / "src").iterdir()).name: path.parent / "src"
    for path in sorted((*ROOT.glob("packages/*/pyproject.toml"), ROOT / "cli/pyproject.toml"))
}
ALWAYS = {"embed_core": {"embed_core"}, "embed_cli": {"embed_cli", "embed_core"}}
HEAVY = ("torch", "transformers", "deepspeed", "sentence_transformers")
LIGHT_FILES = ("plugin.py", "config.py", "recipe.py")


def allowed(member: str) -> set[str]:
    """Core: itself. CLI: core. A plugin: itself, core and the CLI, whose Typer conventions its commands may share."""
    return ALWAYS.get(member, {member, "embed_core", "embed_cli"})


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0], node.lineno


def trespasses(member: str, source: str) -> list[tuple[str, int]]:
    """Imports of our packages that ``member`` may not make."""
    return [
        (name, line)
        for name, line in imported(ast.parse(source))
        if name.startswith("embed_") and name not in allowed(member)
    ]


def modules(files: tuple[str, ...]) -> list[str]:
    return [
        ".".join(path.relative_to(source).with_suffix("").parts)
        for source in MEMBERS.values()
        for path in sorted(source.rglob("*.py"))
        if path.name in files
    ]


@pytest.mark.parametrize("member", sorted(MEMBERS))
def test_packages_import_only_what_they_may(member: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted(MEMBERS[member].rglob("*.py"))
        for name, line in trespasses(member, path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


def test_the_scan_sees_trespasses() -> None:
    """Also inside functions and under TYPE_CHECKING: a type that is imported is a dependency too."""
    assert trespasses("embed_core", "def f():\n    from embed_bge.model import x\n") == [("embed_bge", 2)]
    assert trespasses("embed_bge", "import embed_data.config") == [("embed_data", 1)]
    assert trespasses("embed_cli", "if TYPE_CHECKING:\n    from embed_bge import y") == [("embed_bge", 2)]
    assert trespasses("embed_bge", "from embed_core.types import Batch\nfrom . import model\nimport torch") == []
    assert {"embed_core", "embed_cli", "embed_bge", "embed_data"} <= set(MEMBERS)


def test_what_is_imported_is_declared() -> None:
    """A package of ours that a member imports is among its dependencies."""
    for member, source in MEMBERS.items():
        project = tomllib.loads((source.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        declared = {dependency.split("=")[0].split(">")[0].replace("-", "_") for dependency in project["dependencies"]}
        used = {
            name for path in source.rglob("*.py") for name, _ in imported(ast.parse(path.read_text(encoding="utf-8")))
        }
        missing = {name for name in used if name.startswith("embed_")} - declared - {member}
        assert not missing, f"{member} imports {missing} without depending on it"


IMPORT_EACH = f"""
import importlib, os, pydantic, sys, typer
for module in sys.argv[1:]:
    if not os.fork():
        importlib.import_module(module)
        print(module, *[name for name in {HEAVY!r} if name in sys.modules], flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, f"{{module}} cannot be imported on its own"
"""


def heavy_after(*names: str) -> dict[str, list[str]]:
    """Which heavy packages each module imports on its own, in a fork of a Python that has imported none of ours."""
    answer = subprocess.run([sys.executable, "-c", IMPORT_EACH, *names], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return {module: heavy for module, *heavy in map(str.split, answer.stdout.splitlines())}


def test_modules_are_light() -> None:
    names = ["embed_cli", "embed_cli.main", "embed_core.plugin.manager", *modules(LIGHT_FILES)]
    assert heavy_after(*names) == {name: [] for name in names}, "importing these must stay free of torch"


def test_the_light_check_sees_torch() -> None:
    assert "torch" in heavy_after("torch")["torch"]


def at_load(body: list[ast.stmt]) -> Iterator[str]:
    """Modules that the statements import when they are loaded: not inside functions, not for type checkers."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from at_load(node.orelse)
        elif isinstance(node, (ast.If, ast.Try, ast.With, ast.ClassDef)):
            yield from at_load([*node.body, *getattr(node, "orelse", [])])


def rooms(source: Path, folder: Path) -> dict[str, set[str]]:
    """Which children of ``folder``, sub-folders whole and files one by one, import which when they are loaded."""
    prefix = ".".join(folder.relative_to(source).parts)
    children = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    found: dict[str, set[str]] = {name: set() for name in children}
    for path in folder.rglob("*.py"):
        own = path.relative_to(folder).with_suffix("").parts[0]
        for module in at_load(ast.parse(path.read_text(encoding="utf-8")).body):
            other = module.removeprefix(f"{prefix}.").split(".")[0]
            if module.startswith(f"{prefix}.") and other in children - {own}:
                found[own].add(other)
    return found


def cycle(graph: dict[str, set[str]], start: str) -> list[str]:
    """A way along the imports from ``start`` back to it; empty where there is none."""
    ways, seen = [[start]], set()
    while ways:
        way = ways.pop()
        for name in graph[way[-1]]:
            if name == start:
                return [*way, start]
            if name not in seen:
                seen.add(name)
                ways.append([*way, name])
    return []


@pytest.mark.parametrize("member", sorted(MEMBERS))
def test_folders_import_each_other_without_a_cycle(member: str) -> None:
    top = MEMBERS[member] / member
    for folder in (top, *(path for path in sorted(top.rglob("*")) if (path / "__init__.py").is_file())):
        graph = rooms(MEMBERS[member], folder)
        for name in sorted(graph):
            if (folder / name).is_dir():
                assert not cycle(graph, name), f"{folder.relative_to(ROOT)}: {' → '.join(cycle(graph, name))}"


def test_a_cycle_is_seen() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b", "a"}}, "a") == ["a", "b", "c", "a"]
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}, "a") == []
    imports = (
        "import os\nif TYPE_CHECKING:\n    import a\nelse:\n    import b\ntry:\n    from c import d\nexcept E: pass"
    )
    assert list(at_load(ast.parse(imports).body)) == ["os", "b", "c", "c.d"]
