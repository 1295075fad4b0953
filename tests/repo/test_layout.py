"""The packages are alike, of one version, and the repository speaks of nothing outside itself."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYPROJECTS = sorted((*ROOT.glob("packages/*/pyproject.toml"), ROOT / "cli/pyproject.toml"))


def project(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    return found


def version(path: Path) -> str:
    source = next((path.parent / "src").iterdir()) / "__init__.py"
    found = re.search(r'^__version__ = "([^"]+)"$', source.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert found is not None, f"{source} states no __version__"
    return found[1]


def test_versions_are_in_lockstep() -> None:
    versions = {project(path)["name"]: version(path) for path in PYPROJECTS}
    assert len(set(versions.values())) == 1, versions
    (ours,) = set(versions.values())
    for path in PYPROJECTS:
        for dependency in project(path)["dependencies"]:
            if dependency.startswith("embed-"):
                assert dependency.endswith(f"=={ours}"), f"{path}: {dependency} is not pinned to {ours}"
    assert f"## {ours}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PYPROJECTS, ids=lambda path: path.parent.name)
def test_package_has_the_usual_rooms(path: Path) -> None:
    source = next((path.parent / "src").iterdir())
    data = project(path)
    assert source.name == data["name"].replace("-", "_")
    assert (source / "py.typed").exists()
    readme = (path.parent / data["readme"]).read_text(encoding="utf-8")
    assert f"# {data['name']}" in readme
    assert len(readme.split()) > 40, f"{path.parent.name}/README.md says nothing"
    for name, target in data.get("entry-points", {}).get("embed", {}).items():
        assert target == f"{source.name}.plugin", f"entry point {name}: the hooks live in plugin.py"
        assert {"embed-core", "embed-cli"} <= {word.split("=")[0] for word in data["dependencies"]}


def test_constraints_pin_every_dependency() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert pins["torch"] == "2.13.0", "no local label: pip takes the CPU build where an index has one"
    major, minor, *_ = map(int, pins["transformers"].split("."))
    assert (major, minor) < (5, 20), "ms-swift does not support newer transformers"
    names = {re.sub("[-_.]+", "-", name).lower() for name in pins}
    wanted = [word for path in PYPROJECTS for word in project(path)["dependencies"]]
    for name in ("requirements-dev.txt", "requirements-docs.txt"):
        wanted += [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    for requirement in wanted:
        name = re.sub("[-_.]+", "-", re.split(r"[=<>;\[ ]", requirement)[0]).lower()
        assert name.startswith("embed-") or name in names, f"{requirement} is not pinned in constraints.txt"


FORBIDDEN = {
    "a path of one machine": re.compile(r"/(?:work|root|home)/(?!\w*\$)[\w.]"),
    "an issue number": re.compile(
        r"\b(?:issue|issues|PR|pull request) #?\d+|(?<![\w&/])#\d{1,5}\b(?!;)", re.IGNORECASE
    ),
}


def offences(text: str) -> list[str]:
    return [f"{what}: {found[0]}" for what, pattern in FORBIDDEN.items() for found in pattern.finditer(text)]


def test_the_repository_speaks_of_itself(repo_files: list[Path]) -> None:
    kept = {Path(__file__).resolve(), ROOT / "LICENSE"}
    found = [
        f"{path.relative_to(ROOT)}: {offence}"
        for path in repo_files
        if path.resolve() not in kept and path.suffix != ".jsonl"
        for offence in offences(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert not found, "\n".join(found)


def test_the_scan_sees_offences() -> None:
    assert offences("see /work/main/x") == ["a path of one machine: /work/m"]
    assert offences("as issue 2 says")
    assert offences("fixes #12")
    assert not offences("# 1. Heading\ncolour #fff, C# 8, &#39; and framework/model")


def test_source_files_stay_small() -> None:
    """One idea a file: mostly under 200 lines; no file of ours needs more than 400."""
    sources = [path for pyproject in PYPROJECTS for path in (pyproject.parent / "src").rglob("*.py")]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources}
    long = sorted(f"{path.relative_to(ROOT)}: {lines}" for path, lines in lengths.items() if lines > 400)
    assert not long, "\n".join(long)
    assert sum(lines > 200 for lines in lengths.values()) < len(lengths) / 5
