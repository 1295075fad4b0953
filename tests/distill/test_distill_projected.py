"""The projected student: what it computes, how it starts, what it passes through, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, normalize

from embed_core.config.component import ModelConfig
from embed_core.config.context import BuildContext
from embed_core.errors import CheckpointError, ConfigError
from embed_core.models.lora.config import LoraModelConfig
from embed_core.models.transformers_encoder.config import TransformersEncoderConfig
from embed_core.models.transformers_encoder.model import TransformersEncoder
from embed_core.testing import check_model, encode
from embed_core.testing.tiny import TinyModel
from embed_core.types import Embeddings, SparseVectors
from embed_distill.models.config import FromTeacherModelConfig, ProjectedModelConfig
from embed_distill.models.layer_init import initialise, layers_of
from embed_distill.models.projected import ProjectedModel
from embed_distill.models.projected_build import build_model

Student = Callable[..., TransformersEncoderConfig]


class GivenConfig(ModelConfig):
    """A model that is at hand."""

    kind: Any = "given"
    model: Any

    def build(self, context: BuildContext) -> Any:
        return self.model


class Sparse(TinyModel):
    """Lexical weights alone."""

    def forward(self, input_ids: Any) -> Embeddings:
        return Embeddings(sparse=super().forward(input_ids).sparse)


def test_promises_of_a_model(student: Student, context: BuildContext, texts: list[str]) -> None:
    for options in ({"out_dim": 24, "hidden_dim": 20}, {"out_dim": 24}, {"out_dim": 8, "bias": False, "init": "torch"}):
        check_model(ProjectedModelConfig(inner=student(), **options).build(context), texts)
    for alignment in ("teacher-aligned", "student-native"):
        model = build_model(
            ProjectedModelConfig(inner=GivenConfig(model=TinyModel()), out_dim=40, alignment=alignment), context
        )
        check_model(model, texts)


def test_vectors_are_projected_and_normalised(student: Student, context: BuildContext, texts: list[str]) -> None:
    config = ProjectedModelConfig(inner=student(), out_dim=24, hidden_dim=20)
    model = config.build(context)
    first, second = (dense.linear for dense in model.projection)
    short_ND = encode(model.inner, texts).dense_ND
    wanted = normalize(gelu(short_ND @ first.weight.T + first.bias) @ second.weight.T + second.bias, dim=-1)
    found = encode(model, texts).dense_ND
    assert found is not None
    assert found.shape == (3, 24)
    assert torch.allclose(found, wanted, atol=1e-6)
    assert [tuple(p.shape) for p in (first.weight, second.weight)] == [(20, 16), (24, 20)]


def test_an_orthogonal_linear_start_keeps_the_students_cosines(
    student: Student, context: BuildContext, texts: list[str], lines: list[str]
) -> None:
    model = ProjectedModelConfig(inner=student(), out_dim=24).build(context)
    short, wide = (encode(one, texts).dense_ND for one in (model.inner, model))
    assert short is not None
    assert wide is not None
    assert torch.allclose(short @ short.T, wide @ wide.T, atol=1e-5)
    assert lines == ["projection 16 → 24, new"]
    other = ProjectedModelConfig(inner=student(), out_dim=24, init="torch").build(context)
    third = encode(other, texts).dense_ND
    assert third is not None
    assert not torch.allclose(wide @ wide.T, third @ third.T, atol=1e-3)


def test_the_same_seed_starts_the_same_projection(student: Student, context: BuildContext) -> None:
    config = ProjectedModelConfig(inner=student(), out_dim=24, hidden_dim=20)
    before = torch.random.get_rng_state()
    weights = [config.build(context).projection[0].linear.weight for _ in range(2)]
    assert torch.equal(*weights)
    assert torch.equal(before, torch.random.get_rng_state())
    context.seed = 7
    assert not torch.equal(weights[0], config.build(context).projection[0].linear.weight)


def test_other_kinds_of_embeddings_pass_through(context: BuildContext, texts: list[str]) -> None:
    inner = TinyModel()
    model = build_model(ProjectedModelConfig(inner=GivenConfig(model=inner), out_dim=40), context)
    found, alone = encode(model, texts), encode(inner, texts)
    assert isinstance(found.sparse, SparseVectors)
    assert isinstance(alone.sparse, SparseVectors)
    assert torch.equal(found.sparse.weights_K, alone.sparse.weights_K)
    assert torch.equal(found.multi.vectors_TC, alone.multi.vectors_TC)  # type: ignore[union-attr]
    assert model.scores == inner.scores
    assert found.dense_ND is not None
    assert found.dense_ND.shape == (3, 40)


def test_what_the_inner_model_has_is_read_and_written_there(student: Student, context: BuildContext) -> None:
    model = ProjectedModelConfig(inner=LoraModelConfig(inner=student(), r=2), out_dim=24).build(context)
    encoder: Any = model.inner.inner
    assert model.tokenizer is encoder.tokenizer
    assert model.max_length == 64
    model.pad_to_multiple_of = 8
    model.packed = True
    assert (encoder.pad_to_multiple_of, encoder.packed) == (8, True)
    # What it does not say of itself: layouts would write it without its projection.
    assert not hasattr(model, "pooling")
    assert not hasattr(model, "normalize")
    with pytest.raises(AttributeError):
        _ = model.nothing_of_the_kind


def test_lora_inside_trains_adapters_and_the_whole_projection(
    student: Student, context: BuildContext, texts: list[str]
) -> None:
    model = ProjectedModelConfig(inner=LoraModelConfig(inner=student(), r=2), out_dim=24, hidden_dim=20).build(context)
    check_model(model, texts)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert {name for name in trained if name.startswith("projection.")} == {
        f"projection.{layer}.linear.{part}" for layer in (0, 1) for part in ("weight", "bias")
    }
    assert {name for name in trained if "lora_" in name}
    assert all(name.startswith("projection.") or "lora_" in name for name in trained)


def test_a_student_native_one_is_evaluated_as_it_is_exported(
    student: Student, context: BuildContext, texts: list[str]
) -> None:
    model = ProjectedModelConfig(inner=student(), out_dim=24, alignment="student-native").build(context)
    assert torch.equal(encode(model, texts).dense_ND, encode(model.inner, texts).dense_ND)
    model.train()
    inputs = model.collate(model.tokenize(texts, "query", [None] * 3))
    assert model(**inputs).dense_ND.shape == (3, 24)


def test_half_precision_weights_take_fp32_vectors(student: Student, context: BuildContext, texts: list[str]) -> None:
    model = ProjectedModelConfig(inner=student(), out_dim=24, hidden_dim=20).build(context)
    whole = encode(model, texts).dense_ND
    half = encode(model.bfloat16(), texts).dense_ND
    assert half is not None
    assert half.dtype == torch.float32
    assert torch.allclose(half.norm(dim=-1), torch.ones(3), atol=1e-5)
    assert torch.allclose(half, whole, atol=0.05)


def test_the_gradient_of_the_projection_is_that_of_float64(
    student: Student, context: BuildContext, texts: list[str]
) -> None:
    model = ProjectedModelConfig(inner=student(), out_dim=24, hidden_dim=20).build(context).eval()
    inputs = model.collate(model.tokenize(texts, "query", [None] * 3))
    short = model.inner(**inputs).dense_ND.detach().double()
    value = model(**inputs).dense_ND.square().cumsum(-1).sum()
    ours = torch.autograd.grad(value, list(model.projection.parameters()))
    w1, b1, w2, b2 = (p.detach().double().requires_grad_() for p in model.projection.parameters())
    wanted = normalize(gelu(short @ w1.T + b1) @ w2.T + b2, dim=-1).square().cumsum(-1).sum()
    for one, two in zip(ours, torch.autograd.grad(wanted, [w1, b1, w2, b2]), strict=True):
        assert torch.allclose(one.double(), two, atol=1e-4, rtol=1e-4)


def test_errors_of_the_config(student: Student) -> None:
    inner = student()
    for options, message in (
        ({"hidden_dim": 20}, "hidden_dim 20 needs out_dim"),
        ({"init": "torch"}, "init: torch starts a new projection: give out_dim"),
        ({"out_dim": 24, "inner": ProjectedModelConfig(inner=inner, out_dim=24)}, "inside kind 'projected'"),
        ({"out_dim": 24, "layers": "odd"}, "layers 'odd': give even, first, or a list"),
        ({"out_dim": 24, "layers": [0, -1]}, r"layers \[0, -1\]: give even, first, or a list"),
    ):
        with pytest.raises(ValueError, match=message):
            ProjectedModelConfig(**{"inner": inner, **options})


def test_a_width_is_needed_where_none_is_saved(student: Student, context: BuildContext) -> None:
    with pytest.raises(ConfigError, match=r"model\.out_dim is missing, and no projection is saved"):
        ProjectedModelConfig(inner=student()).build(context)


def test_models_without_a_dense_vector_of_a_text_are_refused(context: BuildContext) -> None:
    class Images(TinyModel):
        def tokenize(self, items: Any, role: Any, prompts: Any) -> Any:
            raise TypeError("an image is wanted")

    for inner, message in (
        (Sparse(), "Sparse gives no dense vectors"),
        (Images(), r"Images cannot encode a text \(TypeError: an image is wanted\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_model(ProjectedModelConfig(inner=GivenConfig(model=inner), out_dim=40), context)
    with pytest.raises(ConfigError, match="'dense' scores are asked for"):
        ProjectedModel(Sparse(), nn.Sequential(nn.Linear(16, 24)))(input_ids=torch.ones(1, 2, dtype=torch.int64))


# Students that start from a teacher's layers.


@pytest.fixture
def short(tiny: Path, tmp_path: Path) -> Path:
    """A random student of two layers, as wide as the teacher and with its tokenizer."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    config = AutoConfig.from_pretrained(tiny / "teacher")
    config.num_hidden_layers = 2
    torch.manual_seed(5)
    AutoModel.from_config(config).save_pretrained(tmp_path / "short")
    AutoTokenizer.from_pretrained(tiny / "teacher").save_pretrained(tmp_path / "short")
    return tmp_path / "short"


