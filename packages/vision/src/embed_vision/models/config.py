"""The models and the checkpoint of this package as components."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from embed_core.config.component import CheckpointConfig, ModelConfig, Section
from embed_core.models.from_scratch import FROM_SCRATCH
from embed_core.text.pooling import Pooling

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.protocols import Checkpointer, Model

MAX_IMAGE_PIXELS = 89_478_485
PILLOWS_LIMIT = 178_956_970


class VisionOptions(ModelConfig):
    """What all model kinds of this package have in common."""

    revision: str | None = None
    """Branch, tag or commit of a model of the hub; None = its main branch."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""
    query_prompt: str | None = None
    """Put before every query text whose row has no prompt of its own; for a model with a chat template, its
    instruction."""
    passage_prompt: str | None = None
    """Put before every passage text whose row has no prompt of its own; for a model with a chat template, its
    instruction."""
    max_length: int | None = Field(default=None, ge=3)
    """Tokens of a text, special tokens included; longer ones are cut. None = as many as the model has positions for,
    and 512 in a model without a limit."""
    image_workers: int = Field(default=0, ge=0)
    """Threads that decode and process pictures; 0 = a thread per core, eight at most."""
    image_cache_mb: int = Field(default=256, ge=0)
    """Memory for processed pictures in MB, the last used ones: a small data set is decoded once; 0 = none."""
    max_image_pixels: int = Field(default=MAX_IMAGE_PIXELS, gt=0, le=PILLOWS_LIMIT)
    """Pixels of a picture before it is processed; a larger one is a bad row (a decompression bomb)."""


class ClipShape(Section):
    """Size of a CLIP-shaped model built at random; the defaults make one of about 600,000 parameters."""

    vocab_size: int = Field(default=2000, ge=600)
    """Pieces of the byte-level tokenizer trained on the captions, the 256 bytes among them twice; few captions give
    fewer."""
    hidden: int = Field(default=64, gt=0)
    """Width of both towers."""
    layers: int = Field(default=4, gt=0)
    """Transformer blocks of each tower; their feed-forward parts are four times as wide as ``hidden``."""
    heads: int = Field(default=4, gt=0)
    """Attention heads; they must divide ``hidden``."""
    width: int = Field(default=64, gt=0)
    """Width of the vectors."""
    image_size: int = Field(default=48, gt=0)
    """Pictures are scaled and cropped to squares of so many pixels a side."""
    patch_size: int = Field(default=8, gt=0)
    """Side of a patch in pixels; it must divide ``image_size``."""
    max_length: int = Field(default=77, ge=3)
    """Tokens of a text that there are positions for."""

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(
                f"{self.heads} attention heads do not divide hidden size {self.hidden}: "
                "choose a `hidden` that is a multiple of `heads`"
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"patches of {self.patch_size} pixels do not divide an image of {self.image_size}: "
                "choose an `image_size` that is a multiple of `patch_size`"
            )
        return self


class ClipConfig(VisionOptions):
    """CLIP, SigLIP, SigLIP 2 and what else in transformers has ``get_text_features`` and ``get_image_features``
    (Radford et al. 2021, arXiv 2103.00020; Zhai et al. 2023, arXiv 2303.15343).

    A query of a text and a picture is the normalised sum of both unit vectors.
    """

    kind: Literal["clip"] = "clip"
    name_or_path: str = FROM_SCRATCH
    """A model directory, a model of the hub (``openai/clip-vit-base-patch32``), or ``from-scratch``: random weights in
    the shape below, with a tokenizer trained on the run's own captions."""
    from_scratch: ClipShape = ClipShape()
    """Size of a ``from-scratch`` model; a model that is loaded has its own."""
    freeze: tuple[Literal["text", "image"], ...] = ()
    """Towers that stay as they are: ``[image]`` trains the text tower to a given image tower (LiT; Zhai et al. 2022,
    arXiv 2111.07991)."""

    @model_validator(mode="after")
    def _something_is_trained(self) -> Self:
        if set(self.freeze) == {"text", "image"}:
            raise ValueError("freeze: [text, image] leaves nothing to train: freeze one tower or none")
        return self

    def build(self, context: BuildContext) -> Model:
        """The model, on CPU in fp32. Raises CheckpointError and ConfigError."""
        from embed_vision.models.build import build_clip

        return build_clip(self, context)


