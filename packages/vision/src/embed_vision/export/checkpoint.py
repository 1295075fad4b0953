"""The checkpoint kind ``vision``: model, processor and config, for transformers and sentence-transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embed_core.errors import CheckpointError
from embed_core.export.layout import submodule_state, write_json, write_tokenizer
from embed_core.export.model_card import CardText, RunCard, write_card
from embed_core.utils.logging import quiet_transformers
from embed_vision.export.modules_files import (
    DENSE,
    NORMALIZE,
    POOLING,
    ROUTER,
    TRANSFORMER,
    write_dense,
    write_modules,
    write_pooling,
    write_transformer_module,
)
from embed_vision.models.build import COMPOSED_FILE, IMAGE, TEXT
from embed_vision.models.clip import ClipModel
from embed_vision.models.composed import ComposedModel
from embed_vision.models.still import keep_video
from embed_vision.models.vlm import VlmModel


class VisionCheckpointer:
    """Exports the models of this package."""

    def export(self, model: nn.Module, state: Mapping[str, Tensor], directory: Path, card: RunCard) -> None:
        """Implements :meth:`embed_core.protocols.Checkpointer.export`. Raises CheckpointError for another model."""
        if isinstance(model, ClipModel):
            _write_clip(model, state, directory, card)
        elif isinstance(model, ComposedModel):
            _write_composed(model, state, directory)
        elif isinstance(model, VlmModel):
            _write_vlm(model, state, directory)
        else:
            raise CheckpointError(
                f"checkpoint kind 'vision' writes models of kinds clip, composed and vlm, not {type(model).__name__}: "
                "use the `checkpoint.kind` of the model's own plugin, or 'transformers'"
            )
        write_json(
            directory / "config_sentence_transformers.json",
            {
                "model_type": "SentenceTransformer",
                "prompts": {"query": "", "document": ""} | dict(model.prompts),
                "default_prompt_name": None,
                "similarity_fn_name": "cosine",
            },
        )
        write_card(directory, card, _card_text(model, card))


def _write_clip(model: ClipModel, state: Mapping[str, Tensor], directory: Path, card: RunCard) -> None:
    """Write a CLIP-style model; ``logit_scale`` and ``logit_bias`` are the loss's own where it has them."""
    weights = submodule_state(model, model.encoder, state)
    for name, shape in model.loss_shapes.items():
        trained = [value for key, value in card.loss_state.items() if key.rsplit(".", 1)[-1] == name]
        value = torch.as_tensor(trained[0]).detach().float() if trained else weights[name]
        weights[name] = value.reshape(shape).contiguous()
    write_transformer(model.encoder, weights, directory)
    _write_processor(model.processor, directory, model.texts.max_length)
    text: dict[str, Any] = {"max_length": model.texts.max_length}
    if model.texts.fixed:
        text |= {"padding": "max_length", "return_attention_mask": False}
    method = {"method_output_name": "pooler_output"}
    write_transformer_module(
        directory,
        {"text": {"method": "get_text_features"} | method, "image": {"method": "get_image_features"} | method},
        "sentence_embedding",
        {"text": text},
    )
    write_modules(directory, [("", TRANSFORMER), ("1_Normalize", NORMALIZE)])


def _write_vlm(model: VlmModel, state: Mapping[str, Tensor], directory: Path) -> None:
    write_transformer(model.encoder, submodule_state(model, model.encoder, state), directory)
    _write_processor(model.processor, directory, None)
    (directory / "chat_template.jinja").write_text(model.processor.chat_template, encoding="utf-8")
    keep_video(Path(model.encoder.name_or_path), directory)
    way = {"method": "forward", "method_output_name": "last_hidden_state"}
    modalities = {"text": way, "image": way, "image+text": way, "message": way | {"format": "structured"}}
    write_transformer_module(
        directory, modalities, "token_embeddings", {"chat_template": {"add_generation_prompt": True}}
    )
    write_pooling(directory / "1_Pooling", _hidden_size(model.encoder), "lasttoken")
    write_modules(directory, [("", TRANSFORMER), ("1_Pooling", POOLING), ("2_Normalize", NORMALIZE)])