def layer(model: Any, number: int) -> dict[str, torch.Tensor]:
    found = layers_of(model.encoder)
    assert found is not None
    return dict(found[1][number].named_parameters())


@pytest.mark.parametrize(("layers", "taken"), [("even", (0, 3)), ("first", (0, 1)), ([3, 1], (3, 1))])
def test_layers_of_the_teacher(
    tiny: Path, short: Path, student: Student, context: BuildContext, lines: list[str], layers: Any, taken: Any
) -> None:
    teacher: Any = student(name_or_path=str(tiny / "teacher")).build(context)
    config = FromTeacherModelConfig(
        inner=student(name_or_path=str(short)), init_from=str(tiny / "teacher"), layers=layers
    )
    model: Any = config.build(context)
    assert type(model) is TransformersEncoder
    for own, other in enumerate(taken):
        for name, value in layer(model, own).items():
            assert torch.equal(value, layer(teacher, other)[name]), name
    words = [one.encoder.get_input_embeddings().weight for one in (model, teacher)]
    assert torch.equal(*words)
    numbers = ", ".join(map(str, taken))
    assert f"student started from layers {numbers} of the 4 of " in lines[-1]
    assert "16 of 16 weights of each" in lines[-1]


def test_a_teacher_of_all_layers_is_copied_whole(
    tiny: Path, student: Student, context: BuildContext, texts: list[str]
) -> None:
    """Its own layers from another start: the same vectors as the teacher's."""
    teacher = student(name_or_path=str(tiny / "teacher")).build(context)
    model: Any = student(name_or_path=str(tiny / "teacher")).build(context)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    initialise(model, str(tiny / "teacher"), "even", lambda line: None)
    assert torch.equal(encode(model, texts).dense_ND, encode(teacher, texts).dense_ND)