class ComposedConfig(VisionOptions):
    """Any text encoder and any image encoder of transformers, each with a linear projection into a common space."""

    kind: Literal["composed"] = "composed"
    name_or_path: str | None = None
    """A directory that the checkpoint kind ``vision`` wrote of such a model: both encoders and the projections. None =
    put together from the two below, the projections at random."""
    text_name_or_path: str | None = None
    """The text encoder: a directory or a model of the hub with a tokenizer."""
    image_name_or_path: str | None = None
    """The image encoder (ViT, DINOv2, Swin, …): a directory or a model of the hub with an image processor."""
    width: int = Field(default=512, gt=0)
    """Width of the vectors; a model that is loaded has its own."""
    text_pooling: Pooling = "mean"
    """Where the text vector comes from: the first token, the mean of all, the last one."""
    image_pooling: Literal["cls", "mean", "pooler"] = "cls"
    """Where the image vector comes from: the first token, the mean of all, the encoder's own pooler."""
    freeze: tuple[Literal["text", "image"], ...] = ()
    """Encoders that stay as they are; their projections are trained. ``[text, image]`` trains the projections alone."""

    @model_validator(mode="after")
    def _has_two_encoders(self) -> Self:
        parts = (self.text_name_or_path, self.image_name_or_path)
        if self.name_or_path is None and None in parts:
            missing = "text_name_or_path" if parts[0] is None else "image_name_or_path"
            raise ValueError(
                f"a composed model needs two encoders, and {missing} is not set: set text_name_or_path and "
                "image_name_or_path, or name_or_path for a model that was put together before"
            )
        if self.name_or_path is not None and parts != (None, None):
            raise ValueError(
                "name_or_path is a whole model, text_name_or_path and image_name_or_path are the parts of a new one: "
                "set one or the other"
            )
        return self

    def build(self, context: BuildContext) -> Model:
        """The model, on CPU in fp32. Raises CheckpointError and ConfigError."""
        from embed_vision.models.build import build_composed

        return build_composed(self, context)


class VlmConfig(VisionOptions):
    """Vision-language models with a chat template, such as Qwen2-VL and Qwen3-VL, as embedding models: the state of
    the last token (as in GME, arXiv 2412.16855, and Qwen3-VL-Embedding).

    A query of a text and a picture is one message of both. Prompts are the system message.
    """

    kind: Literal["vlm"] = "vlm"
    name_or_path: str
    """A model directory or a model of the hub, with a processor that has a chat template."""
    default_instruction: str = "Represent the user's input."
    """The system message of an item without a prompt; empty = none."""
    max_length: int | None = Field(default=2048, ge=3)
    """Tokens of an item's own text, those of the chat template and of the picture not counted; longer ones are cut.
    None = no limit."""
    suffix: str = ""
    """Put after the rendered chat, before the vector is taken from the last token (``<|endoftext|>``)."""
    min_pixels: int | None = Field(default=None, gt=0)
    """Smaller pictures are scaled up to about so many pixels; None = as the processor says."""
    max_pixels: int | None = Field(default=None, gt=0)
    """Larger pictures are scaled down to about so many pixels, which bounds their tokens; None = as the processor
    says."""
    freeze: tuple[Literal["image"], ...] = ()
    """``[image]`` leaves the vision tower as it is."""

    def build(self, context: BuildContext) -> Model:
        """The model, on CPU in fp32. Raises CheckpointError and ConfigError."""
        from embed_vision.models.build import build_vlm

        return build_vlm(self, context)


class VisionConfig(VisionOptions):
    """The kind that fits: ``clip`` or ``vlm`` by what ``name_or_path`` is, ``composed`` for two encoders."""

    kind: Literal["vision"] = "vision"
    name_or_path: str | None = FROM_SCRATCH
    """A model directory, a model of the hub, or ``from-scratch``: a small CLIP."""
    encoder_mode: Literal["auto", "composed"] = "auto"
    """``auto`` loads one model of both modalities; ``composed`` puts ``text_name_or_path`` and ``image_name_or_path``
    together, or loads what was."""
    text_name_or_path: str | None = None
    """The text encoder of a composed model."""
    image_name_or_path: str | None = None
    """The image encoder of a composed model."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the kind that is chosen: ``{width: 256}`` for ``composed``."""

    def build(self, context: BuildContext) -> Model:
        """The model, on CPU in fp32. Raises CheckpointError and ConfigError."""
        from embed_vision.models.build import build_vision

        return build_vision(self, context)


class VisionCheckpointConfig(CheckpointConfig):
    """The model, its processor and its config, as ``AutoModel``, ``AutoProcessor`` and ``SentenceTransformer`` load
    them."""

    kind: Literal["vision"] = "vision"

    def build(self, context: BuildContext) -> Checkpointer:
        """The exporter."""
        from embed_vision.export.checkpoint import VisionCheckpointer

        return VisionCheckpointer()
