"""A teacher's vectors: computed as its own client does, once, and never again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from embed_core.config.component import ModelConfig
from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.datasets.wrappers import HasIdentityBlocks
from embed_core.errors import CheckpointError, ConfigError
from embed_core.testing.datasets import RowsDataset, tiny_dataset
from embed_core.testing.tiny import TinyModel
from embed_core.types import Example
from embed_distill.datasets.with_teacher import WithTeacher, with_teacher
from embed_distill.teacher.cached import Source, Sources
from embed_distill.teacher.config import TeacherConfig
from embed_distill.teacher.fingerprint import content_of, identify
from embed_distill.teacher.local import LocalTeacher

TEXTS = ("Where does the heron live?", "a", "The heron lives near the river. " * 9, "")


@pytest.fixture
def teacher(tiny: Path) -> Callable[..., TeacherConfig]:
    """The tiny teacher's config, in fp32; options change it."""
    return lambda **options: TeacherConfig(**{"name_or_path": str(tiny / "teacher"), "dtype": "fp32", **options})


Config = Callable[..., TeacherConfig]


def sources(context: BuildContext, *configs: TeacherConfig, dtype: Any = "fp16") -> Sources:
    return Sources.of(configs, None, dtype, context)


def taught(context: BuildContext, *configs: TeacherConfig, inner: Any = None, compute: Any = "ahead") -> WithTeacher:
    return with_teacher(inner or tiny_dataset(), sources(context, *configs), compute, context)


def drawn(dataset: Any, epoch: int = 0) -> list[Example]:
    return dataset.complete([dataset.example(n, np.random.default_rng((epoch, n))) for n in range(len(dataset))])


def test_vectors_are_those_of_sentence_transformers(teacher: Config, tiny: Path, context: BuildContext) -> None:
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(tiny / "teacher"), device="cpu")
    config = teacher(max_length=64)
    ours = LocalTeacher(config, identify(config, context.cache_dir, context), context)
    found = ours.vectors([(text, "query") for text in TEXTS] + [(text, "passage") for text in TEXTS])
    expected = [reference.encode(list(TEXTS), prompt_name=name) for name in ("query", "document")]
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-5)


def test_kept_vectors_are_of_unit_length_and_close(teacher: Config, context: BuildContext) -> None:
    config = teacher()
    exact = LocalTeacher(config, identify(config, context.cache_dir, context), context).vectors(
        [(t, "query") for t in TEXTS]
    )
    for dtype in ("fp16", "int8"):
        kept = sources(context, config, dtype=dtype).vectors([(text, "query") for text in TEXTS])
        np.testing.assert_allclose(np.linalg.norm(kept, axis=1), 1, atol=1e-6)
        assert (kept * exact).sum(axis=1).min() > 0.9998


