"""Discovery and activation: every failure is attributed to its package, and fatal only where the plugin is active."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from embed_core.errors import PluginError
from embed_core.plugin.manager import activate, discover, plugin_manager, status

HOOK = "from embed_core.plugin.hookspecs import hookimpl\n"
LOSS = """
from typing import Literal
from embed_core.config.component import LossConfig, ModelConfig
from embed_core.config.recipe import Recipe
from embed_core.plugin.hookspecs import hookimpl

class Mine(LossConfig):
    kind: Literal["mine"] = "mine"
    def build(self, context): ...

@hookimpl
def embed_register_losses():
    return [Mine]
"""

Install = Callable[..., str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """``install("x", source)``: a package ``embed-x`` 1.5 with an entry point, as pip would leave it."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def make(name: str, source: str, package: str | None = None) -> str:
        package = package or f"embed-{name}"
        module = f"plugin_{package.replace('-', '_')}_{tmp_path.name.replace('-', '_')}"
        info = site / f"{package.replace('-', '_')}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[embed]\n{name} = {module}\n")
        (site / f"{module}.py").write_text(source)
        monkeypatch.delitem(sys.modules, module, raising=False)
        return f"plugin {name!r} ({package} 1.5)"

    return make


def failure(name: str) -> str:
    with pytest.raises(PluginError) as error:
        activate([name])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_good_plugin(install: Install) -> None:
    install("good", LOSS)
    manager, registry = activate(["good"])
    assert registry.owner("loss", "mine") == "good"
    assert manager.get_plugin("good").__name__.startswith("plugin_embed_good")
    assert (discover()["good"].package, discover()["good"].version) == ("embed-good", "1.5")
    assert "mine" not in activate([])[1].kinds("loss"), "installing alone changes nothing"


def test_the_core_goes_through_the_same_door() -> None:
    _, registry = activate([])
    assert registry.owner("loss", "infonce") == "core"
    assert {"shuffled", "no-duplicates", "by-source"} <= set(registry.kinds("sampler"))


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import not_there_at_all", "cannot be imported: ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("def (", "cannot be imported: SyntaxError: "),
        ("raise ValueError('two\\nlines')", "cannot be imported: ValueError: two lines"),
        ("raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
        (
            "from embed_core.errors import DataError\nraise DataError('theirs')",
            "cannot be imported: DataError: theirs",
        ),
        ("EMBED_API_VERSION = 99", "is written for hook API 99, this embed-core has 1: install a version of embed-bad"),
        (
            HOOK + "@hookimpl\ndef embed_register_loses(): return []",
            ": unknown hook 'embed_register_loses': did you mean 'embed_register_losses'?",
        ),
        (
            HOOK + "@hookimpl\ndef embed_step_ended(step): pass",
            "hook 'embed_step_ended' hookimpl definition: embed_step_ended(step) Argument(s) {'step'} are declared",
        ),
        ("def embed_step_ended(event): pass", ": embed_step_ended is not marked as a hook: put @hookimpl above it"),
        (
            HOOK + "@hookimpl\ndef embed_register_losses(): return None",
            ": embed_register_losses must return a list of classes, not NoneType",
        ),
        (
            HOOK + "@hookimpl\ndef embed_register_losses(): yield 1",
            ": embed_register_losses must return a list of classes, not generator",
        ),
        (
            HOOK + "@hookimpl\ndef embed_register_losses(): return ['infonce']",
            ": embed_register_losses returned 'infonce', which is no subclass of LossConfig",
        ),
        (
            LOSS.replace("return [Mine]", "return [ModelConfig]"),
            "which is no subclass of LossConfig",
        ),
        (LOSS.replace("return [Mine]", "return [LossConfig]"), 'LossConfig must define `kind: Literal["its-kind"]'),
        (LOSS.replace("def build", "def built"), ": Mine does not define build"),
        (LOSS.replace("return [Mine]", "return [Mine, Mine]"), "registers loss kind 'mine' twice"),
        (LOSS.replace('"mine"', '"infonce"'), "plugins 'core' and 'bad' both register loss kind 'infonce'"),
        (LOSS.replace("return [Mine]", "return 1 / 0"), ": embed_register_losses failed: ZeroDivisionError: division"),
        (
            HOOK + "@hookimpl\ndef embed_register_recipes(): return [int]",
            ": embed_register_recipes returned <class 'int'>, which is no Recipe with a `name`",
        ),
        (
            LOSS
            + "from typing import ClassVar\nclass R(Recipe):\n    name: ClassVar[str] = 'r'\n"
            + "@hookimpl\ndef embed_register_recipes(): return [R]",
            ": R does not define compile",
        ),
        ("EMBED_REQUIRES = 'data'", ": EMBED_REQUIRES must be a tuple of plugin names, not 'data'"),
    ],
)
def test_every_failure_names_plugin_package_version_and_cause(install: Install, source: str, cause: str) -> None:
    who = install("bad", source)
    message = failure("bad")
    assert cause in message
    assert who in message or "plugin 'bad' registers" in message or "plugins 'core' and 'bad'" in message


