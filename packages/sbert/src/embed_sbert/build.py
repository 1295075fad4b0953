"""Builds a model from a config: loads a directory as sentence-transformers does, or makes a small one at random."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embed_core.config.context import BuildContext
from embed_core.errors import CheckpointError, ConfigError
from embed_core.models.from_scratch import FROM_SCRATCH
from embed_core.models.from_scratch.encoder import seeded, xlm_roberta
from embed_core.models.from_scratch.unigram import unigram_tokenizer
from embed_core.models.hub import model_directory
from embed_core.protocols import Announce
from embed_core.utils.logging import quiet_transformers
from embed_core.utils.messages import one_line
from embed_sbert.config import SentenceTransformersModelConfig
from embed_sbert.load_report import lacking
from embed_sbert.model import SentenceTransformersModel
from embed_sbert.route import routes_of

LOGGER = "sentence_transformers"
"""Logger of messages on every load and save that are no news."""
SCRATCH_LENGTH = 192
"""Maximum tokens of a from-scratch model's texts, unless the config sets them."""
MODULES = "modules.json"


def build_model(config: SentenceTransformersModelConfig, context: BuildContext) -> SentenceTransformersModel:
    """The model of a run. Raises CheckpointError for one that is not there or cannot be used, ConfigError for texts
    longer than it has positions for."""
    built = from_scratch(config, context) if config.name_or_path == FROM_SCRATCH else load(config, context)
    built.float().train()
    _fit(built, config, context.announce)
    named = {"query": config.query_prompt, "document": config.passage_prompt}
    built.prompts.update({name: prompt for name, prompt in named.items() if prompt is not None})
    _freeze(built)
    model = SentenceTransformersModel(config, built, routes_of(built))
    if built.similarity_fn_name not in ("cosine", "dot"):
        context.announce(f"the model compares by {built.similarity_fn_name}: the evaluation ranks by dot products")
    if built.truncate_dim is not None:
        context.announce(f"the model cuts its vectors to {built.truncate_dim} values: trained are all of them")
    return model


def load(config: SentenceTransformersModelConfig, context: BuildContext) -> Any:
    """The SentenceTransformer of a directory or of the hub, in fp32, on CPU."""
    from sentence_transformers import SentenceTransformer

    directory = directory_of(config.name_or_path, config.revision)
    try:
        # Weights that a checkpoint lacks (a pooler that nothing reads) are drawn at random, the same on every rank.
        with seeded(context.seed), quiet_transformers(LOGGER), lacking() as absent:
            built = SentenceTransformer(
                str(directory),
                device="cpu",
                trust_remote_code=config.trust_remote_code,
                local_files_only=True,
                model_kwargs={"dtype": torch.float32},
            )
    except Exception as error:  # OSError, ValueError, KeyError, SafetensorError, and what remote code raises
        reason = one_line(error)
        hint = ": set trust_remote_code: true if you trust it" if "trust_remote_code" in reason else ""
        raise CheckpointError(
            f"model directory {str(directory)!r} cannot be loaded by sentence-transformers "
            f"({type(error).__name__}: {reason[:200]}){hint}"
        ) from error
    if absent:
        raise CheckpointError(
            f"model directory {str(directory)!r} lacks weights, {absent[0]!r} first: its config.json and its weights "
            "do not belong together"
        )
    return built


def directory_of(name: str, revision: str | None) -> Path:
    """As :func:`embed_core.models.hub.model_directory`, which requires a transformers model; here a directory of
    modules without one is enough."""
    local = Path(name).expanduser()
    if (local / MODULES).is_file():
        return local
    try:
        return model_directory(name, revision)
    except CheckpointError:
        if local.exists():
            raise
        fetched = _in_cache(name, revision)
        if fetched is None or not (fetched / MODULES).is_file():
            raise
        return fetched


