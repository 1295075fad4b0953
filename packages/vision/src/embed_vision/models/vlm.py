"""Vision-language models as embedding models: the state of the last token of a chat message with text, picture or both.

Suffixes of :mod:`embed_core.types`; L tokens of a chunk's longest item, G patches of a chunk's pictures together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from threading import Lock
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from embed_core.errors import CheckpointError
from embed_core.text.pooling import at_least_float32, pool
from embed_core.types import Embeddings, Encoded, Item, Role, ScoreWeights
from embed_vision.datasets.images import PictureReader, Pixels, pixels_key
from embed_vision.models.config import VlmConfig
from embed_vision.models.towers import freeze, named_prompts, picture_of, text_of

IDS, TYPES = "input_ids", "mm_token_type_ids"
PER_TOKEN = (IDS, TYPES)
"""Outputs of the processor per token; ``attention_mask`` is built here, all others belong to the pictures."""


class VlmModel(nn.Module):
    """A :class:`embed_core.protocols.Model` of texts, pictures and :class:`~embed_vision.datasets.items.Mixed` items.

    A chunk without a picture gets a row with a blank one, which forward drops: so every forward runs the vision tower,
    as ZeRO-3 requires of all ranks. Raises CheckpointError for a model without chat template or vision tower.
    """

    scores: Mapping[str, ScoreWeights] = {"dense": {"dense": 1.0}}
    encoder: Any

    def __init__(self, config: VlmConfig, encoder: Any, processor: Any, pictures: PictureReader, chat: Chat) -> None:
        super().__init__()
        if getattr(encoder, "visual", None) is None:
            raise CheckpointError(
                f"model {config.name_or_path!r} is a {type(encoder).__name__}, which has no vision tower of the kind "
                "that Qwen's vision-language models have: use `kind: clip` or `kind: composed`"
            )
        self.config, self.encoder, self.processor, self.pictures, self.chat = config, encoder, processor, pictures, chat
        self._blank = pictures.blank(32, 32, chat.rendered(None, None, picture=True))
        freeze(encoder.visual, "image" in config.freeze)

    @property
    def prompts(self) -> Mapping[str, str]:
        """System messages by sentence-transformers' names."""
        own = self.config.default_instruction
        default = {"query": own, "document": own} if own else {}
        return default | named_prompts(self.config)

    def tokenize(self, items: Sequence[Item], role: Role, prompts: Sequence[str | None]) -> list[Encoded]:
        """The rendered chats as token lists, and the pictures' patches; a row's prompt is its system message.

        Raises DataError for a picture that cannot be read and for an item of another kind.
        """
        prompted = zip(items, prompts, strict=True)
        chats = [self.chat.of(text_of(item), picture_of(item) is not None, role, prompt) for item, prompt in prompted]
        pictures = [(picture, chat) for item, chat in zip(items, chats, strict=True) if (picture := picture_of(item))]
        read = iter(self.pictures.read([one for one, _ in pictures], [chat for _, chat in pictures]))
        plain = iter(self.chat.tokens([c for item, c in zip(items, chats, strict=True) if picture_of(item) is None]))
        encoded = []
        for item, chat in zip(items, chats, strict=True):
            picture = picture_of(item)
            if picture is None:
                ids = next(plain)
                encoded.append(Encoded(np.asarray(ids, dtype=np.int32).tobytes(), len(ids), {IDS: ids}))
            else:
                data = next(read)
                key = pixels_key(picture, chat.encode("utf-8", "surrogatepass"))
                encoded.append(Encoded(key, len(data[IDS]), dict(data)))
        return encoded

    def tokenizer_fingerprint(self) -> str:
        """Identifies everything that the token lists of texts depend on; the engine may cache those, never pictures."""
        return self.chat.fingerprint()

    def collate(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        """The arguments of :meth:`forward`."""
        rows = [one.data for one in encoded]
        if all(len(row) == 1 for row in rows):
            rows = [*rows, self._blank]
        longest = max(len(row[IDS]) for row in rows)
        tokens = {name: np.zeros((len(rows), longest), dtype=np.int64) for name in (*PER_TOKEN, "attention_mask")}
        tokens[IDS][:] = self.chat.pad_id
        for number, row in enumerate(rows):
            length = len(row[IDS])
            tokens["attention_mask"][number, :length] = 1
            for name in PER_TOKEN:
                tokens[name][number, :length] = row.get(name, 0)
        pictures = [row for row in rows if len(row) > 1]
        names = [name for name in pictures[0] if name not in PER_TOKEN]
        joined = {name: np.concatenate([row[name] for row in pictures]) for name in names}
        return {
            # The host needs this number; as a shape it costs no synchronisation with the GPU.
            "count": torch.empty(len(encoded), 0),
            **{name: torch.from_numpy(value) for name, value in (tokens | joined).items()},
        }

    def forward(self, count: Tensor, input_ids: Tensor, attention_mask: Tensor, **inputs: Tensor) -> Embeddings:
        """``count`` [N,0]; ids and mask [N or N+1,L], padded on the right; patches [G,…] and their grids as the
        processor names them → dense [N,D] of unit length, fp32 or wider."""
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **inputs)
        dense_ND = at_least_float32(pool(output.last_hidden_state, attention_mask, "last_token"))
        return Embeddings(dense_ND=functional.normalize(dense_ND[: count.shape[0]], dim=-1))


