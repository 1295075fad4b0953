"""Builds components as a run does, and checks a plugin as a whole."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from embed_core.config.component import Component, Section
from embed_core.config.registry import SLOTS, Registry
from embed_core.plugin.manager import activate

HEAVY = ("torch", "transformers", "deepspeed", "sentence_transformers")


def build(registry: Registry, slot: str, options: Mapping[str, Any], *arguments: Any) -> Any:
    """Validate ``options`` (with its ``kind``) as a config file's would be, and build with ``arguments``.

    ``arguments`` are those of the slot's ``build``: a context, and for samplers and evaluators a dataset. Raises
    ConfigError for an unknown kind and pydantic's ValidationError for a value that is not allowed.
    """
    config: Any = registry.get(slot, str(options["kind"])).model_validate(dict(options), context={"registry": registry})
    return config.build(*arguments)


def check_plugin(name: str) -> None:
    """Assert that the installed plugin ``name`` loads, is light and documents what users may write.

    Checked: it activates on its own; importing it and everything it registers imports no torch, transformers,
    deepspeed or sentence-transformers (in a new process); every field of its configs and recipes has a description;
    its recipe ``name``, if it has one, compiles for one rank and for two.

    Raises AssertionError, and PluginError where it does not load.
    """
    _, registry = activate([name])
    _check_light(name)
    owned: list[type[Section]] = [
        config for slot in SLOTS for kind, config in registry.kinds(slot).items() if registry.owner(slot, kind) == name
    ]
    recipes = [recipe for key, recipe in registry.recipes().items() if registry.owner("recipe", key) == name]
    for section in [*owned, *recipes]:
        _check_described(section)
    recipe = registry.recipe(name)
    if recipe is not None:
        for world_size in (1, 2):
            compiled = recipe().compile(world_size)
            missing = {"model", "data", "sampler", "loss", "checkpoint"} - set(compiled)
            assert not missing, f"recipe {name!r} compiles to a run without {sorted(missing)}"


def _check_light(name: str) -> None:
    program = (
        "import sys; from embed_core.plugin.manager import activate; activate([sys.argv[1]]); "
        f"print(*[m for m in {HEAVY!r} if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program, name], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, f"plugin {name!r} does not load: {answer.stderr.strip().splitlines()[-1]}"
    heavy = answer.stdout.split()
    assert not heavy, f"loading plugin {name!r} imports {', '.join(heavy)}: move those imports into `build`"


def _check_described(section: type[Section]) -> None:
    # The slots' own fields are described by the core; `kind` says itself what it is.
    bases: list[Any] = [base for base in section.__mro__[1:] if issubclass(base, Section)]
    inherited = {field for base in bases for field in base.model_fields}
    for field, info in section.model_fields.items():
        if field == "kind" or (issubclass(section, Component) and field in inherited):
            continue
        # A nested section is described by its own docstring.
        nested = isinstance(info.annotation, type) and issubclass(info.annotation, Section) and info.annotation.__doc__
        assert info.description or nested, f"{section.__name__}.{field} has no docstring under it: users see it as help"
