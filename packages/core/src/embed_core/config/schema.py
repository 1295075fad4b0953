"""The JSON schema of a run: slots become a choice between the registered kinds."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from embed_core.config.component import SLOT_BASES, Component
from embed_core.config.recipe import Recipe
from embed_core.config.registry import Registry
from embed_core.config.run import RunConfig


def run_schema(registry: Registry) -> dict[str, Any]:
    """JSON schema (2020-12) of ``RunConfig``; every slot is ``oneOf`` its kinds. Editors complete and check by it."""
    kinds: list[type[Component]] = [c for slot in SLOT_BASES for c in registry.kinds(slot).values()]
    modes = [(cls, "validation") for cls in (RunConfig, *SLOT_BASES.values(), *kinds)]
    refs, schema = models_json_schema(modes, title="embed run")  # type: ignore[arg-type]
    definitions = schema["$defs"]
    for slot, base in SLOT_BASES.items():
        name = refs[base, "validation"]["$ref"].rsplit("/", 1)[-1]
        options = [refs[cls, "validation"] for cls in registry.kinds(slot).values()]
        # A choice between nothing is no schema: without a kind, nothing is allowed.
        definitions[name] = {"title": slot, "oneOf": options} if options else {"title": slot, "not": {}}
    return {**schema, "$schema": "https://json-schema.org/draft/2020-12/schema", **refs[RunConfig, "validation"]}


def recipe_schema(recipe: type[Recipe], registry: Registry) -> dict[str, Any]:
    """JSON schema of a recipe's own keys and of the add-ons that it takes. Those of ``RunConfig`` may stand beside
    them."""
    schema = recipe.model_json_schema()
    properties = schema.setdefault("properties", {})
    for addon in registry.addons():
        defaults = recipe.addons.get(addon.name, {})
        if isinstance(defaults, str):
            continue
        theirs = addon.model_json_schema()
        schema.setdefault("$defs", {}).update(theirs.get("$defs", {}))
        for key, described in theirs["properties"].items():
            default = {"default": defaults[key]} if key in defaults else {}
            properties.setdefault(key, {**described, **default})
    schema["additionalProperties"] = True
    return schema
