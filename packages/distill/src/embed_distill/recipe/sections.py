"""The sections of the recipe ``distill``: the keys that users of this two-phase layout know, and a few more."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from embed_core.config.component import Section
from embed_core.models.from_scratch import FROM_SCRATCH
from embed_distill.models.width import dense_width

PYDOCS = "pydocs"
SCRATCH_TEACHER_DIM, SCRATCH_STUDENT_DIM = 128, 48
"""Widths of the embedded teacher and student, unless set otherwise."""
SCRATCH_LENGTH = 192
"""Tokens of a text for a student from scratch, unless said otherwise."""


class ModelSection(Section):
    """The teacher and the student."""

    teacher: str = FROM_SCRATCH
    """The teacher: a model directory or a model of the hub. ``from-scratch`` = one of a few million parameters, trained
    on phase 2's rows (of ``pydocs`` on all there are) before the run starts, once, and kept in the cache."""
    student: str = FROM_SCRATCH
    """The student: a model directory or a model of the hub; ``from-scratch`` = random weights, smaller than the
    embedded teacher."""
    teacher_dim: int | None = Field(default=None, gt=0)
    """Values of the teacher's vectors; None = as its files say. Checked against them where they are on this machine."""
    student_dim: int | None = Field(default=None, gt=0)
    """Values of the student's vectors, before a projection; None = as its files say."""
    projection_hidden_dim: int | None = Field(default=None, ge=0)
    """Width of the projection's hidden layer; 0 = one linear map without any; None = twice ``student_dim``. Only with
    ``use_projection``."""
    use_projection: bool = True
    """true: the student's vector is projected to the teacher's width, and searches the teacher's index. false: the
    student keeps its own width (MRL mode) and is trained at several dimensions, by embed-mrl."""

    teacher_query_prompt: str | None = None
    """Put before queries for the teacher; None = as saved with it."""
    teacher_passage_prompt: str | None = None
    """Put before passages for the teacher; None = as saved with it."""
    teacher_max_length: int | None = Field(default=None, ge=3)
    """Tokens of a text for the teacher; None = the larger ``max_length`` of the phases."""
    query_prompt: str | None = None
    """Put before the student's queries; None = as saved with it."""
    passage_prompt: str | None = None
    """Put before the student's passages; None = as saved with it."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the teacher or the student may run."""
    init_from_teacher: bool = False
    """Start the student from those of the teacher's layers whose shapes match."""
    router: bool = False
    """Export one sentence-transformers Router: queries by the student, documents by the teacher. Only with
    ``use_projection``."""
    mrl_dims: tuple[int, ...] | None = None
    """MRL mode: dimensions that are trained, the full one besides; None = its halves, at most four, from 16; [] = the
    full one alone, without embed-mrl."""
    mrl_teacher: Literal["similarity", "first"] = "similarity"
    """MRL mode, how a teacher of another width teaches: ``similarity`` = by the similarities of a batch's texts, which
    need no common width; ``first`` = by its vector cut to the student's width, for teachers that may be cut."""
    student_model: dict[str, Any] = Field(default_factory=dict)
    """Laid over the student's compiled config, of kind `transformers-encoder`."""
    teacher_model: dict[str, Any] = Field(default_factory=dict)
    """Laid over the teacher's entry in the dataset kind `with-teacher`; of the embedded one, over what trains it."""

    @field_validator("teacher_dim")
    @classmethod
    def _of_the_teacher(cls, dim: int | None, info: ValidationInfo) -> int | None:
        return _checked(dim, "teacher", info.data.get("teacher"), SCRATCH_TEACHER_DIM)

    @field_validator("student_dim")
    @classmethod
    def _of_the_student(cls, dim: int | None, info: ValidationInfo) -> int | None:
        return _checked(dim, "student", info.data.get("student"), SCRATCH_STUDENT_DIM)

    @field_validator("mrl_dims")
    @classmethod
    def _cut(cls, dims: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        if dims is None:
            return dims
        if info.data.get("use_projection"):
            raise ValueError(
                f"mrl_dims {list(dims)} with use_projection: a projected vector is as wide as the teacher's; set "
                "model.use_projection to false, or leave mrl_dims out"
            )
        if len(set(dims)) < len(dims) or any(dim <= 0 for dim in dims):
            raise ValueError(f"mrl_dims {list(dims)}: different positive dimensions are needed, for example [768, 384]")
        width = info.data.get("student_dim")
        if width and any(dim > width for dim in dims):
            raise ValueError(f"mrl_dims {list(dims)}: the student's vectors have {width} values: name smaller ones")
        return dims

    @field_validator("mrl_teacher")
    @classmethod
    def _may_be_cut(cls, way: str, info: ValidationInfo) -> str:
        if way != "first":
            return way
        if info.data.get("use_projection"):
            raise ValueError(
                "mrl_teacher 'first' with use_projection: a projected vector is compared with the whole of the "
                "teacher's; set model.use_projection to false, or leave mrl_teacher out"
            )
        teacher, student = info.data.get("teacher_dim"), info.data.get("student_dim")
        if teacher and student and teacher < student:
            raise ValueError(
                f"mrl_teacher 'first': the teacher's {teacher} values cannot be cut to the student's {student}: use "
                "'similarity', which needs no common width"
            )
        return way

    @field_validator("router")
    @classmethod
    def _with_a_projection(cls, on: bool, info: ValidationInfo) -> bool:
        if on and not info.data.get("use_projection", True):
            raise ValueError("router needs use_projection, which is false: queries and documents must have one width")
        return on

    @field_validator("init_from_teacher", "router")
    @classmethod
    def _from_a_directory(cls, on: bool, info: ValidationInfo) -> bool:
        if on and info.data.get("teacher") == FROM_SCRATCH:
            raise ValueError(f"{info.field_name} needs a teacher that is there before the run: set model.teacher")
        return on

    @model_validator(mode="after")
    def _width_is_known(self) -> ModelSection:
        if self.use_projection and self.teacher_dim is None:
            raise ValueError(
                f"teacher_dim is needed: the files of teacher {self.teacher!r} are not on this machine to say it"
            )
        if self.use_projection and self.projection_hidden_dim is None and self.student_dim is None:
            raise ValueError(
                f"student_dim or projection_hidden_dim is needed: the files of student {self.student!r} are not on "
                "this machine to say it"
            )
        return self


class Phase1Section(Section):
    """General distillation: the student's vector of any text becomes the teacher's. A key left at None takes one
    default for a student from scratch, another for one that is loaded."""

    batch_size: int | None = Field(default=None, gt=0)
    """Texts per rank and batch; None = 64, from scratch 128."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate; None = 2e-5, from scratch 4e-3."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps spent warming up, but at most a tenth of the phase; None = 1000, from scratch a tenth."""
    num_epochs: float | None = Field(default=None, gt=0)
    """Passes over the texts; None = 1, from scratch 2."""
    mse_weight: float = Field(default=0.4, ge=0)
    """Weight of the mean squared error to the teacher's vector."""
    cosine_weight: float = Field(default=0.6, ge=0)
    """Weight of one minus the cosine to the teacher's vector."""
    max_length: int | None = Field(default=None, ge=3)
    """Tokens of a text in this phase; None = 512; from scratch that of the other phase, else 192."""
    gradient_accumulation_steps: int | None = Field(default=None, gt=0)
    """Batches per optimizer step; None = 4, from scratch 1."""
    max_samples_per_dataset: int | None = Field(default=100_000, gt=0)
    """Texts drawn of each dataset at most; None = all."""
    datasets: tuple[str | dict[str, Any], ...] = Field(default=(PYDOCS,), min_length=1)
    """Where the texts are from: ``pydocs``, files, folders, names of Hugging Face datasets, or dataset configs."""

    @model_validator(mode="after")
    def _teaches(self) -> Phase1Section:
        if not self.mse_weight and not self.cosine_weight:
            raise ValueError("mse_weight and cosine_weight are both 0: give one of them a weight")
        return self


class Phase2Section(Section):
    """Retrieval: contrastive training, still near the teacher."""

    batch_size: int = Field(default=64, gt=0)
    """Rows per rank and batch."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate; None = 5e-6, from scratch 4e-3."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps spent warming up, but at most a tenth of the phase; None = 500, from scratch a tenth."""
    num_epochs: float | None = Field(default=None, gt=0)
    """Passes over the rows; None = 3, from scratch 1."""
    infonce_weight: float = Field(default=0.8, ge=0)
    """Weight of InfoNCE over the batch's passages."""
    mse_weight: float = Field(default=0.2, ge=0)
    """Weight of the mean squared error to the teacher's vectors."""
    temperature: float = Field(default=0.02, gt=0)
    """Similarities are divided by it."""
    max_length: int | None = Field(default=None, ge=3)
    """Tokens of a text in this phase, and of the finished model; None = 512; from scratch that of the
    other phase, else 192."""
    num_negatives: int = Field(default=7, ge=0)
    """Hard negatives drawn per row, of rows that have any."""
    gradient_accumulation_steps: int | None = Field(default=None, gt=0)
    """Batches per optimizer step; None = 8, from scratch 1."""
    max_samples: int | None = Field(default=500_000, gt=0)
    """Rows used at most; None = all."""
    dataset: str | tuple[str, ...] | dict[str, Any] = PYDOCS
    """Rows: ``pydocs``, a file, a folder, the name of a Hugging Face dataset, several of these, or a dataset config."""
    eval_data: tuple[str, ...] = ()
    """BEIR folders to evaluate on; none = the rows held out."""
    held_out_rows: int | None = Field(default=None, ge=0)
    """Rows held out to evaluate on; None = 400 of ``pydocs``, a tenth of other data (at most 200) unless ``eval_data``
    is given."""

    @model_validator(mode="after")
    def _trains(self) -> Phase2Section:
        if not self.infonce_weight and not self.mse_weight:
            raise ValueError("infonce_weight and mse_weight are both 0: give one of them a weight")
        return self


class TrainingSection(Section):
    """Which phases run, and what becomes of the model."""

    skip_phase1: bool = False
    """Start phase 2 from the model that phase 1 of this experiment left."""
    skip_phase2: bool = False
    """Stop after phase 1."""
    save_to_artifacts: bool = False
    """Copy the finished model to ``artifacts_dir/EXPERIMENT``, which must not exist."""
    phase1_checkpoint: Path | None = None
    """With ``skip_phase1``: the model directory to start from; None = the one this experiment left, or this student's
    experiment ``default``."""
    auto_scale: bool | None = None
    """Scale each term of the losses once, by its first gradient, so that the weights say how much it moves the vectors.
    None = for a student from scratch, and in MRL mode with ``mrl_teacher: similarity``."""

    @model_validator(mode="after")
    def _something_is_left(self) -> TrainingSection:
        if self.skip_phase1 and self.skip_phase2:
            raise ValueError("skip_phase1 and skip_phase2 are both true: nothing would be trained; skip one of them")
        if self.phase1_checkpoint is not None and not self.skip_phase1:
            raise ValueError("phase1_checkpoint without skip_phase1: phase 1 would be trained anew; set skip_phase1")
        return self


class PathsSection(Section):
    """Where things are written."""

    output_dir: Path = Path("./checkpoints")
    """Runs are written to ``output_dir/EXPERIMENT``; EXPERIMENT is ``distilled-STUDENT-DIMENSIONSd-CONFIG``."""
    artifacts_dir: Path = Path("./artifacts")
    """Where ``save_to_artifacts`` copies to."""
    teacher_store: Path | None = None
    """Where the teacher's vectors are kept; None = in the cache."""


def _checked(dim: int | None, who: str, model: str | None, of_scratch: int) -> int | None:
    """``dim``, or what the model's files say; ValueError where the two differ."""
    if model is None:
        return dim  # the model's own fault is told already
    if model == FROM_SCRATCH:
        return dim or of_scratch
    found = dense_width(model)
    if dim is not None and found is not None and dim != found.width:
        raise ValueError(
            f"{dim} is not what {who} {model!r} gives: its vectors have {found.width} values ({found.place}); set "
            f"{who}_dim to {found.width} or leave it out"
        )
    return dim if found is None else found.width