def test_building_a_teacher_draws_nothing(teacher: Config, context: BuildContext) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    sources(context, teacher()).vectors([("a", "query")])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_two_teachers_stand_side_by_side(teacher: Config, tiny: Path, context: BuildContext) -> None:
    both = sources(context, teacher(), teacher(name_or_path=str(tiny / "student")))
    asked = [(text, "passage") for text in TEXTS]
    vectors = both.vectors(asked)
    assert vectors.shape == (4, 24 + 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    cosines = [one.vectors(asked) @ one.vectors(asked).T for one in both.each]
    np.testing.assert_allclose(vectors @ vectors.T, (cosines[0] + cosines[1]) / 2, atol=1e-6)


def test_every_row_gets_the_vectors_of_its_own_texts(teacher: Config, context: BuildContext) -> None:
    dataset = taught(context, teacher())
    config = teacher()
    exact = LocalTeacher(config, identify(config, context.cache_dir, context), context)
    for one in drawn(dataset)[:5]:
        assert one.query_vector is not None
        assert one.passage_vectors is not None
        assert one.passage_vectors.shape == (len(one.passages), 24)
        expected = exact.vectors([(one.query, "query"), *((text, "passage") for text in one.passages)])
        np.testing.assert_allclose(np.stack([one.query_vector, *one.passage_vectors]), expected, atol=2e-3)


def test_the_second_epoch_and_the_second_run_compute_nothing(
    teacher: Config, context: BuildContext, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = taught(context, teacher())
    texts = len(set(tiny_dataset().texts()))
    assert (first.sources.computed, first.sources.found) == (texts, 0)
    assert not first.sources.each[0].loaded, "what has done its work is not kept in memory"
    assert lines[-1].startswith(f"teacher: 0 vectors from the store, {texts} computed: ")
    whole = [drawn(first, epoch) for epoch in (0, 1)]
    assert first.sources.computed == texts

    def loaded(*_: object) -> None:
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(LocalTeacher, "__init__", loaded)
    second = taught(context, teacher())
    assert lines[-1].startswith(f"teacher: {texts} vectors from the store, 0 computed: ")
    assert all(same(drawn(second, epoch), whole[epoch]) for epoch in (0, 1))
    assert (second.sources.computed, second.sources.each[0].loaded) == (0, False)
    lazy = taught(context, teacher(), compute="lazy")
    assert lines[-1].startswith("teacher: all vectors are in the store, 0 to compute: ")
    assert same(drawn(lazy), whole[0])


def same(one: list[Example], other: list[Example]) -> bool:
    return all(
        np.array_equal(a.query_vector, b.query_vector) and np.array_equal(a.passage_vectors, b.passage_vectors)  # type: ignore[arg-type]
        for a, b in zip(one, other, strict=True)
    )


def test_lazily_a_batch_is_computed_when_it_is_drawn(teacher: Config, context: BuildContext, lines: list[str]) -> None:
    dataset = taught(context, teacher(), compute="lazy")
    assert dataset.sources.computed == 0
    assert dataset.sources.each[0].loaded, "in the main thread, before the first batch"
    assert lines[-1].startswith("teacher: vectors are computed as they are needed, and kept in ")
    rows = [dataset.example(n, np.random.default_rng(n)) for n in (0, 3)]
    first = dataset.complete(rows)
    distinct = len({(text, "q") for text in (r.query for r in rows)} | {(t, "p") for r in rows for t in r.passages})
    assert dataset.sources.computed == distinct
    assert same(dataset.complete(rows), first), "computed or kept, a vector is the same"
    assert (dataset.sources.computed, dataset.sources.found) == (distinct, distinct)


def test_a_damaged_vector_is_computed_again_and_is_the_same(
    teacher: Config, context: BuildContext, lines: list[str]
) -> None:
    before = drawn(taught(context, teacher()))
    (path,) = (context.cache_dir / "teachers").glob("*/*.vec")
    content = bytearray(path.read_bytes())
    content[-30] ^= 4
    path.write_bytes(content)
    dataset = taught(context, teacher())
    after = drawn(dataset)
    assert dataset.sources.computed == 1
    assert any("1 vector has a wrong checksum: it is computed again" in line for line in lines)
    for one, other in zip(before, after, strict=True):  # another chunk, another rounding
        np.testing.assert_allclose(one.query_vector, other.query_vector, atol=1e-3)
        np.testing.assert_allclose(one.passage_vectors, other.passage_vectors, atol=1e-3)
    third = taught(context, teacher())
    assert same(drawn(third), after)
    assert third.sources.computed == 0


def test_a_text_both_asked_and_answered_has_one_vector_without_prompts(teacher: Config, context: BuildContext) -> None:
    rows = RowsDataset([("one", ["two"], []), ("two", ["three"], ["one"])])
    plain = taught(context, teacher(query_prompt="", passage_prompt=""), inner=rows)
    assert plain.sources.computed == 3
    prompted = taught(context, teacher(), inner=rows)
    assert prompted.sources.computed == 5


def test_all_else_is_the_inner_dataset_s(teacher: Config, context: BuildContext) -> None:
    inner = tiny_dataset(held_out_rows=6, sources=2)
    dataset = taught(context, teacher(), inner=inner)
    assert len(dataset) == len(inner)
    assert dataset.name == inner.name
    assert list(dataset.identities(3)) == list(inner.identities(3))
    assert dataset.source(3) == inner.source(3)
    assert list(dataset.texts()) == list(inner.texts())
    assert dataset.held_out() == inner.held_out()
    assert dataset.example(2, np.random.default_rng(0)) == inner.example(2, np.random.default_rng(0))
    assert not isinstance(dataset, HasIdentityBlocks)
    inner.identity_blocks = lambda: iter(())  # type: ignore[attr-defined]
    assert isinstance(taught(context, teacher(), inner=inner), HasIdentityBlocks)


def test_an_inner_dataset_completes_its_rows_first(teacher: Config, context: BuildContext) -> None:
    class Completing(RowsDataset):
        def complete(self, examples: list[Example]) -> list[Example]:
            return [replace(one, passages=(*one.passages, "another")) for one in examples]

    dataset = taught(context, teacher(), inner=Completing([("q", ["p"], [])]))
    (one,) = drawn(dataset)
    assert one.passages == ("p", "another")
    assert one.passage_vectors is not None
    assert one.passage_vectors.shape == (2, 24)
    assert dataset.complete([]) == []


def test_the_fingerprint_is_of_data_teacher_and_precision(teacher: Config, context: BuildContext) -> None:
    def fingerprint(*configs: TeacherConfig, inner: Any = None, dtype: Any = "fp16") -> str:
        return WithTeacher(inner or tiny_dataset(), sources(context, *configs, dtype=dtype)).fingerprint()

    found = [
        fingerprint(teacher()),
        fingerprint(teacher(query_prompt="other: ")),
        fingerprint(teacher(max_length=32)),
        fingerprint(teacher(), dtype="int8"),
        fingerprint(teacher(), teacher(pooling="mean")),
        fingerprint(teacher(), inner=tiny_dataset(held_out_rows=2)),
    ]
    assert len(set(found)) == len(found)
    assert fingerprint(teacher()) == found[0]


def test_a_teacher_is_its_content_and_not_its_name(teacher: Config, tiny: Path, context: BuildContext) -> None:
    def folder(path: Path, **options: Any) -> str:
        return Source(teacher(name_or_path=str(path), **options), context.cache_dir, "fp16", context).folder.name

    copy = context.cache_dir / "copy"
    shutil.copytree(tiny / "teacher", copy)
    assert folder(copy) == folder(tiny / "teacher")
    assert folder(copy) != folder(tiny / "student")
    assert folder(copy, pooling="mean") != folder(copy)
    assert folder(copy, dtype="auto") != folder(copy)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert folder(copy) != folder(tiny / "teacher"), "trained again into the same directory"


def test_gigabytes_are_read_once(tiny: Path, context: BuildContext, monkeypatch: pytest.MonkeyPatch) -> None:
    first = content_of(tiny / "teacher", context.cache_dir)
    monkeypatch.setattr("embed_distill.teacher.fingerprint._parts", lambda path: pytest.fail("read again"))
    assert content_of(tiny / "teacher", context.cache_dir) == first


def test_a_model_of_the_hub_is_known_by_its_commit(
    tiny: Path, tmp_path: Path, context: BuildContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And without its weights: a run whose vectors are all there does not fetch them."""
    commit = "c" * 40
    snapshot = tmp_path / "hub/models--some--teacher/snapshots" / commit
    shutil.copytree(tiny / "teacher", snapshot, ignore=shutil.ignore_patterns("model.safetensors"))
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = TeacherConfig(name_or_path="some/teacher")
    import huggingface_hub

    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: real(*a, **k, cache_dir=str(tmp_path / "hub"))
    )
    found = identify(config, context.cache_dir, context)
    assert found.facts["content"] == f"some/teacher@{commit}"
    assert found.salts["query"] != found.salts["passage"], "its saved prompts are read"
    with pytest.raises(
        CheckpointError, match=r"teacher 'no/such' is no directory here and cannot be fetched .*: give a"
    ):
        identify(TeacherConfig(name_or_path="no/such"), context.cache_dir, context)


def test_longer_texts_than_it_has_positions_for_are_cut(tiny: Path, context: BuildContext) -> None:
    short = context.cache_dir / "short"
    shutil.copytree(tiny / "teacher", short)
    settings = json.loads((short / "config.json").read_text())
    settings["max_position_embeddings"] = 42  # of which RoBERTa has two for padding
    (short / "config.json").write_text(json.dumps(settings))
    assert identify(TeacherConfig(name_or_path=str(short)), context.cache_dir, context).model.passage_max_length == 40  # type: ignore[attr-defined]


class OneLayerConfig(ModelConfig):
    """A model without files, with lexical weights and token vectors besides."""

    kind: Literal["one-layer"] = "one-layer"
    width: int = 16

    def build(self, context: BuildContext) -> Any:
        return TinyModel(width=self.width, seed=context.seed)


def test_a_model_of_any_kind_teaches(context: BuildContext) -> None:
    """One without files is known by its config and the seed."""
    registry = Registry()
    registry.add("model", OneLayerConfig, "test")
    context.registry = registry
    plain = {"model": {"kind": "one-layer"}, "dtype": "fp32"}
    config = TeacherConfig.model_validate(plain, context={"registry": registry})
    assert config.label == "one-layer"
    dataset = taught(context, config)
    assert drawn(dataset)[0].query_vector.shape == (16,)  # type: ignore[union-attr]
    wider = config.model_copy(update={"model": OneLayerConfig(width=8)})
    folders = [
        sources(here, one).each[0].folder
        for here, one in ((context, config), (context, wider), (replace(context, seed=7), config))
    ]
    assert len(set(folders)) == 3
    assert folders[0] == dataset.sources.each[0].folder


def test_a_directory_inside_a_model_of_any_kind_is_its_content(context: BuildContext, tiny: Path) -> None:
    """LoRA around a saved encoder: the encoder's name does not count, its weights do."""
    from embed_core.plugin.manager import activate

    context.registry = activate(["distill"])[1]
    copy = context.cache_dir / "copy"
    shutil.copytree(tiny / "teacher", copy)

    def folder(path: Path) -> Path:
        inner = {"kind": "transformers-encoder", "name_or_path": str(path)}
        plain = {"model": {"kind": "lora", "inner": inner}}
        config = TeacherConfig.model_validate(plain, context={"registry": context.registry})
        return sources(context, config).each[0].folder

    assert folder(copy) == folder(tiny / "teacher") != folder(tiny / "student")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a teacher needs either `name_or_path` or `model`, one of the two"),
        ({"name_or_path": "from-scratch"}, "name_or_path 'from-scratch': random weights teach nothing"),
        ({"name_or_path": "x", "model": {"kind": "transformers-encoder"}}, "one of the two"),
        (
            {"model": {"kind": "transformers-encoder", "name_or_path": "x"}, "max_length": 9},
            "max_length is of a teacher by `name_or_path`: set it inside `model`, if it has it",
        ),
    ],
)
def test_what_contradicts_itself_is_said(options: dict[str, Any], message: str, embed_registry: Any) -> None:
    with pytest.raises(ValidationError, match=message):
        TeacherConfig.model_validate(options, context={"registry": embed_registry()})


def test_a_teacher_that_is_not_there_is_said(context: BuildContext, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model directory '.*nowhere' does not exist"):
        sources(context, TeacherConfig(name_or_path=str(tmp_path / "nowhere")))


def test_a_vector_that_is_not_finite_is_said(
    teacher: Config, context: BuildContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embed_core.models.transformers_encoder.model import TransformersEncoder

    forward = TransformersEncoder.forward

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = forward(self, *args, **kwargs)
        return found._replace(dense_ND=found.dense_ND * torch.nan)

    monkeypatch.setattr(TransformersEncoder, "forward", broken)
    message = r"teacher '.*teacher' gives a vector that is not finite, of 'a text': compute it in dtype fp32"
    with pytest.raises(ConfigError, match=message):
        sources(context, teacher()).vectors([("a text", "query")])


def test_a_teacher_without_a_dense_vector_is_said(
    teacher: Config, context: BuildContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embed_core.models.transformers_encoder.model import TransformersEncoder
    from embed_core.types import Embeddings

    monkeypatch.setattr(TransformersEncoder, "forward", lambda self, **inputs: Embeddings())
    with pytest.raises(ConfigError, match=r"teacher '.*teacher' has no dense vector: use a model that has one"):
        sources(context, teacher()).vectors([("a text", "query")])


def test_cuda_that_is_not_there_is_said(teacher: Config, context: BuildContext) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ConfigError, match="teacher: device 'cuda' was asked for and no CUDA device is visible"):
        sources(context, teacher(device="cuda")).vectors([("a text", "query")])


def test_importing_the_registry_is_not_needed() -> None:
    """A teacher by its name needs no registered kinds."""
    assert TeacherConfig.model_validate({"name_or_path": "x"}, context={"registry": Registry()}).label == "x"
