"""Exported students: in sentence-transformers, in transformers, loaded again, and as one model with their teacher."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embed_bge.config import BGEM3CheckpointConfig, BGEM3ModelConfig
from embed_core.config.context import BuildContext
from embed_core.errors import CheckpointError
from embed_core.export.config import TransformersCheckpointConfig
from embed_core.models.lora.config import LoraModelConfig
from embed_core.models.transformers_encoder.config import TransformersEncoderConfig
from embed_core.testing import check_checkpointer, encode, sample_card
from embed_distill.export.config import DistilledCheckpointConfig, RouterConfig
from embed_distill.models.config import ProjectedModelConfig
from embed_mrl.config import MatryoshkaCheckpointConfig

Student = Callable[..., TransformersEncoderConfig]


def export(model: Any, checkpoint: Any, context: BuildContext, directory: Path, config: Any = None) -> Path:
    """As the engine does."""
    directory.mkdir()
    state = {name: value.detach().clone() for name, value in model.named_parameters()} | dict(model.named_buffers())
    card = sample_card()
    if config is not None:
        card.config["model"].update(config.model_dump(mode="json", serialize_as_any=True))
    exporter = checkpoint.build(context)
    if hasattr(model, "export_with"):
        model.export_with(exporter, state, directory, card)
    else:
        exporter.export(model, state, directory, card)
    return directory


def theirs(directory: Path, texts: list[str], prompt: str = "document") -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(directory), device="cpu").encode(texts, prompt_name=prompt)


def vectors(model: Any, texts: list[str], role: Any = "passage") -> Any:
    found = encode(model, texts, role).dense_ND
    assert found is not None
    return found.numpy()


def close(one: Any, two: Any) -> bool:
    return one.shape == two.shape and float(np.abs(one - two).max()) < 1e-5


SHAPES: dict[str, Any] = {
    "hidden": {"out_dim": 24, "hidden_dim": 20, "activation": "tanh"},
    "linear": {"out_dim": 24},
    "no bias": {"out_dim": 24, "hidden_dim": 8, "bias": False, "activation": "relu"},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalize", [True, False])
def test_sentence_transformers_gives_the_projected_vectors(
    student: Student, context: BuildContext, texts: list[str], tmp_path: Path, shape: str, normalize: bool
) -> None:
    model = ProjectedModelConfig(inner=student(normalize=normalize), **SHAPES[shape]).build(context)
    stir(model)
    directory = export(model, TransformersCheckpointConfig(), context, tmp_path / "out")
    assert close(theirs(directory, texts), vectors(model, texts))
    assert close(theirs(directory, texts, "query"), vectors(model, texts, "query"))
    kinds = [entry["type"].rsplit(".", 1)[-1] for entry in json.loads((directory / "modules.json").read_text())]
    before = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    assert kinds == [*before, *["Dense"] * len(model.projection), "Normalize"]
    facts = json.loads((directory / "config_sentence_transformers.json").read_text())
    assert facts["similarity_fn_name"] == "cosine"


def stir(model: Any) -> None:
    """Biases start at 0, which a lost one would look like."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.projection.parameters():
            parameter += torch.empty_like(parameter).normal_(0, 0.1, generator=generator)


def test_the_layout_keeps_its_promises(
    student: Student, context: BuildContext, texts: list[str], tmp_path: Path
) -> None:
    """The weights come from the state, the model may be empty; what is loaded again is the same model."""
    model = ProjectedModelConfig(inner=student(), **SHAPES["hidden"]).build(context)
    stir(model)

    def load(directory: Path) -> Any:
        return ProjectedModelConfig(inner=student(name_or_path=str(directory))).build(context)

    check_checkpointer(DistilledCheckpointConfig().build(context), model, load, texts, tmp_path / "out")


