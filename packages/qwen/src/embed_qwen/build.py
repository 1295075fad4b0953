"""Builds the model of a config through ms-swift: from a directory, or random with a tokenizer of the run's texts."""

from __future__ import annotations

import json
import shutil
from hashlib import blake2b
from pathlib import Path
from typing import Any

from embed_core.config.context import BuildContext
from embed_core.errors import CheckpointError
from embed_core.models.from_scratch import FROM_SCRATCH
from embed_core.models.from_scratch.byte_level import END_OF_TEXT, ending
from embed_core.models.hub import model_directory
from embed_core.protocols import Announce
from embed_core.utils.atomic import beside
from embed_core.utils.logging import quiet_transformers
from embed_qwen import swift
from embed_qwen.model import Qwen3EmbeddingModel
from embed_qwen.model_config import Qwen3EmbeddingConfig, Qwen3Shape
from embed_qwen.prompts import WEB_SEARCH, instruction_of

POSITIONS = 32_768
"""Positions of a from-scratch model; rotary positions have no weights."""
FEED_FORWARD_SCALE = 0.2
"""Factor on the initial output weights of a random feed-forward part."""
VERSION = "2"
"""Part of the key of from-scratch models: raise it when their weights change."""


def build_model(config: Qwen3EmbeddingConfig, context: BuildContext) -> Qwen3EmbeddingModel:
    """The model of a run. Raises PluginError without a fit ms-swift, CheckpointError for a model that is not there,
    lacks weights or is of another family, ConfigError for lengths that do not fit."""
    swift.require()
    if config.name_or_path == FROM_SCRATCH:
        directory = _scratch_directory(config, context)
    else:
        directory = model_directory(config.name_or_path, config.revision)
        _check_code(directory, config)
    encoder, tokenizer = load_parts(directory, trust_remote_code=config.trust_remote_code)
    if config.name_or_path == FROM_SCRATCH:
        # An adapter must not name a folder of this machine's cache as its base.
        encoder.name_or_path = encoder.config.name_or_path = ""
    given = _saved_instruction(directory, context.announce) if config.instruction is None else config.instruction
    return Qwen3EmbeddingModel(config.model_copy(update={"instruction": given}), encoder, tokenizer, directory)