def test_projected_starts_from_the_teacher_too(
    tiny: Path, short: Path, student: Student, context: BuildContext, lines: list[str]
) -> None:
    model: Any = ProjectedModelConfig(
        inner=student(name_or_path=str(short)), out_dim=24, init_from=str(tiny / "teacher"), layers=(2, 3)
    ).build(context)
    teacher: Any = student(name_or_path=str(tiny / "teacher")).build(context)
    assert torch.equal(layer(model, 0)["output.dense.weight"], layer(teacher, 2)["output.dense.weight"])
    assert "layers 2, 3 of the 4" in lines[0]


def test_word_embeddings_stay_where_the_vocabulary_differs(
    tiny: Path, short: Path, student: Student, context: BuildContext, lines: list[str]
) -> None:
    (short / "tokenizer.json").write_text(
        (short / "tokenizer.json").read_text().replace('"▁the"', '"▁eht"').replace('"▁a"', '"▁ a"')
    )
    before: Any = student(name_or_path=str(short)).build(context)
    after: Any = student(name_or_path=str(short)).build(context)
    initialise(after, str(tiny / "teacher"), "even", lines.append)
    assert torch.equal(*(one.encoder.get_input_embeddings().weight for one in (before, after)))
    assert not torch.equal(layer(before, 0)["output.dense.weight"], layer(after, 0)["output.dense.weight"])
    assert "not the word embeddings, whose vocabulary differs" in lines[-1]


