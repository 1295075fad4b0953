"""The command itself: help, plugin commands, schema, plugins, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from embed_cli import main as module

COMMANDS = """
from embed_core.errors import DataError
from embed_core.plugin.hookspecs import hookimpl

@hookimpl
def embed_register_commands(app):
    @app.command("greet")
    def greet(name: str) -> None:
        \"\"\"Say hello.\"\"\"
        if name == "nobody":
            raise DataError("nobody is there: name somebody")
        print(f"hello, {name}")
"""

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def embed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """``embed("run", "--help")`` → exit code, stdout, stderr; in this process, on an app of its own."""
    app = typer.Typer(name="embed", no_args_is_help=True, add_completion=False)
    app.registered_commands = list(module.app.registered_commands)
    app.registered_callback = module.app.registered_callback
    app.info = module.app.info
    monkeypatch.setattr(module, "app", app)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["embed", *arguments])
        code = 0
        try:
            module.main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def make(name: str, source: str) -> None:
        info = site / f"embed_{name}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: embed-{name}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[embed]\n{name} = main_{name}_plugin\n")
        (site / f"main_{name}_plugin.py").write_text(source)
        monkeypatch.delitem(sys.modules, f"main_{name}_plugin", raising=False)

    return make


def test_help_names_every_command(embed: Call) -> None:
    code, out, err = embed("--help")
    assert (code, err) == (0, "")
    assert all(name in out for name in ("run", "plugins", "schema"))
    assert "local_rank" not in out
    assert "--max-steps" in embed("run", "--help")[1]


def test_version(embed: Call) -> None:
    assert embed("--version") == (0, "embed 0.1.0\n", "")


def test_an_unknown_command_or_option_is_a_usage_error(embed: Call) -> None:
    assert embed("rnu")[0] == 2
    code, _, err = embed("run", "--max-step", "3")
    assert code == 2
    assert "--max-steps" in err


def test_plugin_commands_are_listed_and_run(embed: Call, install: Callable[[str, str], None]) -> None:
    install("greeter", COMMANDS)
    assert "Say hello." in embed("--help")[1]
    assert embed("greet", "world") == (0, "hello, world\n", "")
    assert embed("greet", "nobody") == (2, "", "error: nobody is there: name somebody\n")


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("1 / 0", "plugin 'broken' (embed-broken 1.5) cannot be imported: ZeroDivisionError: division by zero"),
        (COMMANDS.replace('@app.command("greet")', "1 / 0"), "division by zero"),
        (COMMANDS.replace("(app)", "()"), "takes 0 positional arguments but 1 was given"),
        ("EMBED_API_VERSION = 9", "is written for hook API 9"),
    ],
)
def test_a_plugin_whose_commands_fail_only_warns(
    embed: Call, install: Callable[[str, str], None], source: str, cause: str
) -> None:
    install("broken", source)
    code, out, err = embed("--help")
    assert code == 0
    assert "schema" in out
    (line,) = err.splitlines()
    assert line.startswith("warning: commands of plugin 'broken' are missing: ")
    assert cause in line
    assert embed("schema")[2] == "", "our own commands do not even look"


def test_plugins_lists_and_checks_names(embed: Call, install: Callable[[str, str], None]) -> None:
    install("broken", "1 / 0")
    code, out, _ = embed("plugins", "--plugin", "hello")
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert " active" in rows["hello"]
    assert " failed " in rows["broken"]
    assert "embed-broken  " in rows["broken"]
    assert "ZeroDivisionError" in rows["broken"]
    code, _, err = embed("plugins", "--plugin", "helo")
    assert (code, err.startswith("error: plugin 'helo' is not installed: did you mean 'hello'?")) == (2, True)


def test_schema_is_json(embed: Call) -> None:
    code, out, _ = embed("schema", "--plugin", "hello")
    assert code == 0
    assert "HelloModelConfig" in json.loads(out)["$defs"]
    code, out, _ = embed("schema", "--plugin", "hello", "--recipe")
    assert code == 0
    assert {"epochs", "margin"} <= set(json.loads(out)["properties"])


def test_recipe_schema_needs_a_plugin(embed: Call) -> None:
    code, out, err = embed("schema", "--recipe")
    assert (code, out) == (2, "")
    assert err == "error: --recipe: name a plugin that has one, for instance --plugin bge\n"


def test_the_deepspeed_launchers_option_is_taken(embed: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "")
    monkeypatch.delenv("LOCAL_RANK")
    code, out, _ = embed("--local_rank=1", "run", "--plugin", "hello", "--dry-run")
    assert code == 0
    assert "kind: hello" in out
    assert os.environ["LOCAL_RANK"] == "1"


def test_importing_main_imports_nothing_heavy() -> None:
    code = "import embed_cli.main, sys; print(sorted({'torch', 'pydantic', 'numpy', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
