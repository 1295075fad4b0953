"""Every hook is documented, shown by an example that works, and exercised by a test."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from embed_core.plugin import hookspecs
from embed_core.plugin.manager import SLOT_HOOKS, plugin_manager

HOOKS: dict[str, Callable[..., object]] = {
    name: value for name, value in vars(hookspecs).items() if getattr(value, "embed_spec", None) is not None
}


def example(hook: Callable[..., object]) -> str:
    """The code after ``Example::`` of a docstring."""
    doc = inspect.getdoc(hook) or ""
    assert "Example::" in doc, f"{hook.__name__} has no `Example::`"
    return textwrap.dedent(doc.split("Example::", 1)[1])


def test_there_are_the_hooks_we_know_of() -> None:
    assert len(HOOKS) == 11
    assert set(SLOT_HOOKS.values()) <= set(HOOKS)


@pytest.mark.parametrize("name", sorted(HOOKS))
def test_hook_has_a_contract_and_an_example(name: str) -> None:
    doc = inspect.getdoc(HOOKS[name]) or ""
    assert len(doc.split("Example::")[0].split()) > 5, f"{name}: say what it returns or observes"
    tree = ast.parse(example(HOOKS[name]))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert [function.name for function in functions] == [name]
    specified = list(inspect.signature(HOOKS[name]).parameters)
    assert [argument.arg for argument in functions[0].args.args] == specified


@pytest.mark.parametrize("name", sorted(HOOKS))
def test_example_registers(name: str) -> None:
    """pluggy accepts the example as a plugin: right name, right arguments."""
    namespace: dict[str, object] = {"hookimpl": hookspecs.hookimpl}
    exec(compile(example(HOOKS[name]), f"<example of {name}>", "exec"), namespace)
    manager = plugin_manager()
    plugin = type("Plugin", (), {name: staticmethod(namespace[name])})  # type: ignore[arg-type]
    manager.register(plugin, name="example")
    manager.check_pending()
    assert [call.plugin_name for call in manager.hook.__dict__[name].get_hookimpls()] == ["example"]


@pytest.mark.parametrize("name", sorted(HOOKS))
def test_guide_mentions_hook(name: str, root: Path) -> None:
    guide = (root / "docs/writing-a-plugin.md").read_text(encoding="utf-8")
    assert f"`{name}`" in guide, f"docs/writing-a-plugin.md does not mention `{name}`"


@pytest.mark.parametrize("name", sorted(HOOKS))
def test_hook_is_exercised_by_a_test(name: str, root: Path) -> None:
    """Some test implements or calls it."""
    tests = [path for path in (root / "tests").rglob("test_*.py") if path.name != Path(__file__).name]
    pattern = re.compile(rf"def {name}\b|hook\.{name}\b")
    assert any(pattern.search(path.read_text(encoding="utf-8")) for path in tests), f"no test exercises {name}"