def test_two_plugins_that_register_one_kind_are_both_named(install: Install) -> None:
    install("one", LOSS)
    install("two", LOSS)
    activate(["one"])
    activate(["two"])
    with pytest.raises(PluginError, match="plugins 'one' and 'two' both register loss kind 'mine': activate only one"):
        activate(["one", "two"])


def test_required_plugins_are_activated_too(install: Install) -> None:
    install("base", LOSS)
    install("top", "EMBED_REQUIRES = ('base', 'hello')")
    _, registry = activate(["top", "base"])
    assert registry.owner("loss", "mine") == "base"
    assert registry.recipe("hello") is not None
    install("round", "EMBED_REQUIRES = ['round', 'top']")
    assert activate(["round"])[1].owner("loss", "mine") == "base"


def test_a_required_plugin_that_is_missing_names_who_requires_it(install: Install) -> None:
    install("top", "EMBED_REQUIRES = ('nowhere-to-be-found',)")
    assert "plugin 'nowhere-to-be-found', which 'top' requires, is not installed: " in failure("top")


def test_one_name_in_two_packages_is_fatal_only_where_it_is_used(install: Install) -> None:
    install("twin", LOSS, package="embed-twin-a")
    install("twin", LOSS, package="embed-twin-b")
    activate(["hello"])
    message = failure("twin")
    assert message.startswith("plugin name 'twin' is claimed by embed-twin-")
    assert "embed-twin-a 1.5" in message
    assert "embed-twin-b 1.5" in message
    assert message.endswith("uninstall one of them")
    (row,) = [row for row in status() if row.name == "twin"]
    assert (row.status, row.cause) == ("failed", message)


def test_status_lists_every_plugin_on_its_own_line(install: Install) -> None:
    install("bad", "1 / 0")
    install("good", LOSS)
    rows = {row.name: row for row in status(["good"])}
    assert list(rows) == sorted(rows)
    assert (rows["good"].status, rows["good"].package, rows["good"].version) == ("active", "embed-good", "1.5")
    assert (rows["hello"].status, rows["hello"].cause) == ("installed", "")
    assert rows["bad"].status == "failed"
    assert "ZeroDivisionError: division by zero" in rows["bad"].cause


def test_status_of_a_plugin_that_is_not_installed() -> None:
    with pytest.raises(PluginError, match="plugin 'helo' is not installed: did you mean 'hello'"):
        status(["helo"])


def test_managers_are_independent() -> None:
    assert plugin_manager() is not plugin_manager()
    assert activate(["hello"])[1] is not activate(["hello"])[1]


def test_a_used_plugin_is_activated_where_it_is_installed(install: Install) -> None:
    install("user", 'EMBED_USES = ("mine", "not-installed")')
    assert "mine" not in activate(["user"])[1].kinds("loss")
    install("mine", LOSS)
    assert activate(["user"])[1].owner("loss", "mine") == "mine"


@pytest.mark.parametrize(
    "fault",
    [
        "import not_there",
        HOOK + "@hookimpl\ndef embed_register_recipes():\n    raise RuntimeError",
        'EMBED_REQUIRES = ("not-installed",)',
    ],
)
def test_a_used_plugin_that_fails_is_left_out_whole(install: Install, fault: str) -> None:
    install("mine", LOSS + fault)
    install("user", 'EMBED_USES = ("mine",)')
    _, registry = activate(["user"])
    assert "mine" not in registry.kinds("loss")
    assert failure("mine")


def test_plugins_may_use_and_require_each_other(install: Install) -> None:
    install("one", 'EMBED_USES = ("two",)')
    install("two", LOSS + 'EMBED_REQUIRES = ("one",)')
    assert "mine" in activate(["one"])[1].kinds("loss")
    assert "mine" in activate(["two"])[1].kinds("loss")