def _in_cache(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:  # not there, or no hub name: the first message says what to do
        return None


def from_scratch(config: SentenceTransformersModelConfig, context: BuildContext) -> Any:
    """A random encoder with mean pooling and unit length; its tokenizer is trained on the run's texts."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    longest = config.max_seq_length or SCRATCH_LENGTH
    shape, dataset = config.from_scratch, context.dataset()
    with context.first():
        tokenizer = unigram_tokenizer(
            dataset.texts(), shape.vocab_size, context.cache_dir, context.announce, max_length=longest
        )
    encoder = xlm_roberta(len(tokenizer), shape, max_length=longest, seed=context.seed)
    with tempfile.TemporaryDirectory() as folder, quiet_transformers(LOGGER):
        # The module can only read directories.
        encoder.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        transformer = Transformer(folder, model_kwargs={"dtype": torch.float32})
        modules = [transformer, Pooling(transformer.get_embedding_dimension(), "mean"), Normalize()]
        built = SentenceTransformer(modules=modules, device="cpu")
    # The temporary folder must not stay as the model's name: nobody can load it from there.
    transformer.model.config._name_or_path = transformer.model.name_or_path = ""
    transformer.processor.name_or_path = ""
    built.max_seq_length = longest
    return built


def _fit(built: Any, config: SentenceTransformersModelConfig, announce: Announce) -> None:
    """Keeps the maximum length within the model's positions: PyTorch would only say that an index is wrong."""
    wanted = config.max_seq_length
    has_one = hasattr(type(built[0]), "max_seq_length") or hasattr(built[0], "max_seq_length")
    settable = has_one and built.max_seq_length not in (None, float("inf"))
    if wanted is not None and not settable:
        raise ConfigError(f"max_seq_length {wanted}: {type(built[0]).__name__} does not cut texts: leave the key out")
    room = min((_positions(part) for part in _transformers(built)), default=None, key=lambda r: r or 1 << 40)
    if wanted is not None:
        if room is not None and wanted > room:
            raise ConfigError(
                f"max_seq_length {wanted} is more than the {room} tokens that {config.name_or_path!r} has positions "
                f"for: set it to {room} or less"
            )
        built.max_seq_length = wanted
    elif room is not None and settable and built.max_seq_length > room:
        announce(f"texts are cut at {room} tokens: {config.name_or_path} has no more positions")
        built.max_seq_length = room
    _check_ids(built, config.name_or_path)


def _check_ids(built: Any, name: str) -> None:
    for part in _transformers(built):
        tokenizer, table = getattr(built, "tokenizer", None), part.get_input_embeddings()
        if tokenizer is not None and hasattr(tokenizer, "__len__") and len(tokenizer) > table.weight.shape[0]:
            raise CheckpointError(
                f"the tokenizer has {len(tokenizer)} ids, the encoder of {name!r} embeddings for "
                f"{table.weight.shape[0]}: use the tokenizer that was saved with the model"
            )
        return  # a Router's other modules have tokenizers of their own


def _transformers(built: nn.Module) -> list[Any]:
    from sentence_transformers.base.modules import Transformer

    return [module.model for module in built.modules() if isinstance(module, Transformer)]


def _positions(encoder: Any) -> int | None:
    """Positions of the encoder; RoBERTa's start after the padding id. None = no limit known."""
    config = encoder.config.get_text_config() if hasattr(encoder.config, "get_text_config") else encoder.config
    room = getattr(config, "max_position_embeddings", None)
    if not isinstance(room, int) or room < 1:
        return None
    padding = getattr(config, "pad_token_id", None)
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    return room - padding - 1 if padding is not None and getattr(table, "padding_idx", None) is not None else room


def _freeze(built: nn.Module) -> None:
    """Freezes what training could not change for users: a transformers pooler that no module reads, which gets no
    gradient, and word weights, which sentence-transformers reads from the config and never from the weights."""
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import WordWeights

    for module in built.modules():
        if isinstance(module, WordWeights):
            module.requires_grad_(False)
        pooler = getattr(getattr(module, "model", None), "pooler", None)
        if not isinstance(module, Transformer) or not isinstance(pooler, nn.Module):
            continue
        outputs: list[Mapping[str, Any]] = list(module.modality_config.values())
        if not any("pooler" in str(output["method_output_name"]) for output in outputs):
            pooler.requires_grad_(False)
