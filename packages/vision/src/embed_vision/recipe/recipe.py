"""The flat keys that users of image-text trainers know, compiled into a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from embed_core.config.recipe import Recipe
from embed_core.models.from_scratch import FROM_SCRATCH
from embed_vision.datasets.config import PICTURES, Mode
from embed_vision.recipe.compile import OWN_DATA, Compiled
from embed_vision.recipe.defaults import Tracker, trackers


class VisionRecipe(Recipe):
    """Image-text training: CLIP and SigLIP, composed encoders, vision-language models.

    The flat keys of vembed-factory; ``--set key=value`` is its ``--config_override``. A key left at None takes a
    default that suits the model: one for ``from-scratch``, one for a model that is loaded.
    """

    name: ClassVar[str] = "vision"

    model_name: str | None = None
    """A model directory, a model of the hub (``openai/clip-vit-base-patch32``), or ``from-scratch``; None = that."""
    model_name_or_path: str | None = None
    """The same as ``model_name``."""
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
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""
    max_seq_length: int | None = Field(default=None, ge=3)
    """Tokens of a text; None = as many as the model takes."""
    num_workers: int = Field(default=0, ge=0)
    """Threads that decode and process pictures; 0 = a thread per core, eight at most."""
    use_lora: bool = False
    """Train low-rank adapters on the encoders' linear layers instead of all weights; the export has them merged in."""
    lora_r: int = Field(default=16, gt=0)
    """Rank of the adapters."""
    lora_alpha: int = Field(default=32, gt=0)
    """Their update is scaled by lora_alpha / lora_r."""
    lora_dropout: float = Field(default=0.05, ge=0, lt=1)
    """Share of a layer's inputs that its adapter does not see in training."""
    lora_target_modules: str | tuple[str, ...] | None = None
    """Names of the layers that are adapted; None = all linear ones."""

    retrieval_mode: Mode = "t2i"
    """What is looked for with what: t a text, i a picture, m a text with a picture (the query only)."""
    data_path: str = PICTURES
    """A .jsonl, .json or .parquet file, a Hugging Face dataset, or ``pictures``: symbols of an installed font."""
    val_data_path: str | None = None
    """Rows to evaluate on; None = the rows held out."""
    held_out_rows: int | None = Field(default=None, ge=0)
    """Training rows held out to evaluate on; None = 160 of ``pictures``, a tenth of other data (at most 200) unless
    ``val_data_path`` is given."""
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
    """Of a Hugging Face dataset; None = the only one, or ``train``."""
    val_split: str | None = None
    """Of ``val_data_path``, where that is a Hugging Face dataset; None = the only one, or ``train``."""
    negatives: int = Field(default=1, ge=0)
    """Hard negatives drawn per row; a row without any has its positive only."""
    output_dir: Path | None = None
    """Where the run writes; None = ``runs/vision-DATE-TIME``."""
    run_name: str | None = None
    """Names the run in trackers and the default ``output_dir``; None = ``vision``."""
    seed: int = Field(default=42, ge=0)
    """Of the data order, the random weights and dropout."""

    loss_type: Literal["clip", "infonce", "siglip", "sigmoid", "triplet", "cosent"] = "clip"
    """``clip``: cross-entropy in both directions with a learned scale; ``infonce``: with a fixed one; ``siglip``, also
    called ``sigmoid``: every pair for itself; ``triplet``; ``cosent``."""
    temperature: float | None = Field(default=None, gt=0)
    """Similarities are divided by it: where the learned scale of ``clip`` and ``siglip`` starts (None = as the model
    has it), fixed for ``infonce`` and ``cosent`` (None = 0.05)."""
    triplet_margin: float = Field(default=0.5, gt=0)
    """Of ``triplet``: how much nearer than a negative the positive must be, in 1 − cosine."""
    use_mrl: bool = False
    """Train the vector to be cut (Matryoshka, by embed-mrl) at half, a quarter and so on of its width; ``mrl_dims``
    names other widths."""
    mrl_dims: tuple[int, ...] = ()
    """Widths at which the vector is trained to be cut; a ``from-scratch`` model is as wide as the largest."""
    mrl_weights: tuple[float, ...] = ()
    """Weight of the loss at each of ``mrl_dims``; none = 1 each."""

    epochs: float | None = Field(default=None, gt=0)
    """Passes over the data; None = 10 from scratch, else 3."""
    max_steps: int | None = Field(default=None, gt=0)
    """Optimizer steps, whatever the epochs."""
    batch_size: int | None = Field(default=None, gt=0)
    """Rows per rank and batch; None = 64 from scratch, else 32."""
    gradient_accumulation_steps: int = Field(default=1, gt=0)
    """Batches per optimizer step; each has its own in-batch negatives."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; None = 1e-3 from scratch, else 2e-5."""
    learning_rate: float | None = Field(default=None, gt=0)
    """The same as ``lr``."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW; none on biases, normalisation weights and the scale."""
    scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """How the learning rate goes on after the warm-up; ``constant`` has none."""
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps spent warming up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps spent warming up, whatever the ratio; 0 = by the ratio."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 = no clipping."""
    fp16: bool = False
    """Train in fp16 (CUDA only)."""
    bf16: bool | None = None
    """Multiply in bf16, over fp32 weights; None = where the hardware does so natively, false = fp32."""

    use_gradient_cache: bool | None = None
    """Encode in chunks, twice, and keep the activations of one at a time: large batches in little memory, the same
    gradient. None = where the batch would not fit."""
    gradient_cache_chunk_size: int | None = Field(default=None, gt=0)
    """Pictures of one chunk (texts are shorter, so more of them); None = as many as the default token budget takes."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, with less memory."""
    ddp_find_unused_parameters: bool = False
    """False only: parameters that a batch does not use need no search, their gradient is zero and is reduced."""

    save_steps: int = Field(default=0, ge=0)
    """Save the training state every so many steps; 0 = every 10 minutes."""
    save_total_limit: int = Field(default=2, ge=1)
    """Training states kept, besides the best one."""
    eval_steps: int = Field(default=0, ge=0)
    """Evaluate every so many steps, besides before and after; 0 = only those two."""
    logging_steps: int = Field(default=1, gt=0)
    """Log every so many steps."""
    report_to: Tracker | tuple[Tracker, ...] = "none"
    """``tensorboard``, ``wandb``, ``swanlab``, ``mlflow``, a list of them, ``all`` or ``none``."""
    gallery: int = Field(default=8, ge=0)
    """Sample queries that are drawn with what they find, before and after, into ``gallery-*.png``; 0 = none."""

    model: dict[str, Any] = Field(default_factory=dict)
    """Laid over the compiled ``model``; with ``use_lora`` over the model inside."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Laid over the compiled ``data``."""

    @field_validator("ddp_find_unused_parameters")
    @classmethod
    def _never_searched(cls, value: bool) -> bool:
        if value:
            raise ValueError(
                "ddp_find_unused_parameters: true is not needed: every gradient is reduced, also that of a parameter "
                "which a batch or a chunk did not use; leave the key out"
            )
        return value

    @field_validator("mrl_dims")
    @classmethod
    def _dims(cls, dims: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(dims)) < len(dims) or any(dim <= 0 for dim in dims):
            raise ValueError(
                f"mrl_dims {list(dims)}: different positive widths are needed, for instance [512, 256, 128]"
            )
        return dims

    @field_validator("report_to")
    @classmethod
    def _trackers(cls, value: Any) -> Any:
        trackers(value)
        return value

    @model_validator(mode="after")
    def _one_name_for_one_thing(self) -> Self:
        for first, second in (("model_name", "model_name_or_path"), ("lr", "learning_rate")):
            values = getattr(self, first), getattr(self, second)
            if None not in values and values[0] != values[1]:
                raise ValueError(f"{first} is {values[0]!r} and {second} is {values[1]!r}: they mean the same; set one")
        if self.fp16 and self.bf16:
            raise ValueError("fp16 and bf16 are both true: choose one of them")
        return self

    @model_validator(mode="after")
    def _mrl(self, info: ValidationInfo) -> Self:
        if self.mrl_weights and len(self.mrl_weights) != len(self.mrl_dims):
            raise ValueError(
                f"mrl_weights has {len(self.mrl_weights)} values, mrl_dims {len(self.mrl_dims)}: give one for each"
            )
        registry = (info.context or {}).get("registry")
        if self.matryoshka and registry is not None and "matryoshka" not in registry.kinds("loss"):
            raise ValueError(
                "use_mrl and mrl_dims need the loss `matryoshka` of embed-mrl, which is not installed or fails (`embed "
                "plugins` says which): `pip install embed-mrl`, or leave them out"
            )
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
        chosen = self.model.get("name_or_path") or self.model_name or self.model_name_or_path
        return str(chosen or FROM_SCRATCH)

    @property
    def scratch(self) -> bool:
        """Whether the model is random at first."""
        return self.named == FROM_SCRATCH and self.encoder_mode != "composed"

    @property
    def matryoshka(self) -> bool:
        """Whether the vector is trained to be cut."""
        return self.use_mrl or bool(self.mrl_dims)

    def compile(self, world_size: int) -> dict[str, Any]:
        """See :meth:`embed_core.config.recipe.Recipe.compile`."""
        return Compiled(self).run(world_size)

    def sanity(self) -> dict[str, Any]:
        """A model of some ten thousand weights and a few rows; what the user set stays."""
        return Compiled(self).sanity()

    def teacher(self) -> dict[str, Any] | None:
        """A vision model, which encodes pictures too."""
        if self.teacher_model_name is None:
            return None
        return {"model": {"kind": "vision", "name_or_path": self.teacher_model_name}}
