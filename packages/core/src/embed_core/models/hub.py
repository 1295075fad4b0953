"""Finds and loads a model directory, local or from the model hub. Every error is one line that names a fix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embed_core.errors import CheckpointError, ConfigError, did_you_mean
from embed_core.models.from_scratch import FROM_SCRATCH
from embed_core.utils.logging import quiet_transformers
from embed_core.utils.messages import one_line

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_NOT_FETCHED = ("onnx/*", "openvino/*", "imgs/*", "*.msgpack", "*.h5", "*.ot")
"""Exports for other runtimes: gigabytes that nothing here reads."""


def model_directory(name_or_path: str, revision: str | None = None) -> Path:
    """The directory of a model: ``name_or_path`` itself, or its snapshot from the hub, with config and weights in it.

    Raises CheckpointError where it does not exist, cannot be fetched, or has no config or no weights.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        _check_contents(path)
        return path
    if path.exists():
        raise CheckpointError(f"model {name_or_path!r} is a file: give the directory that holds config.json")
    if _is_path(name_or_path):
        siblings = [other.name for other in path.parent.iterdir() if other.is_dir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings) if siblings else f"{path.parent} does not exist either"
        raise CheckpointError(f"model directory {name_or_path!r} does not exist: {hint}")
    return _fetched(name_or_path, revision)


def _is_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.endswith("/") or name.count("/") > 1


def _fetched(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        with quiet_transformers():
            path = Path(snapshot_download(name, revision=revision, ignore_patterns=list(_NOT_FETCHED)))
    except Exception as error:  # offline, no such repository or revision, no access: httpx, OSError and ValueError
        close = f" ({did_you_mean(name, [FROM_SCRATCH])})" if "did you" in did_you_mean(name, [FROM_SCRATCH]) else ""
        at = f" at revision {revision!r}" if revision else ""
        raise CheckpointError(
            f"model {name!r}{at} is no directory here and cannot be fetched from the model hub"
            f"{close} [{_reason(error)}]: give a local model directory, or {FROM_SCRATCH!r}"
        ) from error
    _check_contents(path)
    return path


def _check_contents(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise CheckpointError(f"model directory {str(path)!r} has no config.json: it is no transformers model")
    if not any((path / name).is_file() for name in WEIGHT_FILES):
        raise CheckpointError(
            f"model directory {str(path)!r} has no weights: none of {', '.join(WEIGHT_FILES)} is there; "
            "copy the model's weights into it or name another directory"
        )


def load_encoder(directory: Path, *, trust_remote_code: bool = False, seed: int = 0) -> Any:
    """Load the bare encoder in fp32, in training mode.

    A pooler that the checkpoint lacks is drawn from ``seed`` (nothing here reads it); any other missing weight raises
    CheckpointError instead of being silently random.
    """
    import torch
    from transformers import AutoModel

    from embed_core.models.from_scratch.encoder import seeded

    try:
        with seeded(seed), quiet_transformers():
            encoder, report = AutoModel.from_pretrained(
                directory, dtype=torch.float32, trust_remote_code=trust_remote_code, output_loading_info=True
            )
    except Exception as error:  # OSError, ValueError, SafetensorError, UnpicklingError, KeyError …
        raise CheckpointError(f"model directory {str(directory)!r} cannot be loaded: {_reason(error)}") from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise CheckpointError(
            f"model directory {str(directory)!r} lacks {len(missing)} weights of {type(encoder).__name__}, "
            f"{missing[0]!r} first: its config.json and its weights do not belong together"
        )
    return encoder.train()


def load_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a model directory. Raises CheckpointError."""
    from transformers import AutoTokenizer

    if not any((directory / name).is_file() for name in ("tokenizer.json", "sentencepiece.bpe.model", "vocab.txt")):
        raise CheckpointError(f"model directory {str(directory)!r} has no tokenizer: copy its tokenizer.json into it")
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except Exception as error:
        reason = _reason(error)
        raise CheckpointError(f"the tokenizer in {str(directory)!r} cannot be loaded: {reason}") from error


def _reason(error: BaseException) -> str:
    """Type and beginning of an error's message: those of transformers go on for paragraphs."""
    text = one_line(error)
    return f"{type(error).__name__}: {text[:200]}{'…' if len(text) > 200 else ''}"


def positions(encoder: Any) -> int | None:
    """Tokens that the encoder can tell apart; RoBERTa's positions start after the padding id. None = no limit known."""
    config = encoder.config
    room = getattr(config, "max_position_embeddings", None)
    if room is None:
        return None
    offset = config.pad_token_id + 1 if "roberta" in config.model_type and config.pad_token_id is not None else 0
    return int(room) - offset


def check_fit(name: str, lengths: Mapping[str, int], encoder: Any, tokenizer: Any) -> None:
    """Raise an error that names the setting, where PyTorch would only say that an index is out of range.

    ``lengths`` are the config's maximum lengths by key. Raises ConfigError for one that is more than the positions of
    the encoder, and CheckpointError for a tokenizer with more ids than it has embeddings for.
    """
    room = positions(encoder)
    for key, length in lengths.items():
        if room is not None and length > room:
            raise ConfigError(
                f"{key} {length} is more than the {room} tokens that {name!r} has positions for: "
                f"set it to {room} or less"
            )
    rows = int(encoder.get_input_embeddings().weight.shape[0])
    if len(tokenizer) > rows:
        raise CheckpointError(
            f"the tokenizer has {len(tokenizer)} ids, the encoder of {name!r} embeddings for {rows}: "
            "use the tokenizer that was saved with the model"
        )
