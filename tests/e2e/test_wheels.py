"""The wheels, installed into an environment that has none of this repository, give a working `embed`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MEMBERS = [
    "packages/core",
    "cli",
    *sorted(
        f"packages/{path.parent.name}" for path in ROOT.glob("packages/*/pyproject.toml") if path.parent.name != "core"
    ),
]
EXAMPLE = "examples/embed-hello"
INSTALLED = ("embed_core", "embed_cli", "embed_hello")


def call(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """Standard output of a command that must succeed."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cpu"}
    answer = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False,
        env={**clean, **threads, **environment},
    )  # fmt: skip
    assert answer.returncode == 0, f"{' '.join(map(str, command))}\n{answer.stdout}\n{answer.stderr}"
    return answer.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every wheel of the repository."""
    folder = tmp_path_factory.mktemp("wheels")
    for member in (*MEMBERS, EXAMPLE):
        call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT / member)
    return folder


def install(python: Path, wheels: Path, *options: str) -> None:
    chosen = [next(wheels.glob(f"{name}-*.whl")) for name in INSTALLED]
    call(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options, *chosen)


def check_environment(python: Path, folder: Path) -> None:
    """`embed run --plugin hello` trains, from a directory that is not the repository, with the installed code."""
    program = f"import importlib; print(*[importlib.import_module(n).__file__ for n in {INSTALLED!r}], sep='\\n')"
    for origin in call(python, "-c", program, cwd=folder).split():
        assert Path(origin).is_relative_to(python.parents[1]), f"{origin} is not in the new environment"
    command = python.with_name("embed")
    listed = call(command, "plugins", cwd=folder, COLUMNS="200")
    assert "embed-hello" in listed
    assert "embed-bge" not in listed, "only what was installed is there"
    assert "failed" not in listed
    call(command, "run", "--plugin", "hello", "--output-dir", folder / "out", cwd=folder)
    metrics = [json.loads(line) for line in (folder / "out/metrics.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in metrics if "loss" in entry]
    assert losses[-1] < losses[0] / 2, "it learns"
    before, *_, after = [entry["evaluation"] for entry in metrics if "evaluation" in entry]
    measure = "held-out/dense/nDCG@10"
    assert after[measure] > before[measure] + 0.05, "it ranks held-out rows better than before"
    reload = f"from embed_hello.checkpoint import load; print(load({str(folder / 'out/model')!r}).sizes.dimension)"
    assert call(python, "-c", reload, cwd=folder).strip() == "128"


@pytest.mark.e2e
def test_wheels_hold_what_they_need(wheels: Path) -> None:
    for member in (*MEMBERS, EXAMPLE):
        name = next((ROOT / member / "src").iterdir()).name
        (wheel,) = wheels.glob(f"{name}-*.whl")
        inside = set(zipfile.ZipFile(wheel).namelist())
        source = ROOT / member / "src"
        files = {
            path.relative_to(source).as_posix()
            for path in source.rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }
        missing = files - inside
        assert not missing, f"{wheel.name} lacks {sorted(missing)}"
        assert any(entry.endswith("/METADATA") for entry in inside)


@pytest.mark.e2e
def test_hello_runs_from_wheels(wheels: Path, tmp_path: Path) -> None:
    """The third-party libraries are lent by this environment, one by one; our own packages only come from wheels."""
    call(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env")
    python = tmp_path / "env/bin/python"
    lent = tmp_path / "lent"
    lent.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if (
            not entry.name.lower().startswith(("embed_", "_editable", "__editable", "__pycache__"))
            and entry.suffix != ".pth"
        ):
            (lent / entry.name).symlink_to(entry)
    site = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "lent.pth").write_text(f"{lent}\n")
    # Without what is lent, nothing is there: the editable installs of this environment do not shine through.
    found = call(
        python, "-c", f"import importlib.util as u; print([u.find_spec(n) is not None for n in {INSTALLED!r}])"
    )
    assert found.strip() == "[False, False, False]"
    install(python, wheels, "--no-deps", "--no-index")
    check_environment(python, tmp_path)


@pytest.mark.slow
def test_hello_runs_in_an_empty_environment(wheels: Path, tmp_path: Path) -> None:
    """Nothing lent: pip resolves and installs every dependency from the package index, at the tested versions."""
    call(sys.executable, "-m", "venv", tmp_path / "env")
    python = tmp_path / "env/bin/python"
    call(
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-c",
        ROOT / "constraints.txt",
        "torch",
    )
    install(python, wheels, "-c", str(ROOT / "constraints.txt"))
    check_environment(python, tmp_path)
