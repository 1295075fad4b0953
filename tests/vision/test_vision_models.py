"""The model kinds: their promises, their errors, and what of their inputs they share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch.nn import functional

from embed_core.config.context import BuildContext
from embed_core.errors import CheckpointError, ConfigError, DataError
from embed_core.models.lora.build import adapt
from embed_core.models.lora.config import LoraModelConfig
from embed_core.testing.components import check_plugin
from embed_core.testing.models import check_model, encode
from embed_vision.datasets.items import Mixed, Picture
from embed_vision.models.config import ClipConfig, ClipShape, ComposedConfig, VisionConfig, VlmConfig

KINDS = ["clip", "siglip", "composed", "composed-mean", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, context: BuildContext) -> Any:
    return build(request.param, request, context)


def build(kind: str, request: pytest.FixtureRequest, context: BuildContext, **options: Any) -> Any:
    if kind in ("clip", "siglip"):
        config: Any = ClipConfig(name_or_path=str(request.getfixturevalue(f"{kind}_dir")), **options)
    elif kind.startswith("composed"):
        parts = {f"{part}_name_or_path": str(request.getfixturevalue(f"{part}_dir")) for part in ("text", "image")}
        if kind.endswith("mean"):
            options |= {"image_pooling": "mean", "text_pooling": "last_token"}
        config = ComposedConfig(**parts, width=12, **options)
    else:
        config = VlmConfig(name_or_path=str(request.getfixturevalue("vlm_dir")(kind)), **options)
    return config.build(context)


@pytest.fixture
def items(make_picture: Callable[..., Picture]) -> list[Any]:
    return [
        "a red circle",
        make_picture("red", "circle"),
        Mixed("the same in green", make_picture("red", "circle")),
        "a blue square that somebody has drawn on black by hand, and then a second one",
        make_picture("blue", "square", (90, 30)),
        "",
    ]


def test_the_promises_of_a_model(model: Any, items: list[Any]) -> None:
    for role in ("query", "passage"):
        check_model(model, items, role=role, tolerance=1e-5)  # type: ignore[arg-type]


def test_texts_alone_and_pictures_alone(model: Any, items: list[Any]) -> None:
    """The blank row that is put into a chunk of one kind changes nothing and does not come out."""
    whole = encode(model, items).dense_ND
    assert whole is not None
    for chosen in ([0, 3, 5], [1, 4]):
        part = encode(model, [items[index] for index in chosen]).dense_ND
        torch.testing.assert_close(part, whole[chosen], atol=1e-5, rtol=0)
    assert float((whole.norm(dim=1) - 1).abs().max()) < 1e-5


@pytest.mark.parametrize("role", ["query", "passage"])
def test_every_parameter_has_a_gradient_whatever_is_in_the_chunk(model: Any, items: list[Any], role: Any) -> None:
    """Under ZeRO every rank has to bring a gradient of every parameter, though its rows are texts only."""
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    for chosen in ([items[0], items[3]], [items[1], items[4]]):
        model.zero_grad()
        vectors = model(**model.collate(model.tokenize(chosen, role, [None] * 2))).dense_ND
        (vectors * torch.linspace(0.5, 1.5, vectors.shape[1])).sum().backward()
        assert [name for name, value in trained.items() if value.grad is None] == []


def test_one_picture_in_two_columns_has_one_key(model: Any, make_picture: Callable[..., Picture]) -> None:
    def key(item: Any, role: Any, prompt: str | None = None) -> bytes:
        found: bytes = model.tokenize([item], role, [prompt])[0].key
        return found

    picture = make_picture("red", "circle")
    assert key(picture, "query") == key(Picture(data=picture.data, place="b:9"), "passage")
    assert key(picture, "query") != key(make_picture("red", "square"), "query")
    assert key(Mixed("a", picture), "query") != key(Mixed("b", picture), "query")


def test_another_kind_of_item_is_a_bad_row(model: Any) -> None:
    with pytest.raises(DataError, match="an item is int, which no vision model reads: give texts, and pictures as"):
        model.tokenize([3], "query", [None])


def test_a_broken_picture_is_a_bad_row(model: Any) -> None:
    with pytest.raises(DataError, match=r"^rows.jsonl:5: picture of 3 bytes cannot be read"):
        model.tokenize(["fine", Mixed("broken", Picture(data=b"abc", place="rows.jsonl:5"))], "query", [None, None])


# CLIP-style


def test_a_pair_is_the_normalised_sum_of_its_parts(
    request: pytest.FixtureRequest, context: BuildContext, make_picture: Callable[..., Picture]
) -> None:
    for kind in ("clip", "siglip", "composed"):
        model, picture = build(kind, request, context), make_picture("green", "triangle")
        vectors = encode(model, ["a thing", picture, Mixed("a thing", picture)]).dense_ND
        assert vectors is not None
        torch.testing.assert_close(vectors[2], functional.normalize(vectors[0] + vectors[1], dim=0))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_vectors_are_those_of_transformers(
    kind: str, request: pytest.FixtureRequest, context: BuildContext, make_picture: Callable[..., Picture]
) -> None:
    """With every text padded to the longest the model has, as transformers' own examples do."""
    from transformers import AutoModel, AutoProcessor

    directory = request.getfixturevalue(f"{kind}_dir")
    theirs, processor = AutoModel.from_pretrained(directory).eval(), AutoProcessor.from_pretrained(directory)
    texts, pictures = ["a red circle", "blue"], [make_picture("red"), make_picture("blue", "square", (50, 80))]
    inputs = processor(text=texts, padding="max_length", return_tensors="pt")
    mask = {"attention_mask": inputs["attention_mask"]} if kind == "clip" else {}
    with torch.no_grad():
        text = theirs.get_text_features(input_ids=inputs["input_ids"], **mask).pooler_output
        opened = [Image.open(BytesIO(picture.data or b"")) for picture in pictures]
        image = theirs.get_image_features(**processor(images=opened, return_tensors="pt")).pooler_output
    found = encode(build(kind, request, context), [*texts, *pictures]).dense_ND
    expected = functional.normalize(torch.cat([text, image]), dim=-1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_what_a_loss_would_train_is_left_to_the_loss(request: pytest.FixtureRequest, context: BuildContext) -> None:
    for kind, names in (("clip", {"encoder.logit_scale"}), ("siglip", {"encoder.logit_scale", "encoder.logit_bias"})):
        model = build(kind, request, context)
        assert {name for name, value in model.named_parameters() if not value.requires_grad} == names


def test_freezing_a_tower(request: pytest.FixtureRequest, context: BuildContext) -> None:
    model = build("clip", request, context, freeze=("image",))
    trained = {name.split(".")[1] for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {"text_model", "text_projection"}
    model = build("composed", request, context, freeze=("text", "image"))
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {"text_projection.weight", "image_projection.weight"}
    assert not any(
        p.requires_grad for p in build("qwen3_vl", request, context, freeze=("image",)).encoder.visual.parameters()
    )
    with pytest.raises(ValidationError, match="leaves nothing to train"):
        ClipConfig(freeze=("image", "text"))


def test_prompts_go_before_texts_alone(
    request: pytest.FixtureRequest, context: BuildContext, make_picture: Callable[..., Picture]
) -> None:
    plain, prompted = build("clip", request, context), build("clip", request, context, query_prompt="find ")
    picture = make_picture()

    def keys(model: Any, item: Any, role: Any, prompt: str | None = None) -> bytes:
        found: bytes = model.tokenize([item], role, [prompt])[0].key
        return found

    assert keys(prompted, "a cat", "query") == keys(plain, "find a cat", "query")
    assert keys(prompted, "a cat", "passage") == keys(plain, "a cat", "passage")
    assert keys(prompted, "a cat", "query", "see ") == keys(plain, "see a cat", "query")
    assert keys(prompted, picture, "query") == keys(plain, picture, "query")
    assert prompted.prompts == {"query": "find "}


def test_lengths_are_patches_and_tokens(
    request: pytest.FixtureRequest, context: BuildContext, make_picture: Callable[..., Picture]
) -> None:
    model = build("clip", request, context)
    text, picture, both = model.tokenize(["red", make_picture(), Mixed("red", make_picture())], "query", [None] * 3)
    assert picture.length == 17  # 4 x 4 patches and the class token
    assert both.length == text.length + picture.length
    assert build("siglip", request, context).tokenize(["red"], "query", [None])[0].length == 16  # padding is seen


@pytest.mark.parametrize("kind", ["clip", "composed"])
def test_a_length_without_positions_is_refused(
    kind: str, request: pytest.FixtureRequest, context: BuildContext
) -> None:
    with pytest.raises(
        ConfigError, match=r"^model.max_length 9999 is more than the \d+ tokens that .* set it to \d+ or"
    ):
        build(kind, request, context, max_length=9999)


def test_long_texts_are_cut(request: pytest.FixtureRequest, context: BuildContext) -> None:
    for kind in ("clip", "composed"):
        model = build(kind, request, context, max_length=6)
        encoded = model.tokenize(["a blue square " * 20], "query", [None])[0]
        assert encoded.length == 6
        assert encoded.data["input_ids"][-1] == model.texts.tokenizer.eos_token_id


# from scratch


def test_from_scratch_is_small_and_the_same_again(context: BuildContext, make_picture: Callable[..., Picture]) -> None:
    config = VisionConfig()
    model: Any = config.build(context)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert 400_000 < count < 900_000
    check_model(model, ["a red circle", "한국어 문장, and letters of no caption: ŵ", make_picture()])
    again: Any = config.build(context)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_tokenizer_reads_every_script_and_is_kept(context: BuildContext, tmp_path: Path) -> None:
    from embed_vision.models.scratch import clip_tokenizer

    shape = ClipShape(vocab_size=700)
    texts = ["a red circle", "ein blaues Quadrat", "빨간 원"] * 3
    first = clip_tokenizer(iter(texts), shape, tmp_path)
    assert first.vocab_size <= 700
    assert first.eos_token_id == len(first) - 1 == first.pad_token_id  # CLIP's old pooling takes the highest id
    ids = first("Ein neues WORT: 圓形 🙂").input_ids
    assert ids.count(first.eos_token_id) == 1  # which is also the unknown token
    assert first.decode(ids, skip_special_tokens=True) == "ein neues wort : 圓形 🙂"
    assert len(first("a red circle").input_ids) == 5
    (path,) = (tmp_path / "tokenizers").iterdir()
    kept = path.read_bytes()
    path.write_text("{")
    again = clip_tokenizer(iter(texts), shape, tmp_path)
    assert path.read_bytes() == kept
    assert again.get_vocab() == first.get_vocab()


def test_no_caption_is_said(context: BuildContext, tmp_path: Path) -> None:
    from embed_vision.models.scratch import clip_tokenizer

    with pytest.raises(ConfigError, match="the dataset has no caption to train a from-scratch tokenizer on: check"):
        clip_tokenizer(iter([" "]), ClipShape(), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"hidden": 30}, "4 attention heads do not divide hidden size 30"), ({"patch_size": 9}, "patches of 9 pixels")],
)
def test_sizes_that_do_not_divide(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ClipShape(**options)  # type: ignore[arg-type]


# vision-language


def test_the_chat_has_the_instruction_of_the_row(
    request: pytest.FixtureRequest, context: BuildContext, make_picture: Callable[..., Picture]
) -> None:
    model = build("qwen2_vl", request, context, query_prompt="Find it.", suffix="<|endoftext|>")

    def chat(item: Any, role: Any, prompt: str | None = None) -> str:
        ids = model.tokenize([item], role, [prompt])[0].data["input_ids"]
        text: str = model.chat.tokenizer.decode(ids)
        return text.replace("<|image_pad|>", "*")

    start = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
    assert chat("a cat", "query") == start.format("Find it.", "a cat")
    assert chat("a cat", "passage") == start.format("Represent the user's input.", "a cat")
    assert chat("a cat", "query", "Look.") == start.format("Look.", "a cat")
    assert "system" not in chat("a cat", "query", "")
    picture = chat(Mixed("in winter", make_picture(size=(32, 32))), "query")
    assert picture == start.format("Find it.", "<|vision_start|>****<|vision_end|>in winter")


def test_long_texts_are_cut_inside_the_template(request: pytest.FixtureRequest, context: BuildContext) -> None:
    model = build("qwen2_vl", request, context, max_length=3)
    ids = model.tokenize(["abcdefgh"], "query", [None])[0].data["input_ids"]
    assert "user\nabc<|im_end|>" in model.chat.tokenizer.decode(ids)


def test_pixels_of_a_picture_are_bounded(
    request: pytest.FixtureRequest, context: BuildContext, make_picture: Callable[..., Picture]
) -> None:
    large = make_picture(size=(200, 200))

    def patches(**options: Any) -> int:
        found: int = (
            build("qwen2_vl", request, context, **options)
            .tokenize([large], "query", [None])[0]
            .data["pixel_values"]
            .shape[0]
        )
        return found

    assert patches(max_pixels=256) == 4  # 16 x 16 pixels in patches of 8
    assert patches() == 16
    small = build("qwen2_vl", request, context, min_pixels=1024).tokenize(
        [make_picture(size=(16, 16))], "query", [None]
    )[0]
    assert small.data["pixel_values"].shape[0] == 16


# choosing, and what does not fit


def test_the_kind_that_fits_is_chosen(
    request: pytest.FixtureRequest, context: BuildContext, text_dir: Path, image_dir: Path
) -> None:
    from embed_vision.models.clip import ClipModel
    from embed_vision.models.composed import ComposedModel
    from embed_vision.models.vlm import VlmModel

    clip, vlm = request.getfixturevalue("clip_dir"), request.getfixturevalue("vlm_dir")("qwen3_vl")
    chosen: Any = VisionConfig(name_or_path=str(clip), query_prompt="find ", options={"freeze": ["text"]}).build(
        context
    )
    assert isinstance(chosen, ClipModel)
    assert chosen.config.query_prompt == "find "
    assert chosen.config.freeze == ("text",)
    assert isinstance(VisionConfig(name_or_path=str(vlm)).build(context), VlmModel)
    parts: dict[str, Any] = {"text_name_or_path": str(text_dir), "image_name_or_path": str(image_dir)}
    composed: Any = VisionConfig(encoder_mode="composed", **parts, options={"width": 10}).build(context)
    assert isinstance(composed, ComposedModel)
    assert composed.text_projection.out_features == 10
    with pytest.raises(ConfigError, match=r"model.text_name_or_path is one encoder of a composed model: set model.enc"):
        VisionConfig(**parts).build(context)
    with pytest.raises(ConfigError, match=r"^model.kind 'vision' as 'clip': width: .*"):
        VisionConfig(name_or_path=str(clip), options={"width": 10}).build(context)
    with pytest.raises(ConfigError, match="a composed model needs two encoders, and image_name_or_path is not set"):
        VisionConfig(encoder_mode="composed", text_name_or_path=str(text_dir)).build(context)


def test_models_of_the_wrong_kind_are_refused(
    request: pytest.FixtureRequest, context: BuildContext, text_dir: Path, image_dir: Path, tmp_path: Path
) -> None:
    clip, vlm = request.getfixturevalue("clip_dir"), request.getfixturevalue("vlm_dir")("qwen2_vl")
    with pytest.raises(CheckpointError, match="is a Qwen2VLModel, no CLIP-style model: use `kind: vlm` for"):
        ClipConfig(name_or_path=str(vlm)).build(context)
    with pytest.raises(CheckpointError, match="is a XLMRobertaModel, no CLIP-style model"):
        ClipConfig(name_or_path=str(text_dir)).build(context)
    with pytest.raises(CheckpointError, match=r"has no chat template: put its chat_template.jinja beside"):
        VlmConfig(name_or_path=str(clip)).build(context)
    with pytest.raises(CheckpointError, match=r"is no composed model that can be loaded .*: give a directory that the"):
        ComposedConfig(name_or_path=str(tmp_path)).build(context)
    with pytest.raises(CheckpointError, match=r"the image processor in .* cannot be loaded"):
        ComposedConfig(text_name_or_path=str(text_dir), image_name_or_path=str(text_dir)).build(context)


def test_a_processor_of_another_size_is_refused(clip_dir: Path, context: BuildContext, tmp_path: Path) -> None:
    import json
    import shutil

    shutil.copytree(clip_dir, tmp_path / "model")
    path = tmp_path / "model" / "processor_config.json"
    facts = json.loads(path.read_text())
    facts["image_processor"]["crop_size"] = {"height": 24, "width": 24}
    path.write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="makes pictures of 24 x 24 pixels, the model has 32 x 32: use the"):
        ClipConfig(name_or_path=str(tmp_path / "model")).build(context)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_name_or_path": "a"}, "needs two encoders, and image_name_or_path is not set"),
        ({"name_or_path": "a", "text_name_or_path": "b"}, "set one or the other"),
    ],
)
def test_a_composed_model_is_whole_or_of_two_parts(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ComposedConfig(**options)  # type: ignore[arg-type]


# around them


def test_lora_changes_nothing_at_first_and_merges(model: Any, items: list[Any], context: BuildContext) -> None:
    before = encode(model, items).dense_ND
    inner = copy.deepcopy(model)
    adapted = adapt(inner, LoraModelConfig(inner=ClipConfig(), r=4), context)
    torch.testing.assert_close(encode(adapted, items).dense_ND, before, atol=1e-6, rtol=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    after = encode(adapted, items).dense_ND
    assert after is not None
    assert before is not None
    assert float((after - before).abs().max()) > 1e-2
    merged, _ = adapted.merged(dict(adapted.named_parameters()) | dict(adapted.named_buffers()))
    torch.testing.assert_close(encode(merged, items).dense_ND, after, atol=1e-4, rtol=0)  # type: ignore[arg-type]


def test_gradient_checkpointing_gives_the_same_gradients(model: Any, items: list[Any]) -> None:
    from embed_core.acceleration.activation_checkpointing import enable_activation_checkpointing

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        vectors = model.train()(**model.collate(model.tokenize(items, "query", [None] * len(items)))).dense_ND
        (vectors * torch.linspace(0.5, 1.5, vectors.shape[1])).sum().backward()
        return [value.grad.clone() for value in model.parameters() if value.grad is not None]

    before = gradients()
    enable_activation_checkpointing(model)
    for one, other in zip(gradients(), before, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_the_plugin_is_whole() -> None:
    check_plugin("vision")
