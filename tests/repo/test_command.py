"""The command answers at once, and what the README tells people to type exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "embed_cli"]
LIGHT = {
    *(
        "annotated_doc",
        "annotated_types",
        "attr",
        "click",
        "markdown_it",
        "mdurl",
        "pluggy",
        "pydantic",
        "pydantic_core",
    ),
    *("pygments", "rich", "shellingham", "typer", "typing_extensions", "typing_inspection"),
}
"""All that a command may import before it knows what to do; with it `embed --help` takes a quarter of a second."""


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


def test_help_takes_no_time() -> None:
    """What takes it are imports: nothing is imported that is not on the list."""
    program = (
        "import runpy, sys\nbefore = set(sys.modules)\nsys.argv = ['embed', '--help']\n"
        "try: runpy.run_module('embed_cli', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "print(*{name.split('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names, file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    imported = set(answer.stderr.split())
    assert {"embed_cli", "embed_bge", "typer"} < imported
    assert {name for name in imported if not name.startswith(("embed_", "_"))} <= LIGHT


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["plugins"], ["schema", "--plugin", "hello"]])
def test_light_commands_import_no_torch(arguments: list[str], tmp_path: Path) -> None:
    """A torch that fails when imported stands first on the path."""
    for name in ("torch", "transformers", "deepspeed"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('{name} was imported')\n")
    answer = run(*arguments, PYTHONPATH=str(tmp_path))
    assert answer.returncode == 0, answer.stderr
    assert "was imported" not in answer.stdout + answer.stderr


def test_no_plugin_fails() -> None:
    answer = run("plugins")
    assert answer.returncode == 0
    for name in ("bge", "data", "hello"):
        assert re.search(rf"\b{name}\b", answer.stdout), f"`embed plugins` does not list {name}"
    assert "failed" not in answer.stdout, answer.stdout


GROUPS = ("data", "teacher")
"""Words that commands follow: `embed data inspect`."""


def documented_commands(text: str) -> list[str]:
    """Lines of code blocks and inline code that start with ``embed``; continued lines are joined."""
    joined = re.sub(r"\\\n\s*", " ", text)
    blocks = re.findall(r"^(?:    |\$ )?(embed [a-z].*)$", joined, flags=re.MULTILINE)
    inline = re.findall(r"`(embed [a-z][^`]*)`", joined)
    return [command.split("#")[0].split(" ← ")[0].strip() for command in (*blocks, *inline)]


def test_documented_options_exist(
    root: Path, command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    pages = [root / "README.md", *root.glob("docs/**/*.md"), *root.glob("packages/*/README.md"), root / "cli/README.md"]
    commands = {found for page in pages for found in documented_commands(page.read_text(encoding="utf-8"))}
    assert any(found.startswith("embed run --plugin bge") for found in commands)
    helps: dict[str, str] = {}
    for documented in sorted(commands):
        _, name, *rest = documented.split()
        if name in GROUPS:
            name = f"{name} {rest.pop(0)}"
        if name not in helps:
            code, helps[name], err = command(*name.split(), "--help")
            assert code == 0, f"`{documented}` is documented, but: {err}"
        for option in [word.split("=")[0] for word in rest if word.startswith("--")]:
            assert re.search(rf"{option}\b", helps[name]), f"`{documented}` is documented, but has no {option}"


def test_documented_make_targets_exist(root: Path) -> None:
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, flags=re.MULTILINE))
    steps = re.search(r"^for step in (.*); do$", (root / ".ci/run").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert steps is not None
    assert set(steps[1].split()) <= targets
    for page in (root / "README.md", *root.glob("docs/**/*.md")):
        # In code only: prose makes sense of the word, too.
        for target in re.findall(r"(?:^    |`)make ([a-z0-9-]+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
            assert target in targets, f"{page.name}: `make {target}` is no target"


def test_make_help_lists_every_target(root: Path) -> None:
    listed = subprocess.run(["make", "help"], cwd=root, capture_output=True, text=True, check=True).stdout
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    assert phony is not None
    for target in phony[1].split():
        assert re.search(rf"^{target} +\S", listed, flags=re.MULTILINE), f"`make help` does not list {target}"
