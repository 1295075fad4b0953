"""The recipe's keys, what they compile to, the errors, and the page that lists them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from embed_core.config import document
from embed_core.config.registry import Registry
from embed_core.config.resolve import Request, plain
from embed_core.config.resolve import resolve as resolve_run
from embed_core.config.run import RunConfig
from embed_core.errors import ConfigError
from embed_core.plugin.manager import activate
from embed_core.testing import check_plugin
from embed_distill.models.width import dense_width
from embed_distill.recipe.naming import student_name

ROOT = Path(__file__).resolve().parents[2]
SEED = """
model:
  teacher: "infly/inf-retriever-v1-pro"          # Teacher model HF path
  student: "sentence-transformers/all-mpnet-base-v2"  # Student model HF path
  teacher_dim: 3584
  student_dim: 768
  projection_hidden_dim: 1536
  use_projection: true
phase1:
  batch_size: 64
  learning_rate: 2.0e-5
  warmup_steps: 1000
  num_epochs: 1
  mse_weight: 0.4
  cosine_weight: 0.6
  max_length: 512
  gradient_accumulation_steps: 4
  max_samples_per_dataset: 100000
phase2:
  batch_size: 64
  learning_rate: 5.0e-6
  warmup_steps: 500
  num_epochs: 3
  infonce_weight: 0.8
  mse_weight: 0.2
  temperature: 0.02
  max_length: 512
  num_negatives: 7
  gradient_accumulation_steps: 8
  max_samples: 500000
training:
  skip_phase1: false
  skip_phase2: false
  save_to_artifacts: false
paths:
  output_dir: "./checkpoints"
  artifacts_dir: "./artifacts"
