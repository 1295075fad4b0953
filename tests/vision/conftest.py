"""Directories of tiny random models, and pictures with captions: everything is made here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_vision.datasets.items import Picture
from embed_vision.models.config import ClipShape
from embed_vision.models.still import without_video

torch.set_num_threads(1)

COLOURS = ("red", "green", "blue", "orange", "purple", "white")
SHAPES = ("circle", "square", "triangle")
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def draw(colour: str, shape: str, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """One shape in the middle of a black picture."""
    image = Image.new("RGB", size, "black")
    pen, box = ImageDraw.Draw(image), (size[0] // 5, size[1] // 5, 4 * size[0] // 5, 4 * size[1] // 5)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([(box[0], box[3]), (box[2], box[3]), (size[0] // 2, box[1])], fill=colour)
    return image


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


class Captions:
    """What a from-scratch model asks of a dataset."""

    def texts(self) -> Iterator[str]:
        yield from (f"a {colour} {shape} on black, drawn by hand" for colour in COLOURS for shape in SHAPES)


@pytest.fixture(scope="session")
def context(tmp_path_factory: pytest.TempPathFactory) -> BuildContext:
    made = BuildContext(
        registry=Registry(), cache_dir=tmp_path_factory.mktemp("cache"), announce=lambda line: None, seed=3
    )
    made.dataset_factory = Captions  # type: ignore[assignment]
    return made


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., Picture]:
    """``make_picture("red", "circle", (w, h))``: PNG bytes."""
    return lambda colour="red", shape="circle", size=(40, 40): Picture(data=encoded(draw(colour, shape, size)))


@pytest.fixture(scope="session")
def as_bytes() -> Callable[..., bytes]:
    return encoded


@pytest.fixture(scope="session")
def shape() -> ClipShape:
    return ClipShape(vocab_size=620, hidden=32, layers=2, heads=2, width=16, image_size=32, patch_size=8)


@pytest.fixture(scope="session")
def clip_dir(tmp_path_factory: pytest.TempPathFactory, context: BuildContext, shape: ClipShape) -> Path:
    """A CLIPModel and its processor."""
    from embed_vision.models.scratch import clip_from_scratch

    directory = tmp_path_factory.mktemp("clip")
    model, processor = clip_from_scratch(shape, context)
    _spread(model)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def siglip_dir(tmp_path_factory: pytest.TempPathFactory, context: BuildContext, shape: ClipShape) -> Path:
    """A SiglipModel, with CLIP's tokenizer under its processor."""
    from transformers import SiglipConfig, SiglipModel, SiglipProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    from embed_vision.models.scratch import clip_tokenizer

    directory = tmp_path_factory.mktemp("siglip")
    tokenizer = clip_tokenizer(Captions().texts(), shape, context.cache_dir)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(5)
    model = SiglipModel(
        SiglipConfig(
            text_config=tower | {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 32},
            vision_config=tower | {"image_size": 32, "patch_size": 8},
        )
    )
    _spread(model)
    model.save_pretrained(directory)
    tokenizer.model_max_length = 16
    images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    SiglipProcessor(images, tokenizer).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def text_dir(tmp_path_factory: pytest.TempPathFactory, context: BuildContext) -> Path:
    """An XLM-RoBERTa encoder with its tokenizer."""
    from embed_core.models.from_scratch.config import EncoderShape
    from embed_core.models.from_scratch.encoder import xlm_roberta
    from embed_core.models.from_scratch.unigram import unigram_tokenizer

    directory = tmp_path_factory.mktemp("text")
    tokenizer = unigram_tokenizer(Captions().texts(), 120, context.cache_dir, lambda line: None, max_length=32)
    xlm_roberta(
        len(tokenizer), EncoderShape(vocab_size=120, hidden=24, layers=2, heads=2), max_length=32, seed=1
    ).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def image_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT with its image processor."""
    from transformers import ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    directory = tmp_path_factory.mktemp("image")
    torch.manual_seed(6)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = ViTModel(ViTConfig(**tower, image_size=32, patch_size=8))
    _spread(model)
    model.save_pretrained(directory)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def vlm_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``vlm_dir("qwen2_vl")``: a vision-language model of that type with its processor."""
    made: dict[str, Path] = {}

    def directory(kind: str) -> Path:
        if kind not in made:
            made[kind] = _qwen(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return directory


def _qwen(kind: str, directory: Path) -> Path:
    from transformers import AutoConfig, AutoModel, Qwen2Tokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    tokens += ["<|image_pad|>", "<|video_pad|>"]
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(vocab={piece: n for n, piece in enumerate([*letters, *tokens])}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": tokens[1:]})
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokens}
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512, "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
        "pad_token_id": ids["<|endoftext|>"],
    }  # fmt: skip
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": 8, "spatial_merge_size": 2}
    if kind == "qwen2_vl":
        vision |= {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32}
    if kind == "qwen2_5_vl":
        vision |= {"window_size": 32, "fullatt_block_indexes": [1]}
    if kind == "qwen3_vl":
        vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    config = AutoConfig.for_model(
        kind,
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(8)
    model = AutoModel.from_config(config)
    _spread(model)
    model.save_pretrained(directory)
    images = Qwen2VLImageProcessorPil(
        patch_size=8, size={"shortest_edge": 256, "longest_edge": 1024}, temporal_patch_size=2, merge_size=2
    )
    without_video(PROCESSOR_MAPPING[type(config)], images, tokenizer, CHAT).save_pretrained(directory)
    video = {"video_processor_type": f"{'Qwen3VL' if kind == 'qwen3_vl' else 'Qwen2VL'}VideoProcessor", "patch_size": 8}
    (directory / "video_preprocessor_config.json").write_text(json.dumps(video))
    return directory


def _spread(model: Any) -> None:
    """Weights of 0.02 make every vector alike; what a test compares should differ by more than rounding."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