@pytest.mark.parametrize("normalize", [True, False])
def test_a_run_goes_on_with_the_saved_projection(
    student: Student, context: BuildContext, texts: list[str], tmp_path: Path, lines: list[str], normalize: bool
) -> None:
    model = ProjectedModelConfig(inner=student(normalize=normalize), **SHAPES["hidden"]).build(context)
    stir(model)
    directory = export(model, TransformersCheckpointConfig(), context, tmp_path / "out")
    lines.clear()
    # Sizes may be said again, and LoRA may come between.
    found = student(name_or_path=str(directory))
    for inner, options in ((found, {}), (LoraModelConfig(inner=found, r=2), SHAPES["hidden"])):
        again = ProjectedModelConfig(inner=inner, **options).build(context)
        assert close(vectors(again, texts), vectors(model, texts))
    assert f"projection 16 → 20 (tanh) → 24 of {str(directory)!r}" in lines
    assert any("model.inner.normalize follows it" in line for line in lines) == (not normalize)
    anew = ProjectedModelConfig(inner=found, init="orthogonal", out_dim=24).build(context)
    assert "projection 16 → 24, new, in place of the saved one" in lines
    assert not close(vectors(anew, texts), vectors(model, texts))
    assert len(anew.projection) == 1


def test_a_saved_projection_of_other_sizes_is_an_error(student: Student, context: BuildContext, tmp_path: Path) -> None:
    model = ProjectedModelConfig(inner=student(), **SHAPES["hidden"]).build(context)
    directory = export(model, TransformersCheckpointConfig(), context, tmp_path / "out")
    inner = student(name_or_path=str(directory))
    for options, said in (
        ({"out_dim": 32, "hidden_dim": 20, "activation": "tanh"}, r"16 → 20 \(tanh\) → 32 with bias"),
        ({"out_dim": 24}, "16 → 24 with bias"),
        ({**SHAPES["hidden"], "bias": False}, r"16 → 20 \(tanh\) → 24 without bias"),
    ):
        with pytest.raises(CheckpointError, match=rf"the config has the projection {said}, .* was saved with 16 → 20"):
            ProjectedModelConfig(inner=inner, **options).build(context)
    with pytest.raises(CheckpointError, match="has a module Dense"):
        inner.build(context)


def test_a_damaged_projection_is_an_error(student: Student, context: BuildContext, tmp_path: Path) -> None:
    model = ProjectedModelConfig(inner=student(), **SHAPES["linear"]).build(context)
    directory = export(model, TransformersCheckpointConfig(), context, tmp_path / "out")
    config = ProjectedModelConfig(inner=student(name_or_path=str(directory)))
    settings, weights = directory / "3_Dense" / "config.json", directory / "3_Dense" / "model.safetensors"
    good, tensors = json.loads(settings.read_text()), weights.read_bytes()
    for changed, message in (
        ({"activation_function": "torch.nn.modules.activation.Mish"}, r"activation torch\.nn.*Mish is not offered"),
        ({"use_residual": True}, "a Dense module with use_residual is not offered"),
        ({"module_input_name": "token_embeddings"}, "with module_input_name is not offered"),
        ({"out_features": 25}, r"weights of shape \[24, 16\], its config\.json says \[25, 16\]"),
        ({"in_features": 17}, r"weights of shape \[24, 16\], its config\.json says \[24, 17\]"),
    ):
        settings.write_text(json.dumps({**good, **changed}))
        with pytest.raises(CheckpointError, match=message):
            config.build(context)
    settings.write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read .*: restore the file"):
        config.build(context)
    settings.write_text(json.dumps(good))
    weights.write_bytes(tensors[:60])
    with pytest.raises(CheckpointError, match=r"3_Dense cannot be read \(SafetensorError.*copy it again"):
        config.build(context)
    from safetensors.torch import save_file

    save_file({"linear.weight": torch.zeros(24, 15), "linear.bias": torch.zeros(24)}, weights)
    settings.write_text(json.dumps({**good, "in_features": 15}))
    with pytest.raises(CheckpointError, match="takes 15 values where the model gives 16"):
        config.build(context)


