"""Models of two towers, one for texts and one for pictures, that map into a common space.

A chunk may hold texts, pictures and pairs of both in any order; a pair's vector is the normalised sum of its text's and
its picture's unit vectors (CLIP-style models cannot read both together).

Every chunk has at least one text and one picture: where one is missing, a blank one is added and its vector dropped. So
every forward runs both towers in the same order, which ZeRO-3 requires of all ranks, and all parameters get a gradient
(zero), whatever a rank's share of the batch holds.

Suffixes besides those of :mod:`embed_core.types`: S texts and I pictures of a chunk, L tokens of its longest text.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from embed_core.errors import DataError
from embed_core.text.pooling import at_least_float32
from embed_core.text.prompts import Prompt
from embed_core.types import Embeddings, Encoded, Item, Role, ScoreWeights
from embed_vision.datasets.images import PictureReader, Pixels, pixels_key
from embed_vision.datasets.items import Mixed, Picture
from embed_vision.models.config import VisionOptions
from embed_vision.models.texts import TextReader

IDS, IMAGE = "input_ids", "image"


class TwoTowers(nn.Module):
    """An :class:`embed_core.protocols.Model` of texts, pictures, :class:`~embed_vision.datasets.items.Mixed` items."""

    scores: Mapping[str, ScoreWeights] = {"dense": {"dense": 1.0}}

    def __init__(self, config: VisionOptions, texts: TextReader, pictures: PictureReader, image_tokens: int) -> None:
        """``image_tokens`` is the cost of a picture in tokens: the number of patches that the image tower sees."""
        super().__init__()
        self.config, self.texts, self.pictures, self.image_tokens = config, texts, pictures, image_tokens
        self._blank_text = texts.encode([""], "query", [""])[0]
        self._blank_pixels = pictures.blank(64, 64)

    @abstractmethod
    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Token ids [S,L] → features [S,D], of any length."""

    @abstractmethod
    def image_features(self, **pixels: Tensor) -> Tensor:
        """Stacked outputs of the image processor for I pictures → features [I,D], of any length."""

    @property
    def prompts(self) -> Mapping[str, str]:
        """Prefixes of texts by sentence-transformers' names."""
        return named_prompts(self.config)

    def tokenize(self, items: Sequence[Item], role: Role, prompts: Sequence[str | None]) -> list[Encoded]:
        """Token lists and processed pictures; a row's prompt replaces the model's, before texts only.

        Raises DataError for a picture that cannot be read and for an item of another kind.
        """
        pictures, texts = [picture_of(item) for item in items], [text_of(item) for item in items]
        pixels = iter(self.pictures.read([one for one in pictures if one is not None]))
        prompted = [(text, prompt) for text, prompt in zip(texts, prompts, strict=True) if text is not None]
        tokens = iter(self.texts.encode([text for text, _ in prompted], role, [prompt for _, prompt in prompted]))
        return [
            self._encoded(
                next(tokens) if text is not None else None, picture, next(pixels) if picture is not None else None
            )
            for text, picture in zip(texts, pictures, strict=True)
        ]

    def tokenizer_fingerprint(self) -> str:
        """Identifies everything that the token lists of texts depend on; the engine may cache those, never pictures."""
        return self.texts.fingerprint()

    def _encoded(self, text: Encoded | None, picture: Picture | None, pixels: Pixels | None) -> Encoded:
        if picture is None or pixels is None:
            assert text is not None
            return text
        if text is None:
            return Encoded(pixels_key(picture), self.image_tokens, {IMAGE: pixels})
        data = {IDS: text.data[IDS], IMAGE: pixels}
        return Encoded(pixels_key(picture, text.key), text.length + self.image_tokens, data)

    def collate(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        """The arguments of :meth:`forward`."""
        texts = [(row, one.data[IDS]) for row, one in enumerate(encoded) if IDS in one.data]
        pictures = [(row, one.data[IMAGE]) for row, one in enumerate(encoded) if IMAGE in one.data]
        # The blank one gets the row after the last, which forward drops.
        texts = texts or [(len(encoded), self._blank_text.data[IDS])]
        pictures = pictures or [(len(encoded), self._blank_pixels)]
        stacked = {name: np.stack([one[name] for _, one in pictures]) for name in pictures[0][1]}
        return {
            # The host needs this number; as a shape it costs no synchronisation with the GPU.
            "count": torch.empty(len(encoded), 0),
            "text_rows": torch.tensor([row for row, _ in texts]),
            "image_rows": torch.tensor([row for row, _ in pictures]),
            **self.texts.padded([ids for _, ids in texts]),
            **{name: torch.from_numpy(value) for name, value in stacked.items()},
        }

    def forward(
        self,
        count: Tensor,
        text_rows: Tensor,
        image_rows: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        **pixels: Tensor,
    ) -> Embeddings:
        """``count`` [N,0]; rows [S] and [I] among the N items (row N is a blank one); ids and mask [S,L]; pixels as the
        image processor names them → dense [N,D] of unit length, fp32 or wider."""
        items = count.shape[0]
        text_SD = functional.normalize(at_least_float32(self.text_features(input_ids, attention_mask)), dim=-1)
        image_ID = functional.normalize(at_least_float32(self.image_features(**pixels)), dim=-1)
        sum_ND = text_SD.new_zeros(items + 1, text_SD.shape[1])
        sum_ND = sum_ND.index_add(0, text_rows, text_SD).index_add(0, image_rows, image_ID.to(text_SD.dtype))
        return Embeddings(dense_ND=functional.normalize(sum_ND[:items], dim=-1))


def text_of(item: Item) -> str | None:
    """The text of an item, if it has one. Raises DataError for an item that is neither text nor picture."""
    if isinstance(item, str):
        return item
    if isinstance(item, Mixed):
        return item.text
    if isinstance(item, Picture):
        return None
    raise DataError(
        f"an item is {type(item).__name__}, which no vision model reads: give texts, and pictures as a path or bytes"
    )


def picture_of(item: Item) -> Picture | None:
    """The picture of an item, if it has one."""
    if isinstance(item, Mixed):
        return item.picture
    return item if isinstance(item, Picture) else None


def role_prompts(config: VisionOptions) -> dict[Role, Prompt]:
    """The prompts of the texts, by role."""
    return {"query": Prompt(config.query_prompt), "passage": Prompt(config.passage_prompt)}


def named_prompts(config: VisionOptions) -> dict[str, str]:
    """The prompts by sentence-transformers' names."""
    named = {"query": config.query_prompt, "document": config.passage_prompt}
    return {name: prompt for name, prompt in named.items() if prompt}


def freeze(module: Any, frozen: bool) -> None:
    """Exclude ``module`` from training if ``frozen``."""
    if frozen:
        module.requires_grad_(False)