class Chat:
    """Renders items as chats, and tokenizes chats. It is thread-safe; a copy is the object itself."""

    def __init__(self, config: VlmConfig, processor: Any) -> None:
        """Raises CheckpointError for a processor without a chat template."""
        if not getattr(processor, "chat_template", None):
            raise CheckpointError(
                f"model {config.name_or_path!r} has no chat template: put its chat_template.jinja beside the processor"
            )
        self._config, self._processor, self._lock = config, processor, Lock()
        self.tokenizer = processor.tokenizer
        self.pad_id = int(self.tokenizer.pad_token_id or 0)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def of(self, text: str | None, picture: bool, role: Role, prompt: str | None) -> str:
        """An item's chat; a prompt of ``None`` selects the role's prompt, and if that is ``None`` the model's."""
        own = self._config.query_prompt if role == "query" else self._config.passage_prompt
        return self.rendered(text, own if prompt is None else prompt, picture=picture)

    def rendered(self, text: str | None, instruction: str | None, *, picture: bool) -> str:
        """One message, with the picture before the text; the instruction is a system message unless it is empty."""
        system = self._config.default_instruction if instruction is None else instruction
        content: list[dict[str, str]] = [{"type": "image"}] if picture else []
        if text is not None:
            content.append({"type": "text", "text": self._cut(text)})
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if system:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        chat: str = self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return chat

    def tokens(self, chats: Sequence[str]) -> list[list[int]]:
        """Token lists of chats without pictures."""
        if not chats:
            return []
        with self._lock:
            found: list[list[int]] = self.tokenizer(list(chats))[IDS]
        return found

    def process(self, image: Image.Image, chat: str) -> Pixels:
        """The processor's output for a chat and its picture: tokens, without the batch dimension, and patches."""
        options: dict[str, Any] = {}
        if self._config.min_pixels or self._config.max_pixels:
            size = self._processor.image_processor.size
            shortest, longest = size["shortest_edge"], size["longest_edge"]
            # Qwen's processors give areas the names of edges.
            options["size"] = {
                "shortest_edge": self._config.min_pixels or shortest,
                "longest_edge": self._config.max_pixels or longest,
            }
        output = self._processor(text=[chat], images=[image], return_tensors="pt", images_kwargs=options)
        arrays = {name: value.numpy() for name, value in output.items() if name != "attention_mask"}
        return {name: value[0] if name in PER_TOKEN else value for name, value in arrays.items()}

    def fingerprint(self) -> str:
        """Identifies the tokenizer, the template and the instructions."""
        facts = [self.tokenizer.backend_tokenizer.to_str(), str(self._processor.chat_template), repr(self._config)]
        return blake2b("\n".join(facts).encode(), digest_size=16).hexdigest()

    def _cut(self, text: str) -> str:
        """Cut the text after ``max_length`` tokens, before rendering, so that the template stays whole."""
        most = self._config.max_length
        if most is None or len(text) < most:  # a token has at least one character
            return text
        offsets = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).offsets
        return text if len(offsets) <= most else text[: offsets[most - 1][1]]