def _write_composed(model: ComposedModel, state: Mapping[str, Tensor], directory: Path) -> None:
    """Write two plain transformers directories, the projections, and a sentence-transformers router over all."""
    types: dict[str, str] = {}
    structure: dict[str, list[str]] = {}
    for part, encoder in ((TEXT, model.text_encoder), (IMAGE, model.image_encoder)):
        folder = directory / part
        folder.mkdir()
        write_transformer(encoder, submodule_state(model, encoder, state), folder)
        if part == TEXT:
            write_tokenizer(model.tokenizer, folder)
        else:
            model.image_processor.save_pretrained(folder)
        pooler = part == IMAGE and model.image_pooling == "pooler"
        write_transformer_module(
            folder,
            {part: {"method": "forward", "method_output_name": "pooler_output" if pooler else "last_hidden_state"}},
            "sentence_embedding" if pooler else "token_embeddings",
            {"text": {"max_length": model.texts.max_length}} if part == TEXT else {},
        )
        modules = {part: TRANSFORMER}
        projection = getattr(model, f"{part}_projection")
        if not pooler:
            pooling = model.text_pooling if part == TEXT else model.image_pooling
            modules[f"{part}_pooling"] = POOLING
            write_pooling(directory / f"{part}_pooling", projection.in_features, pooling.replace("_", ""))
        modules[f"{part}_projection"] = DENSE
        write_dense(directory / f"{part}_projection", submodule_state(model, projection, state)["weight"])
        types |= modules
        structure[part] = list(modules)
    routes = {str((None, part)): part for part in structure}
    parameters = {"default_route": TEXT, "allow_empty_key": True, "route_mappings": routes}
    write_json(directory / "router_config.json", {"types": types, "structure": structure, "parameters": parameters})
    write_modules(directory, [("", ROUTER), ("1_Normalize", NORMALIZE)])
    facts = {"text_pooling": model.text_pooling, "image_pooling": model.image_pooling}
    limits = {"max_length": model.texts.max_length}
    prompts = {"query_prompt": model.config.query_prompt, "passage_prompt": model.config.passage_prompt}
    write_json(directory / COMPOSED_FILE, facts | limits | prompts)


def write_transformer(encoder: Any, weights: Mapping[str, Tensor], directory: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` of ``encoder``, the ``weights`` in fp32."""
    with quiet_transformers():
        encoder.save_pretrained(directory, state_dict=dict(weights))
    # save_pretrained writes the dtype of the (perhaps bf16) training weights; those on disk are fp32.
    path = directory / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        part.pop("torch_dtype", None)
        if "dtype" in part:
            part["dtype"] = "float32"
    write_json(path, config)


def _write_processor(processor: Any, directory: Path, max_length: int | None) -> None:
    tokenizer = processor.tokenizer
    kept = tokenizer.model_max_length
    try:
        if max_length is not None:  # clients cut texts at this length
            tokenizer.model_max_length = max_length
        with quiet_transformers():
            processor.save_pretrained(directory)
    finally:
        tokenizer.model_max_length = kept


def _hidden_size(encoder: Any) -> int:
    facts = encoder.config
    return int(getattr(facts, "hidden_size", None) or facts.get_text_config().hidden_size)


def _card_text(model: Any, card: RunCard) -> CardText:
    kinds = {ClipModel: "CLIP-style", ComposedModel: "composed text and image", VlmModel: "vision-language"}
    mixed = "Text and picture together: {'text': …, 'image': …}." if isinstance(model, VlmModel) else (
        "Text and picture as one query: add both unit vectors and normalise the sum."
    )  # fmt: skip
    loaders = {"sentence-transformers": SENTENCE_TRANSFORMERS}
    if not isinstance(model, ComposedModel):
        loaders["transformers"] = _transformers_code(model)
    return CardText(
        title=card.name,
        summary=f"A {kinds[type(model)]} embedding model: texts and pictures in one space, trained with "
        "[embed](https://pypi.org/project/embed-core/).",
        tags=("feature-extraction", "sentence-similarity", "image-text-retrieval"),
        loaders=loaders,
        notes=(mixed,),
    )


SENTENCE_TRANSFORMERS = """\
from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/directory")
texts = model.encode(["a red circle", "a blue square"])
pictures = model.encode([Image.new("RGB", (64, 64), "red")])
print(model.similarity(texts, pictures))
"""


def _transformers_code(model: Any) -> str:
    if isinstance(model, VlmModel):
        return """\
from transformers import AutoModel, AutoProcessor

processor = AutoProcessor.from_pretrained("path/to/this/directory")
model = AutoModel.from_pretrained("path/to/this/directory")
content = [{"type": "image", "path": "cat.jpg"}, {"type": "text", "text": "the same, in winter"}]
messages = [{"role": "user", "content": content}]
options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
inputs = processor.apply_chat_template(messages, **options)
vector = model(**inputs).last_hidden_state[:, -1]
"""
    padding = '"max_length"' if model.texts.fixed else "True"
    return f"""\
from PIL import Image
from transformers import AutoModel, AutoProcessor

processor = AutoProcessor.from_pretrained("path/to/this/directory")
model = AutoModel.from_pretrained("path/to/this/directory")
texts = processor(text=["a red circle", "a blue square"], padding={padding}, return_tensors="pt")
pictures = processor(images=[Image.new("RGB", (64, 64), "red")], return_tensors="pt")
scores = model(**texts, **pictures).logits_per_image
"""
