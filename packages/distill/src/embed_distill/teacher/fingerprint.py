"""Fingerprints a teacher from its files (or commit on the hub) and settings, without loading it.

The name of a directory does not count: a model trained again into the same directory is another teacher, and one that
is copied or renamed is the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed_core.errors import CheckpointError
from embed_core.utils.atomic import replacing
from embed_core.utils.messages import one_line
from embed_distill.store.keys import salt_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from embed_core.config.component import ModelConfig
    from embed_core.config.context import BuildContext
    from embed_core.models.transformers_encoder.config import TransformersEncoderConfig
    from embed_core.types import Role
    from embed_distill.teacher.config import TeacherConfig

VERSION = 1
"""Raise this number when the same teacher would give other vectors."""
CONTENT = (".json", ".safetensors", ".bin", ".pt", ".model", ".txt", ".py")
"""Suffixes of the model files that its vectors depend on."""
MEMORY = "contents.json"
"""Digests of directories, so that gigabytes are read once: path → (digest of sizes and times, digest of content)."""
DEFAULT_LENGTH = 512
_LENGTHS = ("query_max_length", "passage_max_length")
_PER_TEXT = ("query_prompt", "passage_prompt", *_LENGTHS)
"""Settings that are part of a text's key instead: a text asked for with equal settings shares one vector, whether it is
a query or a passage."""
_WITHOUT_EFFECT = ("name_or_path", "revision", "trust_remote_code", "normalize", "pad_to_multiple_of", "from_scratch")


@dataclass(frozen=True)
class Identity:
    """A teacher's fingerprint, with the config that loads it."""

    model: ModelConfig
    """The config to build where vectors are missing, with prompts and lengths of a transformers encoder filled in."""
    facts: Mapping[str, Any]
    """Everything that the vectors depend on, except prompt, length and text."""
    salts: Mapping[Role, bytes]
    """Salts of the text keys by role; they carry prompt and length."""

    @cached_property
    def name(self) -> str:
        """The name of the teacher's folder, a digest of ``facts``."""
        return blake2b(json.dumps(self.facts, sort_keys=True).encode(), digest_size=12).hexdigest()


def identify(config: TeacherConfig, root: Path, context: BuildContext) -> Identity:
    """Fingerprint a teacher; digests of directories are remembered in ``root``. A model whose config names no directory
    is identified by the config and the seed.

    Raises CheckpointError for a model that is not there, or that the model kind cannot use.
    """
    encoder = config.transformers()
    if encoder is None:
        assert config.model is not None, "the config sees to it"
        return _of_another_kind(config, config.model, root, context)
    directory, content = _found(encoder.name_or_path, encoder.revision, root)
    default = None if config.model is not None or config.max_length is not None else _longest(directory)
    filled = _filled(encoder, directory, default)
    own = filled.model_dump(mode="json", exclude={*_PER_TEXT, *_WITHOUT_EFFECT})
    salts: dict[Role, bytes] = {
        "query": salt_of(filled.query_prompt or "", filled.query_max_length),
        "passage": salt_of(filled.passage_prompt or "", filled.passage_max_length),
    }
    return Identity(filled, {"version": VERSION, "dtype": config.dtype, "content": content, "model": own}, salts)


def _of_another_kind(config: TeacherConfig, model: ModelConfig, root: Path, context: BuildContext) -> Identity:
    plain = model.model_dump(mode="json", serialize_as_any=True)
    facts: dict[str, Any] = {"version": VERSION, "dtype": config.dtype, "model": _with_contents(plain, root)}
    if not any(_directories(plain)):
        facts["seed"] = context.seed
    return Identity(model, facts, {"query": salt_of("query"), "passage": salt_of("passage")})


