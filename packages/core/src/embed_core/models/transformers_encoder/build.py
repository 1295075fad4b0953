"""Builds the model: loads a directory and sentence-transformers' files beside it, or starts with random weights."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from embed_core.config.context import BuildContext
from embed_core.errors import CheckpointError
from embed_core.models.from_scratch import FROM_SCRATCH
from embed_core.models.from_scratch.encoder import xlm_roberta
from embed_core.models.from_scratch.unigram import unigram_tokenizer
from embed_core.models.hub import load_encoder, load_tokenizer, model_directory
from embed_core.models.transformers_encoder.config import TransformersEncoderConfig
from embed_core.models.transformers_encoder.model import TransformersEncoder
from embed_core.text.pooling import POOLINGS, SENTENCE_TRANSFORMERS_NAMES, Pooling

MODULES = {"Transformer", "Pooling", "Normalize"}
_METHODS = {name: method for method, name in SENTENCE_TRANSFORMERS_NAMES.items()}


@dataclass(frozen=True)
class Saved:
    """The settings in sentence-transformers' files beside a model."""

    pooling: Pooling | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)


def build_model(config: TransformersEncoderConfig, context: BuildContext) -> TransformersEncoder:
    """The model of a run. Raises CheckpointError for a model that is not there or cannot be used as it was made."""
    if config.name_or_path != FROM_SCRATCH:
        directory = model_directory(config.name_or_path, config.revision)
        saved = read_saved(directory, context.wrapped_modules)
        encoder = load_encoder(directory, trust_remote_code=config.trust_remote_code, seed=context.seed)
        tokenizer = load_tokenizer(directory, trust_remote_code=config.trust_remote_code)
        if saved.pooling and config.pooling and saved.pooling != config.pooling:
            context.announce(
                f"pooling is {config.pooling!r}, but {config.name_or_path} was made with {saved.pooling!r}"
            )
        return TransformersEncoder(_filled(config, saved), encoder, tokenizer)
    longest = max(config.query_max_length, config.passage_max_length)
    dataset = context.dataset()
    with context.first():
        tokenizer = unigram_tokenizer(
            dataset.texts(), config.from_scratch.vocab_size, context.cache_dir, context.announce, max_length=longest
        )
    encoder = xlm_roberta(len(tokenizer), config.from_scratch, max_length=longest, seed=context.seed).train()
    return TransformersEncoder(_filled(config, Saved()), encoder, tokenizer)


def read_saved(directory: Path, wrapped: Collection[str] = ()) -> Saved:
    """Pooling and prompts. Raises CheckpointError for modules that this model kind does not have, but for the kinds
    that are ``wrapped`` (see ``BuildContext.wrapped_modules``)."""
    modules = _json(directory / "modules.json")
    if not isinstance(modules, list):
        return Saved()
    kinds = {str(entry.get("type", "")).rsplit(".", 1)[-1]: entry for entry in modules if isinstance(entry, dict)}
    others = sorted(set(kinds) - MODULES - set(wrapped))
    if others:
        raise CheckpointError(
            f"{directory / 'modules.json'}: the model has a module {others[0]}, which `transformers-encoder` would "
            "leave out: train it with the plugin `sbert`"
        )
    pooling = _json(directory / str(kinds.get("Pooling", {}).get("path", "1_Pooling")) / "config.json")
    facts = _json(directory / "config_sentence_transformers.json")
    prompts = facts.get("prompts") if isinstance(facts, dict) else None
    named = prompts if isinstance(prompts, dict) else {}
    return Saved(_pooling(pooling, directory), {key: text for key, text in named.items() if isinstance(text, str)})


def _pooling(config: Any, directory: Path) -> Pooling | None:
    """The pooling by its name, or by a flag for each way. Raises CheckpointError for a way that is not offered."""
    if not isinstance(config, dict):
        return None
    named = config.get("pooling_mode")
    ways = [named] if isinstance(named, str) else [
        key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on
    ]  # fmt: skip
    ways = [_METHODS.get(way, way) for way in ways]
    if len(ways) != 1 or ways[0] not in POOLINGS:
        raise CheckpointError(
            f"{directory}: the model was made with pooling {' and '.join(map(str, ways)) or 'of no kind'}; offered are "
            f"{', '.join(POOLINGS)}: train it with the plugin `sbert`"
        )
    return cast("Pooling", ways[0])


def _filled(config: TransformersEncoderConfig, saved: Saved) -> TransformersEncoderConfig:
    """Fill in what the config leaves to the saved files."""
    document = saved.prompts.get("document") or saved.prompts.get("passage")
    return config.model_copy(
        update={
            "pooling": config.pooling or saved.pooling or "mean",
            "query_prompt": saved.prompts.get("query") if config.query_prompt is None else config.query_prompt,
            "passage_prompt": document if config.passage_prompt is None else config.passage_prompt,
        }
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}): restore the file or delete it") from None