"""
SCRATCH_KEYS = {"phase1": {"datasets"}, "phase2": {"dataset", "held_out_rows"}}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return activate(["distill"])[1]


@pytest.fixture
def resolve(registry: Registry, tmp_path: Path) -> Any:
    def call(*settings: str, text: str = "", name: str = "default", **options: Any) -> dict[str, Any]:
        given = document.Document()
        if text:
            path = tmp_path / f"{name}.yaml"
            path.write_text(text, encoding="utf-8")
            given = document.read(path)
        request = Request(
            registry.recipe("distill"),
            given,
            overrides=document.overrides(list(settings)),
            flags={"plugins": ["distill"], **options.pop("flags", {})},
            **options,
        )
        return plain(resolve_run(registry, request))

    return call


def model_directory(folder: Path, width: int, dense: int | None = None) -> Path:
    """The small files of a model: nothing that could be loaded."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"hidden_size": width}))
    (folder / "model.safetensors").write_bytes(b"")
    if dense is not None:
        (folder / "2_Dense").mkdir()
        (folder / "2_Dense" / "config.json").write_text(json.dumps({"in_features": width, "out_features": dense}))
        modules = [{"type": "x.Transformer", "path": ""}, {"type": "x.models.Dense", "path": "2_Dense"}]
        (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def test_the_plugin_keeps_its_promises() -> None:
    check_plugin("distill")


def test_the_layout_as_users_have_it(resolve: Any) -> None:
    run = resolve(text=SEED, world_size=2)
    assert run["name"] == "distilled-mpnet-3584d-default"
    assert run["output_dir"] == "checkpoints/distilled-mpnet-3584d-default"
    model = run["model"]
    assert (model["kind"], model["hidden_dim"], model["out_dim"]) == ("projected", 1536, 3584)
    assert model["inner"]["name_or_path"] == "sentence-transformers/all-mpnet-base-v2"
    assert model["inner"]["query_max_length"] == model["inner"]["passage_max_length"] == 512
    first, second = run["phases"]
    assert (first["name"], second["name"]) == ("phase1", "phase2")
    assert first["data"]["inner"]["kind"] == "plain-texts"
    assert first["data"]["inner"]["max_samples_per_dataset"] == 100_000
    assert {n: (t["loss"]["kind"], t["weight"]) for n, t in first["loss"]["terms"].items()} == {
        "mse": ("teacher-mse", 0.4),
        "cosine": ("teacher-cosine", 0.6),
    }
    assert {n: (t["loss"]["kind"], t["weight"]) for n, t in run["loss"]["terms"].items()} == {
        "infonce": ("infonce", 0.8),
        "mse": ("teacher-mse", 0.2),
    }
    assert run["loss"]["terms"]["infonce"]["loss"]["temperature"] == 0.02
    assert run["data"]["inner"]["limit"] == 500_000
    assert first["data"]["teachers"] == run["data"]["teachers"] == run["evaluation"][0]["teachers"]
    assert run["data"]["teachers"][0]["name_or_path"] == "infly/inf-retriever-v1-pro"
    assert (first["sampler"]["batch_size"], run["sampler"]["batch_size"]) == (128, 128), "64 per rank"
    assert (first["train"]["epochs"], run["train"]["epochs"]) == (1, 3)
    assert (first["train"]["gradient_accumulation_steps"], run["train"]["gradient_accumulation_steps"]) == (4, 8)
    rates = [part["train"]["optimizer"]["learning_rate"] for part in (first, run)]
    assert rates == [2e-5, 5e-6]


def test_the_defaults_are_those_of_the_layout(resolve: Any, tmp_path: Path) -> None:
    """A student that is loaded has every default that the layout names."""
    teacher, student = model_directory(tmp_path / "t", 3584), model_directory(tmp_path / "s", 768)
    models = (f"model.teacher={teacher}", f"model.student={student}")
    given, left_out = resolve(*models, text=SEED, name="one"), resolve(*models, name="one")
    left_out |= {"name": given["name"], "output_dir": given["output_dir"]}
    assert left_out == given


def test_a_partial_config_is_laid_over_the_defaults(resolve: Any) -> None:
    run = resolve(
        text="model: {use_projection: true}\nphase1: {num_epochs: 2}\nphase2: {batch_size: 96}\n", name="mine"
    )
    assert run["name"] == "distilled-scratch-128d-mine"
    assert (run["phases"][0]["train"]["epochs"], run["sampler"]["batch_size"]) == (2, 96)
    assert run["data"]["teacher"]["model"]["from_scratch"]["hidden"] == 128


def test_every_other_key_arrives(resolve: Any, tmp_path: Path) -> None:
    teacher = model_directory(tmp_path / "t", 64)
    run = resolve(
        f"model.teacher={teacher}", "model.student_dim=32", "model.teacher_query_prompt='q: '",
        "model.teacher_passage_prompt=''", "model.teacher_max_length=77", "model.query_prompt='s: '",
        "model.passage_prompt='d: '", "model.trust_remote_code=true", "model.init_from_teacher=true",
        "model.router=true", "model.student_model={pooling: cls}", "model.teacher_model={dtype: fp32}",
        "phase1.max_length=50", "phase2.max_length=50", "phase2.num_negatives=2", "phase2.held_out_rows=9",
        "phase2.dataset=rows.jsonl", "phase1.datasets=[rows.jsonl, other.csv, {kind: pydocs}]",
        "paths.teacher_store=store", "paths.output_dir=out", "training.auto_scale=true",
    )  # fmt: skip
    entry = run["data"]["teachers"][0]
    assert (entry["query_prompt"], entry["passage_prompt"], entry["max_length"]) == ("q: ", "", 77)
    assert (entry["trust_remote_code"], entry["dtype"]) == (True, "fp32")
    student = run["model"]["inner"]
    assert (student["query_prompt"], student["passage_prompt"], student["pooling"]) == ("s: ", "d: ", "cls")
    assert student["query_max_length"] == student["passage_max_length"] == 50
    assert student["trust_remote_code"] is True
    assert (run["model"]["init_from"], run["model"]["hidden_dim"]) == (str(teacher), 64)
    assert run["checkpoint"]["router"] == {
        "teacher": str(teacher), "teacher_dims": None, "trust_remote_code": True,
    }  # fmt: skip
    rows = run["data"]["inner"]
    assert (rows["path"], rows["negatives"], rows["held_out_rows"]) == ("rows.jsonl", 2, 9)
    texts = run["phases"][0]["data"]["inner"]["datasets"]
    assert [(one["kind"], one.get("path"), one.get("held_out_rows")) for one in texts] == [
        ("file", "rows.jsonl", 9),
        ("file", "other.csv", 0),
        ("pydocs", None, None),
    ], "the rows held out of phase 2 are no texts of phase 1"
    assert run["data"]["store"] == run["phases"][0]["data"]["store"] == run["evaluation"][0]["store"] == "store"
    assert run["output_dir"].startswith("out/")
    assert run["loss"]["auto_scale"] is True
    assert resolve("phase2.eval_data=[a, b]")["evaluation"][1]["path"] == "b"
    assert resolve("phase2.eval_data=[a]")["data"]["inner"]["held_out_rows"] == 0
    assert resolve("phase2.held_out_rows=0")["evaluation"] == []
    assert resolve("phase2.mse_weight=0")["data"]["kind"] == "auto", "no teacher where nothing reads it"
    assert resolve("model.projection_hidden_dim=0")["model"]["hidden_dim"] is None


def test_each_phase_has_its_own_length(resolve: Any, tmp_path: Path) -> None:
    """The teacher reads as much as the longer one: a text has one vector of it."""
    teacher, student = model_directory(tmp_path / "t", 8), model_directory(tmp_path / "s", 4)
    models = (f"model.teacher={teacher}", f"model.student={student}")
    run = resolve(*models, "phase1.max_length=40", "phase2.max_length=60", "model.init_from_teacher=true")
    short = run["phases"][0]["model"]
    assert (short["inner"]["query_max_length"], short["inner"]["passage_max_length"]) == (40, 40)
    assert (run["model"]["inner"]["query_max_length"], run["model"]["inner"]["passage_max_length"]) == (60, 60)
    assert {**short, "inner": None} == {**run["model"], "inner": None}
    assert run["data"]["teachers"][0]["max_length"] == 60
    for one in ("phase1", "phase2"):
        scratch = resolve(f"{one}.max_length=40")
        assert (scratch["model"]["inner"]["query_max_length"], scratch["phases"][0]["model"]) == (40, None)
    with pytest.raises(
        ConfigError, match=r"--set phase2.*: phase1.max_length 40 and phase2.max_length 60: a student fro"
    ):
        resolve("phase1.max_length=40", "phase2.max_length=60")
    assert resolve(*models, "phase1.max_length=512")["phases"][0]["model"] is None
    alone = resolve(*models, "phase1.max_length=40", "training.skip_phase2=true")
    assert (alone["model"]["inner"]["query_max_length"], alone["phases"][0]["model"]) == (40, None)
    mrl = resolve(*models, "phase1.max_length=40", "model.use_projection=false", "model.mrl_dims=[4]")
    assert (mrl["phases"][0]["model"]["query_max_length"], mrl["model"]["query_max_length"]) == (40, 512)


def test_mrl_mode(resolve: Any) -> None:
    run = resolve("model.use_projection=false", "model.mrl_dims=[48,24]", name="mrl", text="phase1: {num_epochs: 1}")
    assert run["name"] == "distilled-scratch-48d-mrl"
    assert run["model"]["kind"] == "transformers-encoder"
    for loss in (run["loss"], run["phases"][0]["loss"]):
        assert (loss["kind"], loss["dims"], loss["inner"]["auto_scale"]) == ("matryoshka", [48, 24], True)
    first = run["phases"][0]["loss"]["inner"]["terms"]
    assert [term["loss"]["kind"] for term in first.values()] == ["teacher-similarity", "teacher-kl"]
    assert [one["kind"] for one in run["evaluation"]] == ["two-by-two", "dimensions"]
    assert run["checkpoint"]["kind"] == "matryoshka"
    loaded = ("model.use_projection=false", "model.student=a/b", "model.student_dim=48")
    assert resolve(*loaded)["loss"]["inner"]["auto_scale"] is True
    cut = resolve(*loaded, "model.mrl_teacher=first")["loss"]["inner"]
    assert (cut["terms"]["mse"]["loss"]["teacher_dims"], cut["auto_scale"]) == ("first", False)
    alone = resolve("model.use_projection=false", "model.mrl_dims=[]")
    assert (alone["loss"]["kind"], alone["checkpoint"]["kind"]) == ("weighted-sum", "transformers")
    started = resolve("model.use_projection=false", "model.teacher=a/b", "model.init_from_teacher=true")["model"]
    assert (started["kind"], started["init_from"]) == ("from-teacher", "a/b")


def test_mrl_mode_without_embed_mrl(resolve: Any, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = registry.kinds
    monkeypatch.setattr(registry, "kinds", lambda slot: {k: c for k, c in kinds(slot).items() if k != "matryoshka"})
    with pytest.raises(ConfigError, match=r"by embed-mrl, which is not installed.*set model.mrl_dims to \[\]"):
        resolve("model.use_projection=false")
    assert resolve("model.use_projection=false", "model.mrl_dims=[]")["loss"]["kind"] == "weighted-sum"


def test_phases_left_out(resolve: Any) -> None:
    assert [phase["name"] for phase in resolve("training.skip_phase2=true")["phases"]] == ["phase1"]


def test_warm_up_is_a_tenth_of_a_short_phase(resolve: Any) -> None:
    """With many ranks the same texts are few steps: a rate that is never reached would train nothing."""
    one, many = resolve(text=SEED), resolve(text=SEED, world_size=8)
    # 100,000 texts / (64 · 4): 391 steps at most, and 1000 would never end.
    for run in (one, many):
        assert run["phases"][0]["train"]["schedule"]["warmup_steps"] is None
        assert run["phases"][0]["train"]["schedule"]["warmup_ratio"] == 0.1
    # 3 · 500,000 / (64 · 8) = 2,930 steps; a tenth is less than 500.
    assert one["train"]["schedule"]["warmup_steps"] is None
    exact = resolve("phase2.warmup_steps=290", text=SEED)["train"]["schedule"]
    assert (exact["warmup_steps"], exact["kind"]) == (290, "linear")
    assert resolve("phase2.max_samples=null", text=SEED)["train"]["schedule"]["warmup_steps"] == 500


def test_artifacts(resolve: Any, tmp_path: Path) -> None:
    run = resolve("training.save_to_artifacts=true", f"paths.artifacts_dir={tmp_path}", "model.use_projection=false")
    kept = run["checkpoint"]
    assert (kept["kind"], kept["directory"]) == ("artifacts", f"{tmp_path}/distilled-scratch-48d-default")
    assert kept["inner"]["kind"] == "matryoshka"
    (tmp_path / "distilled-scratch-128d-default").mkdir()
    with pytest.raises(ConfigError) as taken:
        resolve("training.save_to_artifacts=true", f"paths.artifacts_dir={tmp_path}")
    assert "default' exists: move it away, or choose another paths.artifacts_dir; nothing was" in str(taken.value)
    assert "\n" not in str(taken.value)
    other = ("training.save_to_artifacts=true", f"paths.artifacts_dir={tmp_path}")
    resolve(*other, name="other", text="seed: 1", sanity=True)


def test_flags_reach_both_phases(resolve: Any) -> None:
    run = resolve(flags={"max_steps": 5})
    assert (run["train"]["max_steps"], run["phases"][0]["train"]["max_steps"]) == (5, 5)


def test_sanity_keeps_what_the_user_set(resolve: Any) -> None:
    run = resolve("model.teacher_dim=48", "phase1.max_samples_per_dataset=20", sanity=True)
    first = run["phases"][0]
    assert (first["train"]["max_steps"], first["sampler"]["batch_size"], run["sampler"]["batch_size"]) == (4, 8, 8)
    assert first["train"]["gradient_accumulation_steps"] == 1
    assert first["data"]["inner"]["max_samples_per_dataset"] == 20
    assert (run["model"]["out_dim"], run["model"]["inner"]["from_scratch"]["layers"]) == (48, 1)
    teacher = run["data"]["teacher"]
    assert (teacher["model"]["from_scratch"]["hidden"], teacher["train"]["max_steps"]) == (48, 4)
    assert teacher == first["data"]["teacher"] == run["evaluation"][0]["teacher"], "or it would be trained thrice"
    assert (
        resolve("model.teacher=a/b", "model.teacher_dim=8", sanity=True)["data"]["teachers"][0]["name_or_path"] == "a/b"
    )


def test_what_a_run_writes_down_is_the_same_run(resolve: Any, registry: Registry) -> None:
    run = resolve("model.use_projection=false", "training.save_to_artifacts=true")
    again = resolve_run(registry, Request(None, document.Document(data=run)))
    assert plain(again) == run


@pytest.mark.parametrize(
    ("student", "name"),
    [
        ("sentence-transformers/all-mpnet-base-v2", "mpnet"),
        ("sentence-transformers/all-MiniLM-L6-v2", "MiniLM"),
        ("BAAI/bge-small-en-v1.5", "bge"),
        ("intfloat/multilingual-e5-large", "multilingual-e5"),
        ("Qwen/Qwen3-Embedding-0.6B", "Qwen3-Embedding"),
        ("models/my student", "my-student"),
        ("/x/base", "base"),
        ("from-scratch", "scratch"),
    ],
)
def test_experiments_are_called_after_the_student(student: str, name: str) -> None:
    assert student_name(student) == name


ERRORS = {
    "model.teecher=x": "model.teecher: unknown key 'teecher': did you mean 'teacher'?",
    "phase1.lr=1": "phase1.lr: unknown key 'lr'",
    "model.mrl_dims=[8]": "mrl_dims [8] with use_projection: a projected vector is as wide as the teacher's",
    "model={use_projection: false, mrl_dims: [8, 8]}": "mrl_dims [8, 8]: different positive dimensions are needed",
    "model={use_projection: false, mrl_dims: [128]}": "mrl_dims [128]: the student's vectors have 48 values: name sm",
    "model={use_projection: false, router: true, teacher: a/b}": "router needs use_projection, which is false",
    "model.router=true": "router needs a teacher that is there before the run: set model.teacher",
    "model.init_from_teacher=true": "init_from_teacher needs a teacher that is there before the run",
    "model.teacher=no/such-teacher": "teacher_dim is needed: the files of teacher 'no/such-teacher' are not on this m",
    "model.student=no/such-student": "student_dim or projection_hidden_dim is needed: the files of student 'no/such-s",
    "model.mrl_teacher=first": "mrl_teacher 'first' with use_projection: a projected vector is compared with the whole",
    "model={use_projection: false, mrl_teacher: first, teacher_dim: 40}": "the teacher's 40 values cannot be cut to t",
    "phase1={mse_weight: 0, cosine_weight: 0}": "mse_weight and cosine_weight are both 0: give one of them a weight",
    "phase2={mse_weight: 0, infonce_weight: 0}": "infonce_weight and mse_weight are both 0: give one of them a weight",
    "training={skip_phase1: true, skip_phase2: true}": "skip_phase1 and skip_phase2 are both true: nothing would be",
    "training.phase1_checkpoint=x": "phase1_checkpoint without skip_phase1: phase 1 would be trained anew; set skip_",
    "teacher_model_name=x": "'x': recipe distill has a teacher anyway: set model.teacher instead",
    "phase1.datasets=[]": "phase1.datasets: ",
    "evaluation=[{kind: two-by-two}]": "kind 'two-by-two' needs either `teachers` or `teacher`, one of the two",
    "evaluation=[{kind: two-by-two, teachers: [{name_or_path: x}], ways: [dense]}]": "ways: kind 'two-by-two' ranks",
    "checkpoint={kind: artifacts, directory: x, inner: {kind: transformers, every_steps: 3}}": "every_steps has no ef",
}


@pytest.mark.parametrize("setting", ERRORS)
def test_errors_are_one_line_with_the_way_out(resolve: Any, setting: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(setting)
    assert ERRORS[setting] in str(error.value)
    assert str(error.value).count("\n") == 0
    assert "--set" in str(error.value), "says where it was written"


def test_widths_that_are_not_the_models_stop_at_once(resolve: Any, tmp_path: Path) -> None:
    """From config.json alone: nothing there could be loaded."""
    teacher, student = model_directory(tmp_path / "t", 48, dense=96), model_directory(tmp_path / "s", 32)
    text = f"model:\n  teacher: {teacher}\n  student: {student}\n"
    run = resolve(text=text)
    assert (run["model"]["out_dim"], run["model"]["hidden_dim"]) == (96, 64), "the teacher's last Dense module counts"
    with pytest.raises(ConfigError, match=r"default.yaml:4: model.teacher_dim: 48 is not what teacher .*/t' gives: "):
        resolve(text=text + "  teacher_dim: 48\n")
    with pytest.raises(ConfigError, match=r"student_dim: 768 is not .* 32 values \(hidden_size in .*config.json\); "):
        resolve(text=text + "  student_dim: 768\n")


def test_widths_in_other_configs(tmp_path: Path) -> None:
    for number, config in enumerate(({"d_model": 7}, {"text_config": {"hidden_size": 7}}, {"dim": 7})):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        found = dense_width(str(folder))
        assert found is not None
        assert found.width == 7
    (tmp_path / "config.json").write_text("[]")
    assert dense_width(str(tmp_path)) is None
    assert dense_width("no such/model name!") is None


def left_by_phase_1(run: Path, width: int, student: str) -> Path:
    """What a finished phase 1 leaves of what is looked at."""
    model = model_directory(run / "phases" / "phase1" / "model", 16, dense=width)
    (run / "config.yaml").write_text(
        yaml.safe_dump({"model": {"kind": "projected", "inner": {"name_or_path": student}}})
    )
    return model


def test_skip_phase_1_finds_what_it_left(resolve: Any, tmp_path: Path) -> None:
    out = tmp_path / "checkpoints"
    skip = ("training.skip_phase1=true", f"paths.output_dir={out}")
    missing = (
        r"distilled-scratch-128d-mine/phases/phase1/model' is not there: no run in .*/checkpoints has finished its "
    )
    with pytest.raises(ConfigError, match=missing):
        resolve(*skip, name="mine", text="phase2: {num_epochs: 1}")
    other = left_by_phase_1(out / "distilled-scratch-128d-first", 128, "from-scratch")
    with pytest.raises(ConfigError, match=r"has phase 1 of distilled-scratch-128d-first; run phase 1, or set "):
        resolve(*skip, name="mine", text="phase2: {num_epochs: 1}")
    named = resolve(*skip, f"training.phase1_checkpoint={other}")
    assert (named["model"]["inner"]["name_or_path"], named["name"]) == (str(other), "distilled-scratch-128d-default")
    assert [phase["name"] for phase in named["phases"]] == ["phase2"]
    default = left_by_phase_1(out / "distilled-scratch-128d-default", 128, "from-scratch")
    mine = resolve(*skip, name="phase2_only", text="phase2: {num_epochs: 1}")
    assert (mine["model"]["inner"]["name_or_path"], mine["name"]) == (
        str(default),
        "distilled-scratch-128d-phase2_only",
    )
    own = resolve(*skip)
    assert own["name"] == "distilled-scratch-128d-default-phase2", "or the run would write over its own beginning"


def test_skip_phase_1_finds_a_run_of_phase_1_alone(resolve: Any, tmp_path: Path) -> None:
    run = tmp_path / "distilled-scratch-128d-default"
    model = model_directory(run / "model", 16, dense=128)
    skip = ("training.skip_phase1=true", f"paths.output_dir={tmp_path}")
    config = {"model": {"kind": "projected", "inner": {"name_or_path": "from-scratch"}}}
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "phases": [{"name": "phase1"}, {"name": "phase2"}]}))
    with pytest.raises(ConfigError, match="is not there"):
        resolve(*skip)
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "phases": [{"name": "phase1"}]}))
    assert resolve(*skip)["model"]["inner"]["name_or_path"] == str(model)