def test_a_projection_of_others_is_found_too(
    student: Student, context: BuildContext, texts: list[str], tmp_path: Path
) -> None:
    """Made by sentence-transformers, two layers, the first without an activation, nothing normalised before."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Normalize, Pooling, Transformer

    base = student()
    parts = [
        Transformer(base.name_or_path),
        Pooling(16),
        Dense(16, 40, bias=False, activation_function=torch.nn.Identity()),
    ]
    whole = SentenceTransformer(modules=[*parts, Dense(40, 24), Normalize()], device="cpu")
    whole.save(str(tmp_path / "out"))
    model = ProjectedModelConfig(inner=student(name_or_path=str(tmp_path / "out"), query_prompt="")).build(context)
    assert close(vectors(model, texts), whole.encode(texts))


def test_a_student_native_export_is_the_student_alone(
    student: Student, context: BuildContext, texts: list[str], tmp_path: Path
) -> None:
    config = ProjectedModelConfig(inner=student(), alignment="student-native", **SHAPES["hidden"])
    model = config.build(context)
    directory = export(model, TransformersCheckpointConfig(), context, tmp_path / "out", config)
    assert close(theirs(directory, texts), vectors(model.inner, texts))
    assert close(vectors(student(name_or_path=str(directory)).build(context), texts), vectors(model.inner, texts))
    readme = (directory / "README.md").read_text()
    assert "**student-native**: its vectors have 16 values" in readme
    assert "16 → 20 (tanh) → 24 it was trained with was dropped" in readme


def test_the_card_says_in_whose_space_the_vectors_lie(student: Student, context: BuildContext, tmp_path: Path) -> None:
    config = ProjectedModelConfig(inner=LoraModelConfig(inner=student(), r=2), **SHAPES["hidden"])
    directory = export(config.build(context), TransformersCheckpointConfig(), context, tmp_path / "out", config)
    readme = (directory / "README.md").read_text()
    assert "**teacher-aligned**: its vectors have 24 values" in readme
    assert "16 → 20 (tanh) → 24 comes after the pooling" in readme
    assert f"Started from `{student().name_or_path}`" in readme, "not from a model called 'projected'"
    assert readme.startswith("---\n")


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_lora_leaves_merged(
    student: Student, context: BuildContext, texts: list[str], tmp_path: Path, place: str
) -> None:
    """Around a projected model too, with the checkpoint kind that knows projections."""
    if place == "inside":
        inner = LoraModelConfig(inner=student(), r=2)
        model: Any = ProjectedModelConfig(inner=inner, **SHAPES["hidden"]).build(context)
    else:
        inner_config = ProjectedModelConfig(inner=student(), **SHAPES["hidden"])
        model = LoraModelConfig(inner=inner_config, r=2).build(context)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_B" in name:
            parameter.data += torch.empty_like(parameter).normal_(0, 0.5, generator=generator)
    checkpoint = TransformersCheckpointConfig() if place == "inside" else DistilledCheckpointConfig()
    directory = export(model, checkpoint, context, tmp_path / "out")
    assert close(theirs(directory, texts), vectors(model, texts))
    assert not any("lora" in name for name in load_file(directory / "model.safetensors"))


def test_a_layout_that_knows_no_projections_refuses_rather_than_leaving_it_out(
    student: Student, context: BuildContext, tmp_path: Path
) -> None:
    inner = ProjectedModelConfig(inner=student(), **SHAPES["linear"])
    model = LoraModelConfig(inner=inner, r=2).build(context)
    with pytest.raises(CheckpointError, match="needs a model with pooling, normalize, which ProjectedModel lacks"):
        export(model, TransformersCheckpointConfig(), context, tmp_path / "out")


def test_bge_m3s_layout_takes_a_projection(tiny: Path, context: BuildContext, texts: list[str], tmp_path: Path) -> None:
    inner = BGEM3ModelConfig(name_or_path=str(tiny / "student"), query_max_len=64, passage_max_len=64)
    model = ProjectedModelConfig(inner=inner, **SHAPES["linear"]).build(context)
    directory = export(model, BGEM3CheckpointConfig(), context, tmp_path / "out")
    assert close(theirs(directory, texts), vectors(model, texts))
    assert (directory / "sparse_linear.pt").is_file()


def test_a_layout_without_modules_is_refused(student: Student, context: BuildContext, tmp_path: Path) -> None:
    class Bare:
        def export(self, model: Any, state: Any, directory: Path, card: Any) -> None:
            (directory / "README.md").write_text("bare")

    model = ProjectedModelConfig(inner=student(), **SHAPES["linear"]).build(context)
    with pytest.raises(CheckpointError, match=r"writes no modules\.json.*alignment: student-native"):
        model.export_with(Bare(), dict(model.named_parameters()), tmp_path, sample_card())


# One model of student and teacher.


@pytest.fixture
def aligned(student: Student, context: BuildContext) -> Any:
    model = ProjectedModelConfig(inner=student(), **SHAPES["hidden"]).build(context)
    stir(model)
    return model


def test_the_router_asks_the_student_and_searches_the_teachers_documents(
    tiny: Path, aligned: Any, context: BuildContext, texts: list[str], tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    checkpoint = DistilledCheckpointConfig(router=RouterConfig(teacher=str(tiny / "teacher")))
    directory = export(aligned, checkpoint, context, tmp_path / "out")
    router = SentenceTransformer(str(directory / "router"), device="cpu")
    queries, documents = router.encode_query(texts), router.encode_document(texts)
    assert close(queries, vectors(aligned, texts, "query"))
    assert close(documents, theirs(tiny / "teacher", texts, "document"))
    assert not close(queries, documents)
    similarity = router.similarity(queries, documents).numpy()
    assert close(similarity, queries @ documents.T)
    # The student beside it is one by itself.
    assert close(theirs(directory, texts), vectors(aligned, texts))
    readme = (directory / "README.md").read_text()
    assert "## Asymmetric retrieval" in readme
    assert 'SentenceTransformer("path/to/this/directory/router")' in readme


def test_the_router_cuts_a_matryoshka_teacher(
    tiny: Path, student: Student, context: BuildContext, texts: list[str], tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    router = RouterConfig(teacher=str(tiny / "teacher"), teacher_dims="first")
    model = student().build(context)
    directory = export(model, DistilledCheckpointConfig(router=router), context, tmp_path / "out")
    loaded = SentenceTransformer(str(directory / "router"), device="cpu")
    cut = theirs(tiny / "teacher", texts, "document")[:, :16]
    assert close(loaded.encode_document(texts), cut / np.linalg.norm(cut, axis=-1, keepdims=True))
    assert close(loaded.encode_query(texts), vectors(model, texts, "query"))


def test_matryoshkas_layout_around_it(
    tiny: Path, aligned: Any, context: BuildContext, texts: list[str], tmp_path: Path
) -> None:
    """Its section, ours and the router's are in one card, the projection is in the files."""
    inner = DistilledCheckpointConfig(router=RouterConfig(teacher=str(tiny / "teacher")))
    checkpoint = MatryoshkaCheckpointConfig(inner=inner, dims=(8,))
    directory = export(aligned, checkpoint, context, tmp_path / "out")
    assert close(theirs(directory, texts), vectors(aligned, texts))
    readme = (directory / "README.md").read_text()
    places = [readme.index(f"## {title}") for title in ("Alignment", "Asymmetric retrieval", "Dimensions")]
    assert places == sorted(places)


