"""The generated pages of the docs site list everything that there is, and the navigation leads to every page."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from embed_core.config.registry import SLOTS
from embed_core.config.run import RunConfig
from embed_core.plugin.hookspecs import embed_step_ended

ROOT = Path(__file__).resolve().parents[2]
KIND = re.compile(r"^## `([\w-]+)` \{ #[\w-]+ \}\n(.*?)(?=^## |\Z)", flags=re.MULTILINE | re.DOTALL)
RECIPES = sorted(path.stem for path in (ROOT / "docs/recipes").glob("*.md"))


@pytest.fixture(scope="module")
def reference() -> Iterator[Any]:
    """The module that makes the pages, imported as the site's build imports it."""
    sys.path.insert(0, str(ROOT / "docs/_site"))
    try:
        import reference

        yield reference
    finally:
        sys.path.remove(str(ROOT / "docs/_site"))


def rows(table: str) -> dict[str, str]:
    return dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", table, flags=re.MULTILINE))


def test_every_kind_has_its_section_and_keys(reference: Any) -> None:
    registry, seen = reference.registry(), 0
    for slot in SLOTS:
        sections = dict(KIND.findall(reference.pages()[f"reference/{reference.LINKS[slot]}"]))
        assert set(sections) == set(registry.kinds(slot))
        for kind, config in registry.kinds(slot).items():
            assert set(config.model_fields) - {"kind"} <= set(rows(sections[kind])), f"{slot} {kind}"
            seen += 1
    assert seen > 40


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_page_gets_every_key_with_its_default(name: str, reference: Any) -> None:
    page = (ROOT / f"docs/recipes/{name}.md").read_text(encoding="utf-8")
    assert f"<!-- keys of recipe {name} -->\n" in page
    assert f"`embed schema --plugin {name} --recipe`" in page
    fields, table = reference.registry().recipe(name).model_fields, rows(reference.recipe_keys(name))
    assert set(fields) <= set(table)
    for key, field in fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, (int, float)) and not isinstance(default, bool):
            assert f"default `{default}`" in table[key], f"{key}: {table[key]}"


def test_every_recipe_has_a_page(reference: Any) -> None:
    assert set(reference.registry().recipes()) == set(RECIPES)


def test_run_page_has_keys_of_sections(reference: Any) -> None:
    table = rows(reference.pages()["reference/run.md"])
    assert set(RunConfig.model_fields) <= set(table)
    assert "default `2e-05`" in table["train.optimizer.learning_rate"]
    assert "`direct`" in table["engine.strategy"]
    assert "phases[].name" in table


def test_hook_page_shows_contract_and_example(reference: Any) -> None:
    page = reference.pages()["reference/hooks.md"]
    assert page.count("@hookimpl") >= 10
    assert f"## `{embed_step_ended.__name__}`" in page
    assert ":class:" not in page


def test_command_page_lists_commands_of_plugins_and_their_options(reference: Any) -> None:
    page = reference.pages()["reference/commands.md"]
    for command in ("run", "explain", "prove", "plan", "mine", "align", "data inspect", "teacher build"):
        assert f"## `embed {command}`" in page
    assert "`--set KEY=VALUE`" in page


def test_navigation_leads_to_every_page(reference: Any) -> None:
    """Decisions are reached by their index."""
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = set(leaves(site["nav"]))
    written = {str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")}
    assert listed == {page for page in written if not re.match(r"decisions/\d", page)} | set(reference.pages())


def leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from leaves(entry)
