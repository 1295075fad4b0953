"""The checkpoint kind ``vision``: it comes back, and transformers and sentence-transformers give the same vectors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional

from embed_core.config.context import BuildContext
from embed_core.errors import CheckpointError
from embed_core.testing.checkpoints import check_checkpointer, sample_card
from embed_core.testing.models import encode
from embed_core.testing.tiny import TinyModel
from embed_vision.datasets.items import Mixed, Picture
from embed_vision.export.checkpoint import VisionCheckpointer
from embed_vision.models.config import ClipConfig, ComposedConfig, VisionConfig, VisionOptions, VlmConfig

CAPTIONS = ["a red circle", "Blue SQUARE, drawn by a hand that shakes", "원"]
TOLERANCE = 1e-5


@pytest.fixture
def pictures(make_picture: Callable[..., Picture]) -> list[Picture]:
    return [make_picture("red", "circle"), make_picture("blue", "square", (70, 30)), make_picture("white", "triangle")]


def opened(pictures: list[Picture]) -> list[Image.Image]:
    return [Image.open(BytesIO(picture.data or b"")) for picture in pictures]


def exported(config: VisionOptions, directory: Path, context: BuildContext, **card: Any) -> Any:
    """The model of ``config``, in ``directory`` too."""
    model: Any = config.build(context)
    directory.mkdir(exist_ok=True)
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    VisionCheckpointer().export(model, state, directory, replace(sample_card(), **card))
    return model


def vectors(model: Any, items: list[Any]) -> torch.Tensor:
    found = encode(model, items).dense_ND
    assert found is not None
    return found


@pytest.fixture(params=["clip", "siglip", "composed", "composed-pooler", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def config(request: pytest.FixtureRequest, text_dir: Path, image_dir: Path) -> VisionOptions:
    kind: str = request.param
    if kind in ("clip", "siglip"):
        return ClipConfig(name_or_path=str(request.getfixturevalue(f"{kind}_dir")))
    if kind.startswith("composed"):
        pooling: Any = "pooler" if kind.endswith("pooler") else "cls"
        return ComposedConfig(
            text_name_or_path=str(text_dir), image_name_or_path=str(image_dir), width=12, image_pooling=pooling
        )
    return VlmConfig(name_or_path=str(request.getfixturevalue("vlm_dir")(kind)))


def test_it_comes_back(config: VisionOptions, context: BuildContext, tmp_path: Path, pictures: list[Picture]) -> None:
    items = [*CAPTIONS, *pictures, Mixed("in winter", pictures[0])]
    model = config.build(context)
    check_checkpointer(
        VisionCheckpointer(),
        model,
        lambda directory: VisionConfig(name_or_path=str(directory)).build(context),
        items,
        tmp_path / "out",
    )


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_transformers_gives_the_same_vectors_and_scores(
    kind: str, request: pytest.FixtureRequest, context: BuildContext, tmp_path: Path, pictures: list[Picture]
) -> None:
    from transformers import AutoModel, AutoProcessor, CLIPModel, SiglipModel

    trained = {"inner.logit_scale": torch.tensor([3.25]), "logit_bias": torch.tensor(-2.5)}
    config = ClipConfig(name_or_path=str(request.getfixturevalue(f"{kind}_dir")))
    model = exported(config, tmp_path, context, loss_state=trained)
    loaded = (CLIPModel if kind == "clip" else SiglipModel).from_pretrained(tmp_path).eval()
    assert type(AutoModel.from_pretrained(tmp_path)) is type(loaded)
    processor = AutoProcessor.from_pretrained(tmp_path)
    padding: Any = "max_length" if kind == "siglip" else True
    with torch.no_grad():
        texts = processor(text=CAPTIONS, padding=padding, truncation=True, return_tensors="pt")
        if kind == "siglip":  # as its model card says
            texts = {"input_ids": texts["input_ids"]}
        images = processor(images=opened(pictures), return_tensors="pt")
        output = loaded(**texts, **images)
    ours_text, ours_image = vectors(model, CAPTIONS), vectors(model, pictures)
    torch.testing.assert_close(output.text_embeds, ours_text, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(output.image_embeds, ours_image, atol=TOLERANCE, rtol=0)
    expected = ours_text @ ours_image.T * torch.tensor(3.25).exp() - (2.5 if kind == "siglip" else 0)
    torch.testing.assert_close(output.logits_per_text, expected, atol=1e-3, rtol=0)


def test_sentence_transformers_gives_the_same_vectors(
    config: VisionOptions, context: BuildContext, tmp_path: Path, pictures: list[Picture]
) -> None:
    from sentence_transformers import SentenceTransformer

    vlm = isinstance(config, VlmConfig)
    if vlm:
        pytest.importorskip("torchvision", reason="transformers has no Qwen processor without torchvision")
    model = exported(config.model_copy(update={"query_prompt": "find: "}), tmp_path, context)
    client = SentenceTransformer(str(tmp_path), device="cpu")
    theirs = torch.from_numpy(client.encode(CAPTIONS, prompt_name="query"))
    torch.testing.assert_close(theirs, vectors(model, CAPTIONS), atol=TOLERANCE, rtol=0)
    theirs = torch.from_numpy(client.encode(opened(pictures), prompt_name="query" if vlm else None))
    torch.testing.assert_close(theirs, vectors(model, pictures), atol=TOLERANCE, rtol=0)


def test_files_of_pictures_go_the_same_way_in_sentence_transformers(
    clip_dir: Path, context: BuildContext, tmp_path: Path, as_bytes: Callable[..., bytes]
) -> None:
    """Turned by EXIF, with an alpha channel, grey, CMYK, with a palette: opened as transformers opens them."""
    from sentence_transformers import SentenceTransformer
    from transformers.image_utils import load_image

    model = exported(ClipConfig(name_or_path=str(clip_dir)), tmp_path / "model", context)
    base = Image.radial_gradient("L").resize((50, 34))
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn = Image.merge("RGB", (base, base.transpose(Image.Transpose.FLIP_LEFT_RIGHT), base.rotate(90)))
    files = {
        "turned.jpg": as_bytes(drawn, "JPEG", exif=exif, quality=95),
        "clear.png": as_bytes(Image.merge("RGBA", (*drawn.split(), base))),
        "grey.png": as_bytes(base),
        "cmyk.jpg": as_bytes(drawn.convert("CMYK"), "JPEG", quality=95),
        "palette.gif": as_bytes(drawn.quantize(16), "GIF"),
    }
    paths = []
    for name, data in files.items():
        paths.append(str(tmp_path / name))
        Path(paths[-1]).write_bytes(data)
    # As sentence-transformers does with paths where there is no torchvision.
    images = [load_image(path) for path in paths]
    theirs = torch.from_numpy(SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(images))
    ours = vectors(model, [Picture(path) for path in paths])
    torch.testing.assert_close(theirs, ours, atol=TOLERANCE, rtol=0)
    assert float((ours[0] - ours[1]).abs().max()) > 1e-3


def test_a_vision_language_model_in_transformers(
    vlm_dir: Callable[[str], Path], context: BuildContext, tmp_path: Path, pictures: list[Picture]
) -> None:
    """The exported model and processor, called as their own classes are called, give the vector of the last token."""
    from transformers import AutoModel

    from embed_vision.models.build import load_processor

    config = VlmConfig(name_or_path=str(vlm_dir("qwen2_5_vl")), suffix="<|endoftext|>", query_prompt="Find it.")
    model = exported(config, tmp_path, context)
    again = VlmConfig(name_or_path=str(tmp_path))
    processor, loaded = load_processor(tmp_path, again), AutoModel.from_pretrained(tmp_path).eval()
    content = [{"type": "image", "image": opened(pictures)[0]}, {"type": "text", "text": "in winter"}]
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Find it."}]},
        {"role": "user", "content": content},
    ]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert inputs["input_ids"][0, -1] == processor.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    with torch.no_grad():
        expected = functional.normalize(loaded(**inputs).last_hidden_state[:, -1], dim=-1)
    torch.testing.assert_close(vectors(model, [Mixed("in winter", pictures[0])]), expected, atol=TOLERANCE, rtol=0)


def test_a_composed_model_loads_without_our_code(
    text_dir: Path, image_dir: Path, context: BuildContext, tmp_path: Path, pictures: list[Picture]
) -> None:
    from safetensors.torch import load_file
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    config = ComposedConfig(text_name_or_path=str(text_dir), image_name_or_path=str(image_dir), width=12)
    model = exported(config, tmp_path, context)
    with torch.no_grad():
        tokens = AutoTokenizer.from_pretrained(tmp_path / "text")(CAPTIONS, padding=True, return_tensors="pt")
        states = AutoModel.from_pretrained(tmp_path / "text").eval()(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1)
        text = (states * mask).sum(1) / mask.sum(1)
        pixels = AutoImageProcessor.from_pretrained(tmp_path / "image")(opened(pictures), return_tensors="pt")
        image = AutoModel.from_pretrained(tmp_path / "image").eval()(**pixels).last_hidden_state[:, 0]
    for part, states_NH, items in (("text", text, CAPTIONS), ("image", image, pictures)):
        weight = load_file(tmp_path / f"{part}_projection" / "model.safetensors")["linear.weight"]
        expected = functional.normalize(states_NH @ weight.T, dim=-1)
        torch.testing.assert_close(vectors(model, items), expected, atol=TOLERANCE, rtol=0)


def test_the_card_says_how_to_load_it(clip_dir: Path, context: BuildContext, tmp_path: Path) -> None:
    exported(ClipConfig(name_or_path=str(clip_dir)), tmp_path, context)
    card = (tmp_path / "README.md").read_text()
    assert "AutoProcessor.from_pretrained" in card
    assert "SentenceTransformer(" in card
    assert "add both unit vectors" in card
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="writes models of kinds clip, composed and vlm, not TinyModel: use the"):
        VisionCheckpointer().export(TinyModel(), {}, tmp_path, sample_card())
