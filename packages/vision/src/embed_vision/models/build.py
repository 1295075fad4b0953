"""Builds the models from their configs: loads encoders and processors, or initialises them at random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from embed_core.config.context import BuildContext
from embed_core.errors import CheckpointError, ConfigError
from embed_core.models.from_scratch import FROM_SCRATCH
from embed_core.models.from_scratch.encoder import seeded
from embed_core.models.hub import load_encoder, load_tokenizer, model_directory
from embed_core.protocols import Model
from embed_core.utils.logging import quiet_transformers
from embed_core.utils.messages import one_line
from embed_vision.datasets.images import PictureReader, Process, processed_by
from embed_vision.models.clip import ClipModel, check_clip
from embed_vision.models.composed import ComposedModel
from embed_vision.models.config import ClipConfig, ComposedConfig, VisionConfig, VisionOptions, VlmConfig
from embed_vision.models.still import video_kind, without_video
from embed_vision.models.vlm import Chat, VlmModel

COMPOSED_FILE = "composed.json"
"""File with the settings of a composed model that its folders do not hold."""
TEXT, IMAGE = "text", "image"


def build_clip(config: ClipConfig, context: BuildContext) -> ClipModel:
    """A CLIP-style model, loaded or random. Raises CheckpointError and ConfigError."""
    if config.name_or_path == FROM_SCRATCH:
        from embed_vision.models.scratch import clip_from_scratch

        encoder, processor = clip_from_scratch(config.from_scratch, context)
    else:
        directory = model_directory(config.name_or_path, config.revision)
        encoder = load_encoder(directory, trust_remote_code=config.trust_remote_code, seed=context.seed)
        check_clip(encoder, config.name_or_path)  # check first: its message is better than that of a wrong processor
        processor = load_processor(directory, config)
        _check_processor(processor, directory)
    return ClipModel(config, encoder, processor, picture_reader(config, processed_by(processor.image_processor)))


def build_composed(config: ComposedConfig, context: BuildContext) -> ComposedModel:
    """Two encoders and their projections, loaded or random. Raises CheckpointError and ConfigError."""
    state = None
    if config.name_or_path is not None:
        root = Path(config.name_or_path).expanduser()
        config, state = _saved_composed(config, root)
        folders = {TEXT: root / TEXT, IMAGE: root / IMAGE}
    else:
        assert config.text_name_or_path is not None
        assert config.image_name_or_path is not None
        folders = {
            TEXT: model_directory(config.text_name_or_path, config.revision),
            IMAGE: model_directory(config.image_name_or_path, config.revision),
        }
    encoders = {
        part: load_encoder(folder, trust_remote_code=config.trust_remote_code, seed=context.seed)
        for part, folder in folders.items()
    }
    tokenizer = load_tokenizer(folders[TEXT], trust_remote_code=config.trust_remote_code)
    processor = load_image_processor(folders[IMAGE], config)
    pictures = picture_reader(config, processed_by(processor))
    with seeded(context.seed + 1):  # the encoders use `seed`
        model = ComposedModel(config, encoders[TEXT], tokenizer, encoders[IMAGE], processor, pictures)
    for name, weight in (state or {}).items():
        _fill(getattr(model, f"{name}_projection"), weight, name)
    model.train()
    return model


def build_vlm(config: VlmConfig, context: BuildContext) -> VlmModel:
    """A vision-language model. Raises CheckpointError and ConfigError."""
    directory = model_directory(config.name_or_path, config.revision)
    encoder = load_encoder(directory, trust_remote_code=config.trust_remote_code, seed=context.seed)
    processor = load_processor(directory, config)
    if getattr(processor, "chat_template", None) and config.suffix:
        processor.chat_template += "{{ " + json.dumps(config.suffix) + " }}"
    chat = Chat(config, processor)
    return VlmModel(config, encoder, processor, picture_reader(config, chat.process), chat)


def build_vision(config: VisionConfig, context: BuildContext) -> Model:
    """The model of the kind that fits. Raises CheckpointError, and ConfigError for options that do not fit it."""
    given = {name: getattr(config, name) for name in VisionOptions.model_fields if name in config.model_fields_set}
    common = {name: value for name, value in given.items() if value is not None and name != "kind"}
    kind, chosen = _chosen(config)
    try:
        model: Any = kind.model_validate(common | chosen | config.options)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}".lstrip(": ") for fault in error.errors()]
        raise ConfigError(
            f"model.kind 'vision' as {kind.model_fields['kind'].default!r}: {'; '.join(faults)}"
        ) from None
    return cast(Model, model.build(context))


def _chosen(config: VisionConfig) -> tuple[type[VisionOptions], dict[str, Any]]:
    parts = {"text_name_or_path": config.text_name_or_path, "image_name_or_path": config.image_name_or_path}
    given = {name: value for name, value in parts.items() if value is not None}
    if config.encoder_mode == "composed":
        whole = config.name_or_path if config.name_or_path != FROM_SCRATCH else None
        return ComposedConfig, given | ({"name_or_path": whole} if whole else {})
    if given:
        raise ConfigError(
            f"model.{next(iter(given))} is one encoder of a composed model: set model.encoder_mode to 'composed'"
        )
    name = config.name_or_path or FROM_SCRATCH
    if name == FROM_SCRATCH:
        return ClipConfig, {"name_or_path": name}
    if (Path(name).expanduser() / COMPOSED_FILE).is_file():
        return ComposedConfig, {"name_or_path": name}
    directory = model_directory(name, config.revision)
    facts = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    chats = "vision_start_token_id" in facts or "image_token_id" in facts
    return (VlmConfig if chats else ClipConfig), {"name_or_path": name}


def picture_reader(config: VisionOptions, process: Process) -> PictureReader:
    """The reader that decodes and processes the run's pictures."""
    return PictureReader(
        process,
        workers=config.image_workers,
        cache_bytes=config.image_cache_mb << 20,
        max_pixels=config.max_image_pixels,
    )