def test_errors_of_starting_from_a_teacher(tiny: Path, short: Path, student: Student, context: BuildContext) -> None:
    teacher, lora = str(tiny / "teacher"), LoraModelConfig(inner=student(name_or_path=str(short)), r=2)
    with pytest.raises(
        CheckpointError, match=r"no weight of its layers fits .*hidden_size 24 against .*hidden_size 16"
    ):
        FromTeacherModelConfig(inner=student(), init_from=teacher).build(context)
    for layers, message in (
        ((0, 4), r"layers \[0, 4\]: the student has 2 layers and .* has 4, from 0 to 3: give 2 of their numbers"),
        ((1,), r"layers \[1\]: the student has 2 layers"),
    ):
        with pytest.raises(CheckpointError, match=message):
            FromTeacherModelConfig(inner=student(name_or_path=str(short)), init_from=teacher, layers=layers).build(
                context
            )
    with pytest.raises(CheckpointError, match=r"layers even: the student has 4 layers and .* has 2"):
        FromTeacherModelConfig(inner=student(name_or_path=teacher), init_from=str(short)).build(context)
    with pytest.raises(ConfigError, match="put kind 'from-teacher' inside kind 'lora'"):
        FromTeacherModelConfig(inner=lora, init_from=teacher).build(context)
    with pytest.raises(CheckpointError, match="is no transformers model: leave the key out"):
        FromTeacherModelConfig(inner=GivenConfig(model=TinyModel()), init_from=teacher).build(context)
    with pytest.raises(CheckpointError, match="does not exist"):
        FromTeacherModelConfig(inner=student(), init_from=f"{teacher}-not").build(context)


def test_an_adapter_of_changed_weights_cannot_be_exported_without_them(
    tiny: Path, short: Path, student: Student, context: BuildContext
) -> None:
    start = FromTeacherModelConfig(inner=student(name_or_path=str(short)), init_from=str(tiny / "teacher"))
    LoraModelConfig(inner=start, r=2).build(context)
    with pytest.raises(ConfigError, match=r"model\.export: 'adapter' needs a base that others can load"):
        LoraModelConfig(inner=start, r=2, export="adapter").build(context)


def test_json_of_the_config_comes_back(student: Student) -> None:
    config = ProjectedModelConfig(inner=student(), out_dim=24, layers=[0, 2])
    assert json.loads(config.model_dump_json())["layers"] == [0, 2]
