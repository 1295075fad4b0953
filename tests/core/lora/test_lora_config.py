"""What users can get wrong about ``kind: lora``: one line that names the key, the value and the way out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embed_core.config import document
from embed_core.config.resolve import Request
from embed_core.config.resolve import resolve as resolve_run
from embed_core.errors import ConfigError
from embed_core.models.lora.config import LoraModelConfig
from embed_core.plugin.manager import activate

INNER = "inner: {kind: bge-m3}"


def resolve(model: str) -> Any:
    _, registry = activate(["bge"])
    overrides = document.overrides([f"model={{kind: lora, {model}}}"])
    return resolve_run(registry, Request(registry.recipe("bge"), overrides=overrides)).model


def test_the_config_wraps_any_kind_and_survives_being_written() -> None:
    model = resolve(f"{INNER}, r: 8, target_modules: [query, value]")
    assert (model.r, model.target_modules, model.inner.kind) == (8, ("query", "value"), "bge-m3")
    written = model.model_dump(mode="json", serialize_as_any=True)
    _, registry = activate(["bge"])
    assert LoraModelConfig.model_validate(written, context={"registry": registry}) == model


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (f"{INNER}, r: 0", "--set model: model.r: input should be greater than 0, got 0"),
        (f"{INNER}, r: -3", "--set model: model.r: input should be greater than 0, got -3"),
        (f"{INNER}, alpha: 0", "--set model: model.alpha: input should be greater than 0, got 0"),
        (f"{INNER}, dropout: 1", "--set model: model.dropout: input should be less than 1, got 1"),
        ("r: 8", "model.inner: this key is needed and missing"),
        (f"{INNER}, rank: 8", "unknown key 'rank': one of: "),
        ("inner: {kind: bge}", "unknown model kind 'bge': did you mean 'bge-m3'?"),
        (f"{INNER}, target_modules: ''", "'' names no layer: give 'all-linear', names or a regular expression"),
        (f"{INNER}, target_modules: []", "() names no layer: give 'all-linear', names or a regular expression"),
        (f"{INNER}, target_modules: [query, '']", "('query', '') names no layer"),
        (f"{INNER}, target_modules: '*query'", "'*query' is no regular expression (nothing to repeat at position 0)"),
        (
            f"inner: {{kind: lora, {INNER}}}",
            "kind 'lora' inside kind 'lora': put the settings of both into one, or train a saved adapter on with "
            "`adapter`",
        ),
        (f"{INNER}, export: both", "model.export: input should be 'merged' or 'adapter', got 'both'"),
    ],
)
def test_mistakes_are_one_line(settings: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_peft_the_extra_is_named(
    adapt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError) as caught:
        adapt()
    assert str(caught.value).startswith("model.kind 'lora' needs peft, which cannot be imported (")
    assert str(caught.value).endswith("): pip install 'embed-core[lora]'")


def test_the_page_s_config_is_one_and_its_table_has_every_key(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/lora.md").read_text(encoding="utf-8")
    file = tmp_path / "lora.yaml"
    file.write_text(page.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    _, registry = activate(["bge"])
    config = resolve_run(registry, Request(registry.recipe("bge"), document.read(file)))
    assert isinstance(config.model, LoraModelConfig)
    assert config.train.optimizer.learning_rate == 2e-4
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    named = {name.strip(" `") for row in rows for name in row.split(",")}
    assert named == set(LoraModelConfig.model_fields) - {"kind"}


def test_the_page_s_share_is_that_of_bge_m3() -> None:
    """24 layers of width 1,024 and 4,096; the heads; 567,754,752 weights in the encoder."""
    adapters, heads = 24 * 16 * (4 * 2048 + 2 * 5120), 1024 * 1024 + 1024 + 1024 + 1
    trained, everything = adapters + heads, 567_754_752 + adapters + heads
    line = (
        f"trainable {trained / 1e6:.3g} M of {everything / 1e6:.3g} M parameters ({100 * trained / everything:.2g} %)"
    )
    page = (Path(__file__).parents[3] / "docs/lora.md").read_text(encoding="utf-8")
    assert f"LoRA r 16, alpha 32: {line}" in page
