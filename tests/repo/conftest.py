"""Where things are."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted(path.parent for path in (*ROOT.glob("packages/*/pyproject.toml"), ROOT / "cli/pyproject.toml"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def packages() -> list[Path]:
    """The folders of our packages, the CLI's included, the examples' not."""
    return PACKAGES


@pytest.fixture(scope="session")
def repo_files(root: Path) -> list[Path]:
    """Text files of the repository: those git knows or would add; all but build output where there is no git."""
    answer = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=root, capture_output=True, text=True, check=False, env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
    )  # fmt: skip
    if answer.returncode == 0 and answer.stdout:
        files = [root / name for name in answer.stdout.split("\0") if name]
    else:
        hidden = {".git", ".venv", "runs", "dist", "build", "__pycache__"}
        files = [path for path in root.rglob("*") if not hidden & set(path.relative_to(root).parts)]
    return [path for path in files if path.is_file() and b"\0" not in path.read_bytes()[:4096]]
