"""The pages say what is: their code is in the repository, their keys exist, their links and paths lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("packages/*/README.md"),
        ROOT / "cli/README.md",
        *ROOT.glob("examples/*/README.md"),
    )
)


def blocks(page: Path, language: str) -> Iterator[str]:
    """Contents of the fenced blocks of one language."""
    yield from re.findall(
        rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )


def test_code_of_the_guide_is_the_example_s() -> None:
    files = [path for path in (ROOT / "examples/embed-hello").rglob("*") if path.suffix in (".py", ".toml")]
    sources = [path.read_text(encoding="utf-8") for path in files]
    guide = ROOT / "docs/writing-a-plugin.md"
    found = [*blocks(guide, "python"), *blocks(guide, "toml")]
    assert len(found) >= 10
    for block in found:
        assert any(block.rstrip("\n") in source for source in sources), f"not in examples/embed-hello:\n{block}"


def test_keys_of_documented_overrides_exist() -> None:
    """Every ``--set a.b=c`` of the pages, for the plugin of its command, resolves as a run."""
    from embed_core.config import document
    from embed_core.config.resolve import Request, resolve
    from embed_core.plugin.manager import activate

    seen = 0
    for page in PAGES:
        text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
        for plugin, rest in re.findall(r"^ *embed run --plugin (bge|hello) (.*--set .*)$", text, flags=re.MULTILINE):
            pairs = [
                quoted or bare
                for quoted, bare in re.findall(r"--set (?:'([^']*)'|(\S*'[^']*'|\S+))", rest.split("#")[0])
            ]
            _, registry = activate([plugin])
            request = Request(
                registry.recipe(plugin), overrides=document.overrides([p.replace("'", "") for p in pairs])
            )
            resolve(registry, request)
            seen += 1
    assert seen >= 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Pages of ``docs/reference`` are generated: the site's build checks links to them."""
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("http") and "reference/" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_paths_of_the_architecture_page_exist() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    tree = page.split("## The tree")[1].split("```")[1]
    folder = ""
    for line in tree.strip().splitlines():
        name = line.split("  ")[0] if not line.startswith(" ") else line.strip().split("  ")[0]
        folder = name if not line.startswith(" ") else folder
        path = ROOT / (name if name == folder else folder + name)
        assert path.exists(), f"docs/architecture.md: {path.relative_to(ROOT)} is not there"
    for test in re.findall(r"`(tests/[\w/]+\.py)`", page):
        assert (ROOT / test).exists(), f"docs/architecture.md names {test}"


def test_every_decision_is_in_the_index() -> None:
    index = (ROOT / "docs/decisions/README.md").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs/decisions").glob("0*.md")):
        title = page.read_text(encoding="utf-8").splitlines()[0].split("— ")[1]
        assert f"[{page.name[:4]}]({page.name}) | {title} |" in index, f"{page.name} is not in the index by its title"
        for part in ("**Decision.**", "**Why.**", "**Cost.**"):
            assert part in page.read_text(encoding="utf-8"), f"{page.name} has no {part}"
