"""A SentenceTransformer as the training loop's model. Shape suffixes are those of :mod:`embed_core.types`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from embed_core.models.lora.structure import Structure
from embed_core.text.varlen import Packed, chunk_tokens
from embed_core.types import Embeddings, Encoded, Item, Role, ScoreWeights
from embed_sbert.chain import can_be_packed, run, run_packed
from embed_sbert.config import SentenceTransformersModelConfig
from embed_sbert.readers import BagReader, BulkReader, Reader

CHILD = "sentence_transformer"
"""Name of the SentenceTransformer in the model, and first part of its weights' names."""


@dataclass(frozen=True)
class Route:
    """A path through the model: all texts take one, or each role its own (a Router's)."""

    reader: Reader
    options: Mapping[str, Any]
    """Arguments of the modules besides their features, such as the task."""
    names: tuple[str, ...]
    """Names of the modules in the SentenceTransformer, in order."""


class SentenceTransformersModel(nn.Module):
    """See :class:`embed_core.protocols.Model`. sentence-transformers' own modules compute the vectors.

    In training the vectors are what the modules give, so that its losses see what they expect. In evaluation they have
    unit length where the model's similarity is the cosine: the core ranks by dot products.
    """

    scores: Mapping[str, ScoreWeights] = {"dense": {"dense": 1.0}}
    sentence_transformer: Any

    def __init__(
        self, config: SentenceTransformersModelConfig, sentence_transformer: Any, routes: Mapping[Role, Route]
    ) -> None:
        """``routes`` by role: the same object for both where all texts go the same way."""
        super().__init__()
        self.config, self.sentence_transformer = config, sentence_transformer
        self.embedding_dimension: int | None = sentence_transformer.get_embedding_dimension()
        """Width of the vectors, D."""
        self._cosine = sentence_transformer.similarity_fn_name == "cosine"
        self._routes = dict(routes)
        self._split = routes["query"] is not routes["passage"]
        readers = [route.reader for route in routes.values()]
        if not self._split and isinstance(readers[0], BulkReader):
            # The engine packs texts and keeps token lists for models that have these attributes.
            self.tokenizer_fingerprint = readers[0].text.fingerprint
            if can_be_packed(self._modules_of(routes["query"])):
                self.packed = False
        if all(isinstance(reader, BagReader) for reader in readers):
            self.packed = True  # the size of a chunk of bags is its number of tokens
        elif not any(isinstance(module, nn.LSTM) for module in sentence_transformer.modules()):
            # A packed LSTM returns states up to the longest text's length, which the mask must have too.
            self.pad_to_multiple_of = config.pad_to_multiple_of or 1
        # Made before DeepSpeed takes the weights: after that nothing can be copied.
        self._structure = Structure(sentence_transformer, ())

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer, where there is one."""
        from transformers import PreTrainedTokenizerBase

        tokenizer = getattr(self.sentence_transformer, "tokenizer", None)
        return tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else None

    def tokenize(self, items: Sequence[Item], role: Role, prompts: Sequence[str | None]) -> list[Encoded]:
        """See :meth:`embed_core.protocols.Model.tokenize`; a row's prompt replaces the model's."""
        encoded = self._routes[role].reader.encode(items, role, prompts)
        if not self._split:
            return encoded
        mark = role.encode() + b"\0"
        return [replace(one, key=mark + one.key, data={**one.data, "role": role}) for one in encoded]

    def collate(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        """The features of the texts; if the roles go different ways, ``role.feature`` and ``role.rows`` of each."""
        multiple = getattr(self, "pad_to_multiple_of", 1)
        if not self._split:
            reader = self._routes["query"].reader
            if isinstance(reader, BulkReader):
                reader.text.packed = getattr(self, "packed", False)
            return reader.collate(encoded, multiple)
        collated: dict[str, Tensor] = {}
        for role, route in self._routes.items():
            rows = [n for n, one in enumerate(encoded) if one.data["role"] == role]
            if not rows:
                continue
            plain = [replace(encoded[n], data={k: v for k, v in encoded[n].data.items() if k != "role"}) for n in rows]
            features = route.reader.collate(plain, multiple)
            collated |= {f"{role}.{name}": value for name, value in {**features, "rows": torch.tensor(rows)}.items()}
        return collated

    def forward(self, **inputs: Tensor) -> Embeddings:
        """What :meth:`collate` gave → dense [N,D], fp32 or wider. Padding and other texts do not change a vector."""
        dense_ND = self._by_role(inputs) if self._split else self._encode(self._routes["query"], inputs)
        if self._cosine and not self.training:
            dense_ND = functional.normalize(dense_ND, dim=-1)
        return Embeddings(dense_ND=dense_ND)

    def filled(self, state: Mapping[str, Tensor]) -> Any:
        """A SentenceTransformer like this one with the weights of ``state`` (see ``Checkpointer.export``), in
        evaluation mode. Raises CheckpointError where some are missing."""
        own = {name.removeprefix(f"{CHILD}."): value for name, value in state.items()}
        found, _ = self._structure.filled(own)
        return found.eval()

    def _modules_of(self, route: Route) -> list[nn.Module]:
        return [self.sentence_transformer.get_submodule(name) for name in route.names]

    def _encode(self, route: Route, features: Mapping[str, Tensor]) -> Tensor:
        modules = self._modules_of(route)
        if "longest" in features:
            chunk = chunk_tokens(**features)
            assert isinstance(chunk, Packed)
            return run_packed(modules, chunk)
        return run(modules, {**route.reader.constants, **features, **route.options}, dict(route.options))

    def _by_role(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Run each role's texts through its own modules and put the vectors back in order.

        A role without texts runs a dummy text, to no effect, where something waits for its modules: with sharded
        weights (ZeRO-3) a forward is a collective, and another rank may have texts of that role; in training the engine
        sums the gradients of embedding tables over the chunks of a step, and the last chunk passes them on.
        """
        needed = torch.is_grad_enabled() or any(hasattr(p, "ds_id") for p in self.sentence_transformer.parameters())
        parts, places = [], []
        nothing: Tensor | None = None
        for role, route in self._routes.items():
            features = {name.removeprefix(f"{role}."): v for name, v in inputs.items() if name.startswith(f"{role}.")}
            if features:
                places.append(features.pop("rows"))
                parts.append(self._encode(route, features))
            elif needed:
                device = next(iter(inputs.values())).device
                spare = route.reader.collate(route.reader.encode(["a"], role, [None]), 1)
                nothing = self._encode(route, {name: value.to(device) for name, value in spare.items()}).sum() * 0
        dense_ND = torch.cat(parts).index_select(0, torch.cat(places).argsort())
        return dense_ND if nothing is None else dense_ND + nothing