def load_parts(directory: Path, *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """The decoder without its head, in training mode, and the tokenizer, which ends texts with the end-of-text token.

    Raises CheckpointError for a directory that ms-swift cannot load, that lacks weights, or whose tokenizer has no
    token for the end of a text.
    """
    loaded = swift.load(directory, trust_remote_code=trust_remote_code)
    encoder, tokenizer = loaded.causal.model, loaded.tokenizer
    _check_weights(directory, encoder)
    # ms-swift makes the end of text the padding token, and transformers gives the padding's embedding no gradient.
    # Every vector is the state of that token, so its embedding must be trained; the config is saved as it came.
    encoder.config.pad_token_id = _json(directory / "config.json").get("pad_token_id")
    encoder.embed_tokens.padding_idx = None
    end = tokenizer.get_vocab().get(END_OF_TEXT)
    if end is None:
        raise CheckpointError(
            f"model directory {str(directory)!r}: the tokenizer has no {END_OF_TEXT}, whose state is the vector: "
            "it is no Qwen3 model"
        )
    # Qwen3-Embedding's own tokenizer ends texts with that token; that of a plain Qwen3 does not.
    if tokenizer("a")["input_ids"][-1] != end:
        ending(tokenizer.backend_tokenizer, END_OF_TEXT)
    return encoder.train(), tokenizer


def _check_code(directory: Path, config: Qwen3EmbeddingConfig) -> None:
    """Raises CheckpointError for another family, and for a model's own code, which ms-swift would run unasked."""
    facts = _json(directory / "config.json")
    if facts.get("auto_map") and not config.trust_remote_code:
        raise CheckpointError(
            f"{directory / 'config.json'}: the model comes with Python code of its own (auto_map): set "
            "trust_remote_code: true if you trust it, or use a directory without"
        )
    if facts.get("model_type") != "qwen3":
        raise CheckpointError(
            f"{directory / 'config.json'}: a model of type {facts.get('model_type')!r}, not 'qwen3': "
            "use the plugin of its family, or model kind 'transformers-encoder'"
        )


def _check_weights(directory: Path, encoder: Any) -> None:
    """Raises CheckpointError for missing weights, which transformers would draw at random and only log."""
    from safetensors import safe_open

    found: set[str] = set()
    for file in weight_files(directory):
        with safe_open(file, "pt") as tensors:
            found |= {name.removeprefix("model.") for name in tensors.keys()}  # noqa: SIM118 - no mapping
    missing = sorted(set(encoder.state_dict()) - found) if found else []
    if missing:
        raise CheckpointError(
            f"model directory {str(directory)!r} lacks {len(missing)} weights of {type(encoder).__name__}, "
            f"{missing[0]!r} first: its config.json and its weights do not belong together"
        )


def weight_files(directory: Path) -> list[Path]:
    """The safetensors of a model directory; none where its weights have another format."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        return sorted({directory / name for name in _json(index)["weight_map"].values()})
    single = directory / "model.safetensors"
    return [single] if single.is_file() else []


def _saved_instruction(directory: Path, announce: Announce) -> str:
    """The instruction in sentence-transformers' file beside the model, in the official form; else Qwen's own."""
    path = directory / "config_sentence_transformers.json"
    prompts = _json(path).get("prompts") if path.is_file() else None
    saved = prompts.get("query") if isinstance(prompts, dict) else None
    if not isinstance(saved, str):
        return WEB_SEARCH
    instruction = instruction_of(saved)
    if instruction is None:
        announce(
            f"{path}: the query prompt {saved!r} is not of the form 'Instruct: TASK\\nQuery:', so queries get "
            f"{WEB_SEARCH!r} (model.instruction sets another)"
        )
        return WEB_SEARCH
    return instruction


def _scratch_directory(config: Qwen3EmbeddingConfig, context: BuildContext) -> Path:
    """A directory of the cache with random weights and a tokenizer of the run's texts, made if it is missing."""
    from embed_core.models.from_scratch.byte_level import byte_level_tokenizer

    longest = max(config.query_max_length, config.passage_max_length)
    dataset = context.dataset()
    with context.first():
        tokenizer = byte_level_tokenizer(
            dataset.texts(),
            config.from_scratch.vocab_size,
            context.cache_dir,
            context.announce,
            max_length=max(longest, 512),
        )
        facts = (VERSION, context.seed, longest, config.from_scratch.model_dump_json())
        words = tokenizer.backend_tokenizer.to_str()
        key = blake2b(f"{facts}|{words}".encode(), digest_size=10).hexdigest()
        directory = context.cache_dir / "models" / f"qwen3-{key}"
        if not (directory / "config.json").is_file():
            write_scratch(config.from_scratch, tokenizer, context.seed, directory, positions=max(longest, POSITIONS))
    return directory


def write_scratch(shape: Qwen3Shape, tokenizer: Any, seed: int, directory: Path, *, positions: int = POSITIONS) -> None:
    """A random Qwen3 of ``shape`` with the ids of ``tokenizer``, laid out as Qwen3-Embedding; a seed gives the same
    weights. Written beside ``directory`` first, so that a kill leaves nothing half-written."""
    from embed_core.export.layout import write_tokenizer

    temporary = beside(directory)
    temporary.mkdir(parents=True)
    with quiet_transformers():
        random_decoder(shape, tokenizer, seed, positions).save_pretrained(temporary)
    write_tokenizer(tokenizer, temporary)
    try:
        temporary.replace(directory)
    except OSError:  # another run made it meanwhile, or a kill left something there
        if not (directory / "config.json").is_file():
            shutil.rmtree(directory, ignore_errors=True)
            temporary.replace(directory)
        shutil.rmtree(temporary, ignore_errors=True)


def random_decoder(shape: Qwen3Shape, tokenizer: Any, seed: int, positions: int) -> Any:
    """A random ``Qwen3Model``.

    Every vector is the state of the same token, and only attention brings in what tells texts apart. With values and
    attention outputs at the usual 0.02 that is little: 60 steps of 32 pairs of documentation ended at an MRR of 0.08
    among 200. At the scale that keeps a state's size, and with the feed-forward part turned down, it was 0.26.
    """
    import torch
    from transformers import Qwen3Config, Qwen3Model

    from embed_core.models.from_scratch.encoder import seeded

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        # Twice the usual width, as Qwen3-0.6B has it: keys and values of half the heads are as wide as the states.
        head_dim=2 * shape.hidden // shape.heads,
        intermediate_size=3 * shape.hidden,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with seeded(seed):
        model = Qwen3Model(config)
    with torch.no_grad():
        for layer in model.layers:
            for part in (layer.self_attn.v_proj, layer.self_attn.o_proj):
                part.weight.mul_(shape.hidden**-0.5 / config.initializer_range)
            layer.mlp.down_proj.weight.mul_(FEED_FORWARD_SCALE)
    return model


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}): restore the file") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds no mapping: restore the file")
    return found
