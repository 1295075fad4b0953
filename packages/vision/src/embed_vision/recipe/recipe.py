"""The flat keys that users of image-text trainers know, compiled into a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from embed_core.config.retrieval_keys import HeldOutKeys, ModelKeys, NegativesKeys, TemperatureKeys
from embed_core.config.training_keys import CheckpointKeys, LoggingKeys, OptimizationKeys, OutputKeys, PrecisionKeys
from embed_core.models.from_scratch import FROM_SCRATCH
from embed_vision.datasets.config import PICTURES, Mode
from embed_vision.recipe.compile import OWN_DATA, Compiled
from embed_vision.recipe.defaults import BY_MODEL, Tracker, trackers


class VisionRecipe(
    ModelKeys,
    HeldOutKeys,
    NegativesKeys,
    TemperatureKeys,
    OutputKeys,
    OptimizationKeys,
    PrecisionKeys,
    CheckpointKeys,
    LoggingKeys,
):
    """Image-text training: CLIP and SigLIP, composed encoders, vision-language models.

    The flat keys of vembed-factory; ``--set key=value`` is its ``--config_override``. A key left at None takes a
    default that suits the model: one for ``from-scratch``, one for a model that is loaded.
    """

    name: ClassVar[str] = "vision"
    defaults: ClassVar[Mapping[str, Any]] = {"negatives": 1}
    by_model: ClassVar[Mapping[str, tuple[Any, Any]]] = BY_MODEL
    addons: ClassVar[Mapping[str, Mapping[str, Any] | str]] = {"teacher": {"teacher_kind": "vision"}}

    model_name: str | None = None
    """The same as ``model_name_or_path``, for instance ``openai/clip-vit-base-patch32``; None = that key."""
    encoder_mode: Literal["auto", "composed", "clip_like", "vlm_generic"] = "auto"
    """``auto``: by the model's architecture; ``composed``: ``text_model_name`` and ``image_model_name`` put together;
    ``clip_like``, ``vlm_generic``: as that, whatever its architecture says."""
    text_model_name: str | None = None
    """The text encoder of a composed model."""
    image_model_name: str | None = None
    """The image encoder of a composed model."""
    projection_dim: int | None = Field(default=None, gt=0)
    """Width of the vectors of a composed or a ``from-scratch`` model; None = 512, and 64 from scratch. A model that is
    loaded has its own."""
    pooling_method: Literal["cls", "mean"] | None = None
    """Where both encoders' vectors come from in a composed model; None = each encoder's usual place."""
    max_seq_length: int | None = Field(default=None, ge=3)
    """Tokens of a text; None = as many as the model takes."""
    num_workers: int = Field(default=0, ge=0)
    """Threads that decode and process pictures; 0 = a thread per core, eight at most."""

    retrieval_mode: Mode = "t2i"
    """What is looked for with what: t a text, i a picture, m a text with a picture (the query only)."""
    data_path: str = PICTURES
    """A .jsonl, .json or .parquet file, a Hugging Face dataset, or ``pictures``: symbols of an installed font."""
    val_data_path: str | None = None
    """Rows to evaluate on; None = the rows held out."""
    image_root: str | None = None
    """What relative paths of pictures are relative to; None = the folder of the data file."""
    column_mapping: dict[str, str] = Field(default_factory=dict)
    """Role → the data's own column: ``{query: caption, positive: image}``; roles: query, query_image, positive,
    negatives, score, prompt."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What a broken picture or a row that cannot be used does: stop before the run starts, or be left out, counted."""
    check_images: Literal["decode", "open"] = "decode"
    """How pictures are checked before the run starts: read whole, or their headers only."""
    split: str | None = None
    """Split of a Hugging Face dataset; None = the only one, or ``train``."""
    val_split: str | None = None
    """Split of ``val_data_path``, where that is a Hugging Face dataset; None = the only one, or ``train``."""
    run_name: str | None = None
    """Names the run in trackers and the default ``output_dir``; None = ``vision``."""

    loss_type: Literal["clip", "infonce", "siglip", "sigmoid", "triplet", "cosent"] = "clip"
    """``clip``: cross-entropy in both directions with a learned scale; ``infonce``: with a fixed one; ``siglip``, also
    called ``sigmoid``: every pair for itself; ``triplet``; ``cosent``."""
    triplet_margin: float = Field(default=0.5, gt=0)
    """Margin of ``triplet``: how much nearer than a negative the positive must be, in 1 − cosine."""

    epochs: float | None = Field(default=None, gt=0)
    """Passes over the data."""
    batch_size: int | None = Field(default=None, gt=0)
    """Rows per rank and batch."""
    lr: float | None = Field(default=None, gt=0)
    """The same as ``learning_rate``."""
    scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """How the learning rate goes on after the warm-up; ``constant`` has none."""

    use_gradient_cache: bool | None = None
    """Encode in chunks, twice, and keep the activations of one at a time: large batches in little memory, the same
    gradient. None = where the batch would not fit."""
    gradient_cache_chunk_size: int | None = Field(default=None, gt=0)
    """Pictures of one chunk (texts are shorter, so more of them); None = as many as the default token budget takes."""
    ddp_find_unused_parameters: bool = False
    """False only: parameters that a batch does not use need no search, their gradient is zero and is reduced."""

    report_to: Tracker | tuple[Tracker, ...] = "none"
    """``tensorboard``, ``wandb``, ``swanlab``, ``mlflow``, a list of them, ``all`` or ``none``."""
    gallery: int = Field(default=8, ge=0)
    """Sample queries that are drawn with what they find, before and after, into ``gallery-*.png``; 0 = none."""

    @field_validator("ddp_find_unused_parameters")
    @classmethod
    def _never_searched(cls, value: bool) -> bool:
        if value:
            raise ValueError(
                "ddp_find_unused_parameters: true is not needed: every gradient is reduced, also that of a parameter "
                "which a batch or a chunk did not use; leave the key out"
            )
        return value

    @field_validator("report_to")
    @classmethod
    def _trackers(cls, value: Any) -> Any:
        trackers(value)
        return value

    @model_validator(mode="after")
    def _one_name_for_one_thing(self) -> Self:
        for first, second in (("model_name", "model_name_or_path"), ("lr", "learning_rate")):
            values = getattr(self, first), getattr(self, second)
            if {first, second} <= self.model_fields_set and None not in values and values[0] != values[1]:
                raise ValueError(f"{first} is {values[0]!r} and {second} is {values[1]!r}: they mean the same; set one")
        return self

    @model_validator(mode="after")
    def _keys_belong_together(self) -> Self:
        if self.encoder_mode != "composed":
            for key in ("text_model_name", "image_model_name", "pooling_method"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} is about composed models: set encoder_mode: composed, or leave it out")
            if self.projection_dim is not None and self.named != FROM_SCRATCH:
                raise ValueError(
                    f"projection_dim: {self.named!r} has its own width: set encoder_mode: composed, or leave it out"
                )
        elif self.named == FROM_SCRATCH and None in (self.text_model_name, self.image_model_name):
            raise ValueError(
                "encoder_mode: composed needs text_model_name and image_model_name, or model_name for a composed model "
                "that was saved before"
            )
        if self.val_split is not None and self.val_data_path is None:
            raise ValueError("val_split is about val_data_path, which is not set: set it, or leave val_split out")
        if self.val_data_path == self.data_path and self.val_split == self.split:
            raise ValueError(
                f"val_data_path is data_path, {self.data_path!r}: the model would be evaluated on what it learns: set "
                "val_split to another of its splits, or leave val_data_path out for rows that are held out"
            )
        if self.data_path == PICTURES:
            for key in OWN_DATA:
                if key in self.model_fields_set and getattr(self, key):
                    raise ValueError(f"{key} is about data of your own, and data_path is {PICTURES!r}: set data_path")
        return self

    @property
    def named(self) -> str:
        """The model's name, by whichever key."""
        return str(self.model.get("name_or_path") or self.model_name or self.model_name_or_path)

    @property
    def scratch(self) -> bool:
        """Whether the model is random at first."""
        return self.named == FROM_SCRATCH and self.encoder_mode != "composed"

    def compile(self, world_size: int) -> dict[str, Any]:
        """See :meth:`embed_core.config.recipe.Recipe.compile`."""
        return Compiled(self).run(world_size)

    def sanity(self) -> dict[str, Any]:
        """A model of some ten thousand weights and a few rows; what the user set stays."""
        return Compiled(self).sanity()