def test_skip_phase_1_checks_what_it_finds(resolve: Any, tmp_path: Path) -> None:
    run = tmp_path / "distilled-scratch-128d-default"
    model = left_by_phase_1(run, 96, "models/other")
    skip = ("training.skip_phase1=true", f"paths.output_dir={tmp_path}")
    with pytest.raises(ConfigError, match="have 96 values, this config's 128: set the dimensions and use_projection"):
        resolve(*skip)
    with pytest.raises(ConfigError, match=r"is student 'models/other', this config's is 'from-scratch': set "):
        resolve(*skip, f"training.phase1_checkpoint={model}", "model.teacher_dim=96")
    (model / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="has no weights: run phase 1 again"):
        resolve(*skip)
    with pytest.raises(ConfigError, match=r"is no model directory: it has no config.json"):
        resolve(*skip, f"training.phase1_checkpoint={tmp_path}")


def test_the_page_s_configs_load(resolve: Any) -> None:
    page = (ROOT / "docs/recipes/distill.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        assert isinstance(resolve(text=block, name=f"block{number}"), dict)
    commands = re.findall(r"^ *embed run --plugin distill (--set .*)$", page, flags=re.MULTILINE)
    for command in commands:
        resolve(*[quoted or bare for quoted, bare in re.findall(r"--set (?:'([^']*)'|(\S+))", command)])
    assert commands


def test_run_config_is_what_it_compiles_to(registry: Registry) -> None:
    assert isinstance(resolve_run(registry, Request(registry.recipe("distill"))), RunConfig)