def load_processor(directory: Path, config: VisionOptions) -> Any:
    """A model's processor: tokenizer and image processor. Raises CheckpointError."""
    from transformers import AutoProcessor

    try:
        with quiet_transformers():
            return AutoProcessor.from_pretrained(directory, trust_remote_code=config.trust_remote_code)
    except Exception as error:
        # Without torchvision, transformers cannot load the processor of a model that reads videos too.
        kind = video_kind(directory)
        if kind is None:
            raise _unreadable("processor", directory, error) from error
    tokenizer = load_tokenizer(directory, trust_remote_code=config.trust_remote_code)
    images = load_image_processor(directory, config)
    template = directory / "chat_template.jinja"
    chat = template.read_text(encoding="utf-8") if template.is_file() else getattr(tokenizer, "chat_template", None)
    return without_video(kind, images, tokenizer, chat)


def load_image_processor(directory: Path, config: VisionOptions) -> Any:
    """A model's image processor: torchvision's where that is installed, else Pillow's. Raises CheckpointError."""
    from transformers import AutoImageProcessor

    try:
        with quiet_transformers():
            return AutoImageProcessor.from_pretrained(directory, trust_remote_code=config.trust_remote_code)
    except Exception as error:
        raise _unreadable("image processor", directory, error) from error


def _unreadable(what: str, directory: Path, error: Exception) -> CheckpointError:
    reason = one_line(error, 160)
    return CheckpointError(
        f"the {what} in {str(directory)!r} cannot be loaded ({type(error).__name__}: {reason}): copy the files that "
        "were saved with the model (preprocessor_config.json, tokenizer.json) into it"
    )


def _check_processor(processor: Any, directory: Path) -> None:
    for part in ("tokenizer", "image_processor"):
        if getattr(processor, part, None) is None:
            raise CheckpointError(
                f"model directory {str(directory)!r} has no {part.replace('_', ' ')}: copy "
                f"{'tokenizer.json' if part == 'tokenizer' else 'preprocessor_config.json'} into it"
            )


def _saved_composed(config: ComposedConfig, root: Path) -> tuple[ComposedConfig, dict[str, Any]]:
    """The config filled in from the directory, and the projections' weights [D,H] by ``text`` and ``image``."""
    from safetensors.torch import load_file

    path = root / COMPOSED_FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        state = {
            part: load_file(root / f"{part}_projection" / "model.safetensors")["linear.weight"]
            for part in (TEXT, IMAGE)
        }
        keys = {key: facts[key] for key in ("text_pooling", "image_pooling", "max_length")}
    except Exception as error:
        reason = one_line(error, 160)
        raise CheckpointError(
            f"{str(root)!r} is no composed model that can be loaded ({type(error).__name__}: {reason}): give a "
            "directory that the checkpoint kind `vision` wrote, or text_name_or_path and image_name_or_path"
        ) from None
    given = config.model_fields_set
    prompts = {key: facts.get(key) for key in ("query_prompt", "passage_prompt") if key not in given}
    limits = {} if "max_length" in given else {"max_length": keys.pop("max_length")}
    keys.pop("max_length", None)
    return config.model_copy(update={**keys, **limits, **prompts, "width": state[TEXT].shape[0]}), state


def _fill(projection: Any, weight: Any, part: str) -> None:
    if projection.weight.shape != weight.shape:
        raise CheckpointError(
            f"the {part} projection is {list(weight.shape)}, and must be {list(projection.weight.shape)}: it belongs "
            "to another encoder"
        )
    projection.load_state_dict({"weight": weight.float()})
