"""Which Python the Makefile makes the environment with."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

MAKE = shutil.which("make") or "make"


def made_with(root: Path, tmp_path: Path, *options: str, **pythons: bool) -> subprocess.CompletedProcess[str]:
    """``make`` of an environment where just these Pythons are on the path; the ones that are False do not run."""
    for name, runs in pythons.items():
        program = tmp_path / name.replace("_", ".")
        program.write_text(f"#!/bin/sh\nexit {0 if runs else 127}\n")
        program.chmod(0o755)
    command = [
        MAKE,
        "--dry-run",
        "--no-print-directory",
        *options,
        f"VENV={tmp_path}/env",
        f"{tmp_path}/env/bin/python",
    ]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS")}
    return subprocess.run(
        command, cwd=root, env={**environment, "PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("pythons", "newest"),
    [
        ({"python3_11": True}, "python3.11"),
        ({"python3_11": True, "python3_12": True}, "python3.12"),
        ({"python3_12": True, "python3_13": True}, "python3.13"),
        ({"python3_11": True, "python3_12": False}, "python3.11"),  # a pyenv shim of a version that is not active
    ],
)
def test_the_newest_python_that_runs(root: Path, tmp_path: Path, pythons: dict[str, bool], newest: str) -> None:
    assert made_with(root, tmp_path, **pythons).stdout == f"{newest} -m venv {tmp_path}/env\n"


def test_a_python_that_is_named(root: Path, tmp_path: Path) -> None:
    assert made_with(root, tmp_path, "PYTHON=/opt/python", python3_12=True).stdout.startswith("/opt/python -m venv")


def test_no_python_is_one_line(root: Path, tmp_path: Path) -> None:
    answer = made_with(root, tmp_path, python3_12=False)
    assert answer.returncode == 2
    (line,) = answer.stderr.splitlines()
    assert (
        "none of python3.13 python3.12 python3.11 runs here: install one of them, or name one with make PYTHON=" in line
    )
