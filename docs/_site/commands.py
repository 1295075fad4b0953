"""The page of commands, read from the Typer app with everything that the installed plugins add to it."""

from __future__ import annotations

import inspect
from typing import Any

import typer

from embed_cli.main import add_plugin_commands, app

WORDS = {"str": "TEXT", "int": "N", "float": "NUMBER"}
"""What stands for a value of a Python type in a command line."""


def commands_page() -> str:
    """Every command and its options. Commands of other packages than this repository's appear if they are installed."""
    add_plugin_commands([])
    root = typer.main.get_command(app)
    parts = ["# Commands", "`embed COMMAND --help` prints the same in a terminal."]
    for path, command in _leaves("embed", root):
        parts += [f"## `{path}`", _help(command), _usage(path, command), _table(command)]
    return "\n\n".join(parts)


def _leaves(path: str, command: Any) -> list[tuple[str, Any]]:
    """Commands that do something, groups opened."""
    children = getattr(command, "commands", None)
    if children is None:
        return [(path, command)]
    return [leaf for name, child in children.items() for leaf in _leaves(f"{path} {name}", child)]


def _help(command: Any) -> str:
    return inspect.cleandoc(command.help or "").replace("\b\n", "")


def _usage(path: str, command: Any) -> str:
    words = [_argument(one) for one in _arguments(command)]
    needed = [f"{one.opts[0]} {_value(one, command)}" for one in _options(command) if one.required]
    return f"    {' '.join([path, *words, *needed, '[OPTIONS]'])}"


def _arguments(command: Any) -> list[Any]:
    return [one for one in command.params if one.param_type_name == "argument"]


def _options(command: Any) -> list[Any]:
    return [one for one in command.params if one.param_type_name == "option" and not one.hidden and one.name != "help"]


def _argument(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name or "").upper().strip("[]")
    return name if parameter.required else f"[{name}]"


def _table(command: Any) -> str:
    """Arguments and options; the style sheet stacks the cells of the wrapper's table on narrow screens."""
    rows = [f"| `{_argument(one)}` | {_text(one)} |" for one in _arguments(command)]
    rows += [f"| {_names(one, command)} | {_text(one)} |" for one in _options(command)]
    table = "\n".join(["| option | |", "|---|---|", *rows])
    return f'<div class="keys" markdown>\n\n{table}\n\n</div>' if rows else ""


def _names(option: Any, command: Any) -> str:
    value = "" if option.is_flag else f" {_value(option, command)}"
    names = sorted([*option.opts, *option.secondary_opts], key=len, reverse=True)
    return "<br>".join(f"`{name}{value if number == 0 else ''}`" for number, name in enumerate(names))


def _value(option: Any, command: Any) -> str:
    if option.metavar:
        return str(option.metavar)
    words = str(option.display_type(typer.Context(command))).strip("<>").removesuffix(" range")
    return words if "|" in words else WORDS.get(words.removeprefix("list[").removesuffix("]"), words.upper())


def _text(parameter: Any) -> str:
    help_ = " ".join((getattr(parameter, "help", "") or "").split()).replace("|", "\\|")
    fact = ""
    if parameter.required:
        fact = "required"
    elif not getattr(parameter, "is_flag", False) and parameter.default not in (None, (), [], ""):
        fact = f"default `{parameter.default}`"
    return "<br>".join(part for part in (f"<small>{fact}</small>" if fact else "", help_) if part)
