"""The JSON schema: sound in itself, with every registered kind and every key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from embed_core.config.component import SLOT_BASES
from embed_core.config.registry import SLOTS, Registry
from embed_core.config.run import RunConfig
from embed_core.config.schema import recipe_schema, run_schema
from embed_core.plugin import builtins
from embed_core.plugin.manager import activate


def nodes(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for value in schema.values():
            yield from nodes(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from nodes(value)


def resolved(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        assert node["$ref"].startswith("#/$defs/")
        node = schema["$defs"][node["$ref"].removeprefix("#/$defs/")]
    return node


@pytest.mark.parametrize("plugins", [[], ["hello"], ["bge", "hello"]])
def test_every_reference_leads_somewhere_and_every_choice_is_one(plugins: list[str]) -> None:
    schema = json.loads(json.dumps(run_schema(activate(plugins)[1])))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for node in nodes(schema):
        if isinstance(node.get("$ref"), str):
            resolved(schema, node)
        for choice in ("oneOf", "anyOf", "allOf"):
            assert node.get(choice, [1]), "an empty choice is no valid schema"


def test_every_kind_is_in_its_slot() -> None:
    _, registry = activate(["bge", "hello"])
    schema = run_schema(registry)
    run = resolved(schema, schema)
    assert set(run["properties"]) == set(RunConfig.model_fields)
    keys = {slot: {"dataset": "data", "evaluator": "evaluation"}.get(slot, slot) for slot in SLOTS}
    for slot, key in keys.items():
        node = run["properties"][key]
        slot_schema = resolved(schema, node.get("items", node))
        kinds = {resolved(schema, option)["properties"]["kind"]["const"] for option in slot_schema["oneOf"]}
        assert kinds == set(registry.kinds(slot)), slot
        assert len(slot_schema["oneOf"]) == len(kinds)


def test_a_slot_without_a_kind_allows_nothing() -> None:
    registry = Registry()
    for config in (*builtins.embed_register_losses(), *builtins.embed_register_datasets()):
        registry.add(config.slot, config, "core")
    assert registry.kinds("model") == {}
    schema = run_schema(registry)
    assert resolved(schema, resolved(schema, schema)["properties"]["model"]) == {"title": "model", "not": {}}


def test_keys_carry_their_help() -> None:
    schema = run_schema(activate(["hello"])[1])
    train = resolved(schema, resolved(schema, schema)["properties"]["train"])
    described = train["properties"]["max_steps"]["description"]
    assert described == "Optimizer steps of the whole run, in a run with phases of each."
    assert train["additionalProperties"] is False


def test_slot_bases_are_not_mistaken_for_kinds() -> None:
    assert all(base.is_slot_base() for base in SLOT_BASES.values())


def test_recipe_schema_allows_the_runs_keys_beside() -> None:
    registry = activate(["bge"])[1]
    recipe = registry.recipe("bge")
    assert recipe is not None
    schema = json.loads(json.dumps(recipe_schema(recipe, registry)))
    addons = {key for addon in registry.addons() for key in addon.model_fields}
    assert set(schema["properties"]) == set(recipe.model_fields) | addons
    assert schema["additionalProperties"] is True
