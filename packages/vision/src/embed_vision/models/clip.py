"""CLIP-style models of transformers: two towers that map into a common space.

Shape suffixes are those of :mod:`embed_vision.models.towers`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from embed_core.errors import CheckpointError, ConfigError
from embed_vision.datasets.images import PictureReader
from embed_vision.models.config import ClipConfig
from embed_vision.models.texts import TextReader
from embed_vision.models.towers import TwoTowers, freeze, role_prompts

METHODS = ("get_text_features", "get_image_features")


class ClipModel(TwoTowers):
    """Wraps a ``CLIPModel``, a ``SiglipModel`` or another model with the same two methods.

    Its own ``logit_scale`` (and ``logit_bias``) belong to the loss; here they are kept for the checkpoint, untrained
    and with one dimension; ``loss_shapes`` has their original shapes.
    Raises CheckpointError for a processor of another size, ConfigError for texts longer than there are positions for.
    """

    encoder: Any

    def __init__(self, config: ClipConfig, encoder: Any, processor: Any, pictures: PictureReader) -> None:
        # SigLIP was trained on texts padded to one length, and attends to the padding.
        fixed = str(encoder.config.model_type).startswith("siglip")
        texts = TextReader(processor.tokenizer, text_length(config, encoder), role_prompts(config), fixed=fixed)
        super().__init__(config, texts, pictures, image_tokens(encoder, pictures))
        self.encoder, self.processor = encoder, processor
        self.loss_shapes = {name: tuple(p.shape) for name, p in encoder.named_parameters(recurse=False)}
        for name in self.loss_shapes:
            assert name.startswith("logit"), f"{type(encoder).__name__}.{name} is in no module that is called"
            # DeepSpeed cannot broadcast a parameter without dimensions.
            value = getattr(encoder, name).detach().reshape(-1)
            setattr(encoder, name, nn.Parameter(value, requires_grad=False))
        for name, tower in encoder.named_children():
            freeze(tower, ("text" if name.startswith("text") else "image") in config.freeze)

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Token ids [S,L] → features [S,D]."""
        masks = {} if attention_mask is None else {"attention_mask": attention_mask}
        return pooled(self.encoder.get_text_features(input_ids=input_ids, **masks))

    def image_features(self, **pixels: Tensor) -> Tensor:
        """Pixels [I,…] → features [I,D]."""
        return pooled(self.encoder.get_image_features(**pixels))


def pooled(output: Any) -> Tensor:
    """The features; transformers 5 wraps the result of ``get_*_features``, earlier versions do not."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features


def check_clip(encoder: Any, name: str) -> None:
    """Raises CheckpointError for a model that does not embed texts and pictures into one space."""
    lacking = [method for method in METHODS if not callable(getattr(encoder, method, None))]
    if lacking or not hasattr(encoder.config, "text_config") or getattr(encoder, "language_model", None) is not None:
        raise CheckpointError(
            f"model {name!r} is a {type(encoder).__name__}, no CLIP-style model: use `kind: vlm` for a vision-language "
            "model, or `kind: composed` for a text encoder and an image encoder"
        )


def text_length(config: ClipConfig, encoder: Any) -> int:
    """Number of tokens at which texts are cut. Raises ConfigError for more than the model has positions for."""
    room = int(encoder.config.text_config.max_position_embeddings)
    wanted = config.max_length or room
    if wanted > room:
        raise ConfigError(
            f"model.max_length {wanted} is more than the {room} tokens that {config.name_or_path!r} has positions for: "
            f"set it to {room} or less"
        )
    return wanted


def image_tokens(encoder: Any, pictures: PictureReader) -> int:
    """Number of patches of a processed picture. Raises CheckpointError if the processor's size is not the model's."""
    vision = encoder.config.vision_config
    shape = pictures.blank(64, 64)["pixel_values"].shape
    if len(shape) == 2:  # [patches, values per patch]
        return int(shape[0])
    side = getattr(vision, "image_size", None)
    if isinstance(side, int) and tuple(shape[1:]) != (side, side):
        raise CheckpointError(
            f"the image processor makes pictures of {shape[2]} x {shape[1]} pixels, the model has {side} x {side}: "
            "use the preprocessor_config.json that was saved with the model"
        )
    patch = int(getattr(vision, "patch_size", 32))
    return (int(shape[1]) // patch) * (int(shape[2]) // patch) + 1