def test_errors_of_the_router(tiny: Path, student: Student, context: BuildContext, tmp_path: Path) -> None:
    teacher = RouterConfig(teacher=str(tiny / "teacher"))
    with pytest.raises(
        CheckpointError, match=r"the student's vectors have 16 values, .*teacher' 24; .*set teacher_dims: first"
    ):
        export(student().build(context), DistilledCheckpointConfig(router=teacher), context, tmp_path / "out")
    with pytest.raises(CheckpointError, match="does not exist"):
        DistilledCheckpointConfig(router=RouterConfig(teacher=str(tiny / "nobody"))).build(context)
    wide = student(name_or_path=str(tiny / "teacher")).build(context)
    narrow = RouterConfig(teacher=str(tiny / "student"), teacher_dims="first")
    with pytest.raises(CheckpointError, match=r"have 24 values, .* 16; they cannot be compared") as caught:
        export(wide, DistilledCheckpointConfig(router=narrow), context, tmp_path / "other")
    assert "set teacher_dims" not in str(caught.value)


def test_a_teacher_that_cannot_be_loaded_is_named(
    tiny: Path, aligned: Any, context: BuildContext, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(tiny / "teacher", tmp_path / "teacher")
    (tmp_path / "teacher" / "modules.json").write_text(
        '[{"idx": 0, "name": "0", "path": "", "type": "nobody.Nothing"}]'
    )
    checkpoint = DistilledCheckpointConfig(router=RouterConfig(teacher=str(tmp_path / "teacher")))
    with pytest.raises(
        CheckpointError, match=r"checkpoint\.router\.teacher .* cannot be loaded by sentence-transformers"
    ):
        export(aligned, checkpoint, context, tmp_path / "out")


def test_errors_of_the_config() -> None:
    with pytest.raises(ValueError, match="inside kind 'distilled': one of them is enough"):
        DistilledCheckpointConfig(inner=DistilledCheckpointConfig())
    with pytest.raises(ValueError, match="every_steps has no effect here"):
        DistilledCheckpointConfig(inner=TransformersCheckpointConfig(every_steps=5))
