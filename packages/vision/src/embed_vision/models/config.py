"""Configs of the model kinds and of the checkpoint kind ``vision``."""

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
    """Keys that all model kinds of this package have in common."""

    revision: str | None = None
    """Branch, tag or commit of a model of the hub; None = its main branch."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""
    query_prompt: str | None = None
    """Prefix of every query text whose row has no prompt of its own; for a model with a chat template, its
    instruction."""
    passage_prompt: str | None = None
    """Prefix of every passage text whose row has no prompt of its own; for a model with a chat template, its
    instruction."""
    max_length: int | None = Field(default=None, ge=3)
    """Number of tokens at which texts are cut, special tokens included. None = the model's number of positions, or 512
    in a model without a limit."""
    image_workers: int = Field(default=0, ge=0)
    """Threads that decode and process pictures; 0 = one per core, at most eight."""
    image_cache_mb: int = Field(default=256, ge=0)
    """Memory in MB for the most recently used processed pictures: a small data set is decoded once; 0 = none."""
    max_image_pixels: int = Field(default=MAX_IMAGE_PIXELS, gt=0, le=PILLOWS_LIMIT)
    """Largest number of pixels of a picture before processing; a larger one (a decompression bomb) makes a bad row."""


class ClipShape(Section):
    """Size of a random CLIP-shaped model; the defaults give about 600,000 parameters."""

    vocab_size: int = Field(default=2000, ge=600)
    """Size of the byte-level tokenizer trained on the captions, with the 256 bytes in it twice; few captions give fewer
    pieces."""
    hidden: int = Field(default=64, gt=0)
    """Width of both towers."""
    layers: int = Field(default=4, gt=0)
    """Transformer blocks of each tower; their feed-forward parts are four times as wide as ``hidden``."""
    heads: int = Field(default=4, gt=0)
    """Number of attention heads; it must divide ``hidden``."""
    width: int = Field(default=64, gt=0)
    """Width of the vectors."""
    image_size: int = Field(default=48, gt=0)
    """Side in pixels of the squares that pictures are scaled and cropped to."""
    patch_size: int = Field(default=8, gt=0)
    """Side of a patch in pixels; it must divide ``image_size``."""
    max_length: int = Field(default=77, ge=3)
    """Number of positions for tokens of a text."""

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
    """CLIP, SigLIP, SigLIP 2 and other transformers models with ``get_text_features`` and ``get_image_features``
    (Radford et al. 2021, arXiv 2103.00020; Zhai et al. 2023, arXiv 2303.15343).

    The vector of a query of text and picture is the normalised sum of both unit vectors.
    """

    kind: Literal["clip"] = "clip"
    name_or_path: str = FROM_SCRATCH
    """A model directory, a model of the hub (``openai/clip-vit-base-patch32``), or ``from-scratch``: random weights in
    the shape below, with a tokenizer trained on the run's own captions."""
    from_scratch: ClipShape = ClipShape()
    """Size of a ``from-scratch`` model; a loaded model has its own."""
    freeze: tuple[Literal["text", "image"], ...] = ()
    """Towers that are not trained: ``[image]`` trains the text tower to match a given image tower (LiT; Zhai et al.
    2022, arXiv 2111.07991)."""

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
    """A composed model that the checkpoint kind ``vision`` wrote: both encoders and the projections. None = compose it
    from the two below, with random projections."""
    text_name_or_path: str | None = None
    """The text encoder: a directory or a model of the hub with a tokenizer."""
    image_name_or_path: str | None = None
    """The image encoder (ViT, DINOv2, Swin, …): a directory or a model of the hub with an image processor."""
    width: int = Field(default=512, gt=0)
    """Width of the vectors; a loaded model has its own."""
    text_pooling: Pooling = "mean"
    """How token states become the text vector: the first token, the mean of all, or the last one."""
    image_pooling: Literal["cls", "mean", "pooler"] = "cls"
    """How states become the image vector: the first token, the mean of all, or the encoder's own pooler."""
    freeze: tuple[Literal["text", "image"], ...] = ()
    """Encoders that are not trained; their projections are. ``[text, image]`` trains only the projections."""

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
    """Vision-language models with a chat template, such as Qwen2-VL and Qwen3-VL, as embedding models: the vector is
    the state of the last token (as in GME, arXiv 2412.16855, and Qwen3-VL-Embedding).

    A query of text and picture is one message of both. Prompts are system messages.
    """

    kind: Literal["vlm"] = "vlm"
    name_or_path: str
    """A model directory or a model of the hub, with a processor that has a chat template."""
    default_instruction: str = "Represent the user's input."
    """The system message of an item without a prompt; empty = none."""
    max_length: int | None = Field(default=2048, ge=3)
    """Number of tokens at which an item's own text is cut, without those of the chat template and the picture. None =
    no limit."""
    suffix: str = ""
    """Text added after the rendered chat, so that its last token gives the vector (``<|endoftext|>``)."""
    min_pixels: int | None = Field(default=None, gt=0)
    """Smaller pictures are scaled up to about this many pixels; None = the processor's setting."""
    max_pixels: int | None = Field(default=None, gt=0)
    """Larger pictures are scaled down to about this many pixels, which bounds their tokens; None = the processor's
    setting."""
    freeze: tuple[Literal["image"], ...] = ()
    """``[image]`` does not train the vision tower."""

    def build(self, context: BuildContext) -> Model:
        """The model, on CPU in fp32. Raises CheckpointError and ConfigError."""
        from embed_vision.models.build import build_vlm

        return build_vlm(self, context)


class VisionConfig(VisionOptions):
    """Chooses the kind: ``clip`` or ``vlm`` by the model at ``name_or_path``, ``composed`` for two encoders."""

    kind: Literal["vision"] = "vision"
    name_or_path: str | None = FROM_SCRATCH
    """A model directory, a model of the hub, or ``from-scratch``: a small CLIP."""
    encoder_mode: Literal["auto", "composed"] = "auto"
    """``auto`` loads one model of both modalities; ``composed`` composes ``text_name_or_path`` and
    ``image_name_or_path``, or loads a model composed before."""
    text_name_or_path: str | None = None
    """The text encoder of a composed model."""
    image_name_or_path: str | None = None
    """The image encoder of a composed model."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the chosen kind, such as ``{width: 256}`` for ``composed``."""

    def build(self, context: BuildContext) -> Model:
        """The model, on CPU in fp32. Raises CheckpointError and ConfigError."""
        from embed_vision.models.build import build_vision

        return build_vision(self, context)


class VisionCheckpointConfig(CheckpointConfig):
    """Writes model, processor and config as ``AutoModel``, ``AutoProcessor`` and ``SentenceTransformer`` load them."""

    kind: Literal["vision"] = "vision"

    def build(self, context: BuildContext) -> Checkpointer:
        """The exporter."""
        from embed_vision.export.checkpoint import VisionCheckpointer

        return VisionCheckpointer()