def _filled(encoder: TransformersEncoderConfig, directory: Path, length: int | None) -> TransformersEncoderConfig:
    """The config with its None values replaced by the saved settings."""
    from embed_core.models.transformers_encoder.build import read_saved

    saved = read_saved(directory)
    document = saved.prompts.get("document") or saved.prompts.get("passage")
    lengths = {} if length is None else dict.fromkeys(_LENGTHS, length)
    prompts = {
        "query_prompt": saved.prompts.get("query") if encoder.query_prompt is None else encoder.query_prompt,
        "passage_prompt": document if encoder.passage_prompt is None else encoder.passage_prompt,
    }
    pooling = encoder.pooling or saved.pooling or "mean"
    return encoder.model_copy(update={"pooling": pooling, **prompts, **lengths})


def _found(name: str, revision: str | None, root: Path) -> tuple[Path, str]:
    """A directory with at least the model's small files, and a string that identifies its content."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path, content_of(path, root)
    if path.exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1:
        from embed_core.models.hub import model_directory

        model_directory(name)  # raises the error that says what is wrong
    directory = _small_files(name, revision)
    return directory, f"{name}@{directory.name}"


def _small_files(name: str, revision: str | None) -> Path:
    """The snapshot's folder of a model of the hub, named by the commit; weights are not downloaded."""
    from huggingface_hub import snapshot_download

    from embed_core.utils.logging import quiet_transformers

    try:
        with quiet_transformers():
            return Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "*/config.json"]))
    except Exception as error:  # httpx, OSError or ValueError: offline, no such repository or revision, no access
        at = f" at revision {revision!r}" if revision else ""
        reason = one_line(error, 200)
        raise CheckpointError(
            f"teacher {name!r}{at} is no directory here and cannot be fetched from the model hub "
            f"[{type(error).__name__}: {reason}]: give a local model directory"
        ) from error


def _longest(directory: Path) -> int:
    """Default number of tokens of a text; RoBERTa's first usable position follows the padding id."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return DEFAULT_LENGTH  # if the model has to be loaded, loading reports the error
    room = config.get("max_position_embeddings") if isinstance(config, dict) else None
    if not isinstance(room, int):
        return DEFAULT_LENGTH
    if "roberta" in str(config.get("model_type", "")):
        room -= int(config.get("pad_token_id") or 0) + 1
    return min(DEFAULT_LENGTH, max(room, 3))


def content_of(directory: Path, root: Path) -> str:
    """A digest of the model files in ``directory``. Raises CheckpointError where one cannot be read."""
    place = str(directory.resolve())
    try:
        files = sorted(path for path in directory.rglob("*") if path.suffix in CONTENT and path.is_file())
        stats = [(str(path.relative_to(directory)), *_stat(path)) for path in files]
        stamp = blake2b(repr(stats).encode(), digest_size=12).hexdigest()
        known = _remembered(root)
        if known.get(place, ["", ""])[0] != stamp:
            digest = blake2b(digest_size=16)
            for path in files:
                digest.update(f"{path.relative_to(directory)}\0{path.stat().st_size}\0".encode())
                for part in _parts(path):
                    digest.update(part)
            known = {**_remembered(root), place: [stamp, digest.hexdigest()]}
            root.mkdir(parents=True, exist_ok=True)
            with replacing(root / MEMORY) as temporary:
                temporary.write_text(json.dumps(known, indent=1), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"teacher {str(directory)!r} cannot be read: {error}") from None
    return known[place][1]


def _stat(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _parts(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while part := file.read(1 << 24):
            yield part


def _remembered(root: Path) -> dict[str, list[str]]:
    try:
        found = json.loads((root / MEMORY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _directories(value: Any) -> Iterator[str]:
    """Yields the directories that a plain config names, at any depth."""
    if isinstance(value, str):
        if value and Path(value).expanduser().is_dir():
            yield value
    elif isinstance(value, (list, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _directories(one)


def _with_contents(value: Any, root: Path) -> Any:
    """A plain config with every directory's name replaced by its content digest."""
    if isinstance(value, str):
        return content_of(Path(value).expanduser(), root) if any(_directories(value)) else value
    if isinstance(value, dict):
        return {key: _with_contents(one, root) for key, one in value.items()}
    return [_with_contents(one, root) for one in value] if isinstance(value, list) else value
