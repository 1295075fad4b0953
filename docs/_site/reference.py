"""The generated pages of the docs site: Markdown made from the plugins, the schemas, the hooks and the command line.

Nothing here imports torch or mkdocs, so the tests can look at the same pages.
"""

from __future__ import annotations

import inspect
import textwrap
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from commands import commands_page
from schema_tables import Tables, described, literal_blocks, roles

from embed_core.config.registry import SLOTS, Registry
from embed_core.config.schema import recipe_schema, run_schema
from embed_core.plugin import hookspecs
from embed_core.plugin.manager import activate

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "model": ("models", "Models", "What turns texts or pictures into embeddings. `build` returns a module."),
    "dataset": ("datasets", "Datasets", "Where rows come from. The key of a run is `data`."),
    "sampler": ("samplers", "Samplers", "Which rows make up a global batch, as a function of the seed and the step."),
    "loss": ("losses", "Losses", "What is minimised. A loss sees embeddings of the global batch, never the model."),
    "evaluator": ("evaluators", "Evaluators", "What is measured. The key of a run is `evaluation`, a list."),
    "checkpoint": ("checkpoints", "Checkpoints and exports", "When training states are saved and how a model leaves."),
}
"""Slot → name of its page, title, and what the slot is for."""
LINKS = {slot: f"{name}.md" for slot, (name, _, _) in PAGES.items()}


def first_party() -> list[str]:
    """Names of the plugins of this repository's packages, as ``--plugin`` takes them."""
    projects = [tomllib.loads(path.read_text("utf-8"))["project"] for path in ROOT.glob("packages/*/pyproject.toml")]
    return sorted(name for project in projects for name in project.get("entry-points", {}).get("embed", {}))


@cache
def registry() -> Registry:
    """Every kind and recipe of the first-party plugins."""
    return activate(first_party())[1]


@cache
def pages() -> dict[str, str]:
    """Every generated page: its path below ``docs/`` and its Markdown."""
    slots = {f"reference/{name}.md": _slot_page(slot) for slot, (name, _, _) in PAGES.items()}
    return {
        "reference/index.md": _index(),
        "reference/run.md": _run_page(),
        **slots,
        "reference/hooks.md": _hooks_page(),
        "reference/commands.md": commands_page(),
    }


def recipe_keys(name: str) -> str:
    """The table of a recipe's keys, as it stands on the recipe's page."""
    found = registry().recipe(name)
    assert found is not None, f"no recipe {name!r}"
    schema = recipe_schema(found, registry())
    slots = {slot: f"../reference/{page}" for slot, page in LINKS.items()}
    return _keys(Tables(schema.get("$defs", {}), slots).of(schema))


def _run_schema() -> tuple[dict[str, Any], dict[str, Any]]:
    schema = run_schema(registry())
    definitions = schema["$defs"]
    return definitions[schema["$ref"].rsplit("/", 1)[-1]] if "$ref" in schema else schema, definitions


def _run_page() -> str:
    run, definitions = _run_schema()
    return "\n\n".join(
        (
            "# Keys of a run",
            "Every recipe compiles to a run with these keys; `embed run --dry-run` prints it. All of them may stand in "
            "a config file, beside the recipe's own keys, and may be set with `--set KEY=VALUE`. "
            "`null` means that nothing is set.",
            _keys(Tables(definitions, LINKS).of(run)),
        )
    )


def _slot_page(slot: str) -> str:
    _, title, purpose = PAGES[slot]
    _, definitions = _run_schema()
    tables, kinds = Tables(definitions, LINKS), registry().kinds(slot)
    parts = [f"# {title}", purpose, _contents(slot)]
    for kind in sorted(kinds):
        schema = definitions[kinds[kind].__name__]
        package = f"embed-{registry().owner(slot, kind)}"
        parts += [f"## `{kind}` {{ #{kind} }}", f"<small>from {package}</small>", markdown(kinds[kind].__doc__ or "")]
        parts.append(_keys(tables.of(schema, leave_out=("kind",))))
    return "\n\n".join(parts)


def _contents(slot: str) -> str:
    rows = [
        f"| [`{kind}`](#{kind}) | {described((config.__doc__ or '').split(chr(10) * 2)[0])} |"
        for kind, config in sorted(registry().kinds(slot).items())
    ]
    return _keys("\n".join(["| kind | |", "|---|---|", *rows]))


def _index() -> str:
    kinds = [f"| [{PAGES[slot][1]}]({LINKS[slot]}) | {_kind_links(slot)} |" for slot in SLOTS]
    recipes = [f"[`{name}`](../recipes/{name}.md#keys)" for name in sorted(registry().recipes())]
    return "\n".join(
        (
            "# Reference\n",
            "These pages are generated from the code that they describe, whenever the site is built.\n",
            "| page | |\n|---|---|",
            "| [Keys of a run](run.md) | `train`, `engine`, `tracking`, `phases` and the six slots |",
            *kinds,
            f"| Keys of recipes | {', '.join(recipes)} |",
            "| [Commands](commands.md) | every command with its options |",
            "| [Hooks](hooks.md) | what a plugin may implement |",
            "| [Python API](../api.md) | trainers, protocols, types and the test kit |",
        )
    )


def _kind_links(slot: str) -> str:
    return ", ".join(f"[`{kind}`]({LINKS[slot]}#{kind})" for kind in sorted(registry().kinds(slot)))


def _hooks_page() -> str:
    hooks = {name: hook for name, hook in vars(hookspecs).items() if getattr(hook, "embed_spec", None) is not None}
    parts = ["# Hooks", markdown(hookspecs.__doc__ or "").removeprefix("Every hook there is. ")]
    parts.append("[Writing a plugin](../writing-a-plugin.md) walks through a complete package.")
    for name, hook in hooks.items():
        contract, example = (inspect.getdoc(hook) or "").split("Example::", 1)
        signature = str(inspect.signature(hook)).replace("'", "")
        parts += [f"## `{name}`", f"```python\ndef {name}{signature}\n```", markdown(contract), "Example:"]
        parts.append(f"```python\n{textwrap.dedent(example).strip()}\n```")
    return "\n\n".join(parts)


def markdown(docstring: str) -> str:
    """A docstring with reStructuredText's roles and literal blocks, as Markdown."""
    return literal_blocks(roles(inspect.cleandoc(docstring)))


def _keys(table: str) -> str:
    """A wrapper that the style sheet knows: on a narrow screen the cells of such a table stand below each other."""
    return f'<div class="keys" markdown>\n\n{table}\n\n</div>'
