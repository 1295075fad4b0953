"""A text encoder and an image encoder with one projection each. Suffixes of :mod:`embed_vision.models.towers`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from embed_core.errors import CheckpointError, ConfigError
from embed_core.text.pooling import pool
from embed_vision.datasets.images import PictureReader
from embed_vision.models.config import ComposedConfig
from embed_vision.models.texts import TextReader
from embed_vision.models.towers import TwoTowers, freeze, role_prompts

NO_LIMIT = 512
"""Tokens of a text where neither the config nor the encoder sets a limit."""


class ComposedModel(TwoTowers):
    """Encoder, pooling and projection for texts, and likewise for pictures. Raises CheckpointError for encoders without
    hidden states, ConfigError for texts longer than the encoder has positions for."""

    def __init__(
        self,
        config: ComposedConfig,
        text_encoder: Any,
        tokenizer: Any,
        image_encoder: Any,
        image_processor: Any,
        pictures: PictureReader,
    ) -> None:
        texts = TextReader(tokenizer, text_length(config, text_encoder), role_prompts(config))
        super().__init__(config, texts, pictures, image_tokens(image_encoder, pictures))
        self.text_encoder, self.image_encoder = text_encoder, image_encoder
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.text_pooling, self.image_pooling = config.text_pooling, config.image_pooling
        self.text_projection = nn.Linear(_width(text_encoder, "text"), config.width, bias=False)
        self.image_projection = nn.Linear(self._image_width(), config.width, bias=False)
        # No vector uses the pooler, so it would never get a gradient.
        _freeze_pooler(text_encoder)
        if self.image_pooling != "pooler":
            _freeze_pooler(image_encoder)
        freeze(text_encoder, "text" in config.freeze)
        freeze(image_encoder, "image" in config.freeze)

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Token ids [S,L] → features [S,D]."""
        assert attention_mask is not None
        states_SLH = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        features: Tensor = self.text_projection(pool(states_SLH, attention_mask, self.text_pooling))
        return features

    def image_features(self, **pixels: Tensor) -> Tensor:
        """Pixels [I,…] → features [I,D]."""
        features: Tensor = self.image_projection(self._image_states(pixels))
        return features

    def _image_states(self, pixels: dict[str, Tensor]) -> Tensor:
        output = self.image_encoder(**pixels)
        if self.image_pooling == "pooler":
            if getattr(output, "pooler_output", None) is None:
                raise ConfigError(
                    "model.image_pooling: 'pooler' needs an encoder with a pooler, "
                    f"{type(self.image_encoder).__name__} has none: set it to 'cls' or 'mean'"
                )
            return torch.flatten(output.pooler_output, 1)
        states = output.last_hidden_state
        if states.ndim == 4:  # [I,H,height,width], of a convolutional encoder
            states = states.flatten(2).transpose(1, 2)
        chosen: Tensor = states[:, 0] if self.image_pooling == "cls" else states.mean(1)
        return chosen

    def _image_width(self) -> int:
        """Width of the image states, found by a forward: the config's name for it differs by architecture."""
        pixels = {name: torch.from_numpy(value)[None] for name, value in self._blank_pixels.items()}
        training = self.image_encoder.training
        self.image_encoder.eval()
        with torch.no_grad():
            width = int(self._image_states(pixels).shape[1])
        self.image_encoder.train(training)
        return width


def text_length(config: ComposedConfig, encoder: Any) -> int:
    """Number of tokens at which texts are cut. Raises ConfigError for more than the encoder has positions for."""
    facts = encoder.config
    room = getattr(facts, "max_position_embeddings", None)
    if room is not None and "roberta" in facts.model_type and facts.pad_token_id is not None:
        room -= facts.pad_token_id + 1  # RoBERTa's positions start after the padding id
    wanted = config.max_length or min(room or NO_LIMIT, NO_LIMIT)
    if room is not None and wanted > room:
        raise ConfigError(
            f"model.max_length {wanted} is more than the {room} tokens that the text encoder has positions for: "
            f"set it to {room} or less"
        )
    return wanted


def image_tokens(encoder: Any, pictures: PictureReader) -> int:
    """Number of patches of a processed picture; for a convolutional encoder, of fields of 32 pixels."""
    shape = pictures.blank(64, 64)["pixel_values"].shape
    patch = getattr(encoder.config, "patch_size", None)
    side = patch if isinstance(patch, int) else 32
    height, width = int(shape[-2]), int(shape[-1])
    return max(1, (height // side) * (width // side)) + 1


def _width(encoder: Any, what: str) -> int:
    width = getattr(encoder.config, "hidden_size", None)
    if not isinstance(width, int):
        raise CheckpointError(
            f"the {what} encoder {type(encoder).__name__} does not say how wide its states are (hidden_size): "
            "use another encoder"
        )
    return width


def _freeze_pooler(encoder: Any) -> None:
    freeze(getattr(encoder, "pooler", None) or nn.Identity(), frozen=True)
