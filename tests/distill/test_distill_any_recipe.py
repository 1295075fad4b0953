"""``teacher_model_name`` and ``distillation_alpha``: a teacher beside any recipe's own loss."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from embed_core.config import document
from embed_core.config.context import BuildContext
from embed_core.config.resolve import Request
from embed_core.config.resolve import plain as plain_run
from embed_core.config.resolve import resolve as resolve_run
from embed_core.config.run import RunConfig
from embed_core.distributed.process_group import leave
from embed_core.errors import ConfigError
from embed_core.losses.config import InfoNCEConfig
from embed_core.plugin.manager import activate
from embed_core.testing import random_batch
from embed_core.train.run import Options, RunResult, run
from embed_core.types import LossOutput, TeacherVectors
from embed_distill.losses.kd import DistilledLoss
from embed_distill.losses.kd_config import DistilledConfig

TOPICS = ("rivers", "engines", "gardens", "letters", "bridges", "winters", "markets", "planets")
QUIET = ("tracking.report_to=[]", "engine.precision=fp32")


def resolved(plugin: str, *settings: str, file: str = "", **request: Any) -> RunConfig:
    _, registry = activate([plugin])
    given = document.parse(file, "run.yaml") if file else document.Document()
    overrides = document.overrides([*QUIET, *settings])
    return resolve_run(registry, Request(registry.recipe(plugin), given, overrides=overrides, **request))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [
        {"query": f"what of {topic} number {n}", "pos": [f"{topic} {n} are told of in part {n}"], "neg": ["no"]}
        for topic in TOPICS
        for n in range(8)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


Start = Callable[..., tuple[RunResult, list[str]]]


@pytest.fixture
def start(tmp_path: Path, rows: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """``start("bge", "distillation_alpha=0.2")`` → the result of a run with ``--sanity`` and what it announced."""
    monkeypatch.setenv("EMBED_CACHE", str(tmp_path / "cache"))

    def go(plugin: str, *settings: str, out: str = "out", **options: Any) -> tuple[RunResult, list[str]]:
        manager, registry = activate([plugin])
        given = [f"train_data={rows}", "held_out_rows=20", *QUIET, f"teacher_model_name={tiny / 'teacher'}"]
        request = Request(
            registry.recipe(plugin),
            overrides=document.overrides([*given, *settings]),
            sanity=True,
            flags={"output_dir": str(tmp_path / out), "plugins": [plugin]},
        )
        lines: list[str] = []
        found = run(resolve_run(registry, request), manager, registry, Options(announce=lines.append, **options))
        return found, lines

    yield go
    leave()


def terms(result: RunResult) -> list[dict[str, float]]:
    lines = (result.output_dir / "metrics.jsonl").read_text().splitlines()
    return [{**found["terms"], "loss": found["loss"]} for line in lines if "terms" in (found := json.loads(line))]


@pytest.mark.parametrize(
    ("plugin", "own"), [("bge", {"dense", "sparse", "multi"}), ("mrl", {"loss@16", "accuracy@16"})]
)
def test_a_recipe_learns_from_a_teacher_besides(start: Start, plugin: str, own: set[str]) -> None:
    """Of another width, tokenizer and depth. A second run reads what the first computed, and goes the same way."""
    first, told = start(plugin, "distillation_alpha=0.25")
    assert any("teacher: 0 vectors from the store, " in line for line in told)
    steps = terms(first)
    assert len(steps) == 4
    for step in steps:
        assert own | {"task", "kd", "kd/agreement"} <= step.keys()
        assert step["kd"] > 0
        assert step["loss"] == pytest.approx(0.75 * step["task"] + 0.25 * step["kd"], rel=1e-5)
    assert first.evaluations[0] != first.evaluations[4]
    second, told = start(plugin, "distillation_alpha=0.25", out="again")
    assert any(", 0 computed: " in line for line in told)
    assert not any("teacher: loading" in line for line in told)
    assert [step["loss"] for step in terms(second)] == [step["loss"] for step in steps]


def test_a_run_is_resumed_from_its_own_config(start: Start, tmp_path: Path) -> None:
    """What it left says the teacher in full: no recipe is needed."""
    first, _ = start("mrl")
    saved = document.read(first.output_dir / "config.yaml")
    assert saved.data["data"]["kind"] == "with-teacher"
    manager, registry = activate(saved.data["plugins"])
    request = Request(None, saved, overrides=document.overrides(["train.max_steps=6"]))
    result = run(resolve_run(registry, request), manager, registry, Options(announce=lambda line: None, resume=True))
    assert result.steps == 6
    assert [bool(step["kd"]) for step in terms(result)] == [True] * 6


def test_rows_of_a_python_program_have_it_too(
    tmp_path: Path, tiny: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embed_bge.recipe import BGERecipe
    from embed_bge.trainer import BGETrainer

    monkeypatch.setenv("EMBED_CACHE", str(tmp_path / "cache"))
    small = {"from_scratch": {"vocab_size": 120, "hidden": 16, "layers": 1, "heads": 2}}
    recipe = BGERecipe(
        teacher_model_name=str(tiny / "teacher"),
        output_dir=tmp_path / "out",
        train_group_size=2,
        max_steps=2,
        per_device_train_batch_size=8,
        model=small,
    )
    given = [json.loads(line) for line in rows.read_text().splitlines()]
    lines: list[str] = []
    quiet = {"tracking": {"report_to": []}, "engine": {"precision": "fp32"}}
    trainer = BGETrainer(train_dataset=given, config=recipe, overrides=quiet, announce=lines.append)
    result = trainer.train()
    leave()
    assert [bool(step["kd"]) for step in terms(result)] == [True, True]
    assert any("0 vectors from the store, 117 computed" in line for line in lines), (
        "of 64 rows 6 are held out; one negative"
    )


def test_without_a_teacher_nothing_changes() -> None:
    plain = plain_run(resolved("bge"))
    assert "with-teacher" not in json.dumps(plain)
    assert plain_run(resolved("bge", "distillation_alpha=0.1")) == plain


def test_keys_of_data_and_loss_mean_what_they_mean_without_a_teacher(tmp_path: Path) -> None:
    """From the recipe's keys, a file's and --set's."""
    file = "teacher_model_name: some/teacher\ndata: {limit: 50}\nloss: {temperature: 0.5}\n"
    settings = ("data.query_prompt=x", "loss.mask.same_id=false", "train_group_size=3", "data.limit=40")
    plain = resolved("bge", *settings[:1], *settings[2:], file=file.partition("\n")[2])
    taught = resolved("bge", *settings[:1], *settings[2:], file=file)
    data: Any = taught.data
    loss: Any = taught.loss
    assert data.kind == "with-teacher"
    assert loss.kind == "distilled"
    assert data.inner == plain.data
    assert loss.inner == plain.loss
    assert (data.inner.limit, data.inner.negatives, data.inner.query_prompt) == (40, 2, "x")
    assert loss.inner.temperature == 0.5
    assert [one.name_or_path for one in data.teachers] == ["some/teacher"]
    assert (loss.alpha, loss.kd.kind, loss.kd.over) == (0.5, "teacher-kl", "batch")


def test_faults_are_told_by_the_keys_that_were_written() -> None:
    with pytest.raises(ConfigError, match=r"--set data.limt: data.limt: unknown key 'limt': did you mean 'limit'\?"):
        resolved("mrl", "teacher_model_name=some/teacher", "data.limt=4")


def test_a_teacher_that_is_written_out_is_left_alone() -> None:
    own = "data={kind: with-teacher, inner: {kind: pydocs}, teachers: [{name_or_path: own/teacher}]}"
    loss = "loss={kind: distilled, inner: {kind: infonce}, alpha: 0.1, kd: {kind: teacher-similarity}}"
    config: Any = _complete(own, loss)
    assert [one.name_or_path for one in config.data.teachers] == ["own/teacher"]
    assert (config.loss.alpha, config.loss.kd.kind) == (0.1, "teacher-similarity")
    assert config.data.inner.kind == "pydocs"


def _complete(*settings: str) -> RunConfig:
    _, registry = activate(["hello", "data", "distill"])
    overrides = document.overrides(["teacher_model_name=another/teacher", *settings])
    return resolve_run(registry, Request(registry.recipe("hello"), overrides=overrides))


def test_every_phase_has_the_teacher() -> None:
    phases = (
        "phases=[{name: one, loss: {kind: infonce, temperature: 0.1}}, {name: two, data: {kind: pydocs, limit: 9}}]"
    )
    config: Any = _complete(phases)
    one, two = config.phases
    assert (one.loss.kind, one.loss.inner.temperature, one.data) == ("distilled", 0.1, None)
    assert (two.data.kind, two.data.inner.limit, two.loss) == ("with-teacher", 9, None)


def test_every_first_party_recipe_has_it_where_embed_distill_is_installed() -> None:
    for plugin in ("bge", "mrl", "data"):
        assert resolved(plugin, "teacher_model_name=some/teacher").loss.kind == "distilled"


def test_without_embed_distill_it_is_said() -> None:
    _, registry = activate(["hello"])
    file = document.parse("teacher_model_name: some/teacher\n", "run.yaml")
    message = (
        r"run.yaml:1: 'teacher_model_name' is a key of plugin 'distill', which is installed and not active: "
        "add --plugin distill, or leave the key out"
    )
    with pytest.raises(ConfigError, match=message):
        resolve_run(registry, Request(registry.recipe("hello"), file))


def test_an_alpha_beyond_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--set distillation_alpha: distillation_alpha: .*less than or equal to 1"):
        resolved("bge", "distillation_alpha=1.5")
    with pytest.raises(ValidationError):
        DistilledConfig(inner=InfoNCEConfig(), kd=InfoNCEConfig(), alpha=-0.1)


def loss(context: BuildContext, alpha: float, **options: Any) -> DistilledLoss:
    config = DistilledConfig(inner=InfoNCEConfig(temperature=0.1), kd=InfoNCEConfig(temperature=1.0), alpha=alpha)
    return config.model_copy(update=options).build(context)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_is_the_weighted_sum_of_two(context: BuildContext, alpha: float) -> None:
    batch, targets = random_batch()
    whole = loss(context, alpha)
    tensors = [side.dense_ND for side in batch]
    found = whole(batch, targets)
    parts = [one(batch, targets) for one in (whole.inner, whole.kd)]
    expected = (1 - alpha) * parts[0].loss + alpha * parts[1].loss
    torch.testing.assert_close(found.loss, expected)
    gradients = [torch.autograd.grad(value, tensors, retain_graph=True) for value in (found.loss, expected)]  # type: ignore[arg-type]
    torch.testing.assert_close(*gradients)
    if 0 < alpha < 1:
        torch.testing.assert_close(found.metrics["task"], parts[0].loss.detach())
        torch.testing.assert_close(found.metrics["kd"], parts[1].loss.detach())
        assert {"accuracy", "kd/accuracy"} <= found.metrics.keys()
        assert not any(value.requires_grad for value in found.metrics.values())


def test_rows_are_shared_where_both_losses_share_them(context: BuildContext) -> None:
    class Whole(torch.nn.Module):
        def forward(self, batch: Any, targets: Any) -> LossOutput:
            raise AssertionError("not called here")

    config = DistilledConfig(inner=InfoNCEConfig(), kd=InfoNCEConfig())
    both = loss(context, 0.5)
    assert both.shares_rows
    assert not DistilledLoss(config, both.inner, Whole()).shares_rows
    assert not DistilledLoss(config, Whole(), both.kd).shares_rows
    batch, targets = random_batch(6)
    whole = both(batch, targets).loss
    parts = [both(batch, targets._replace(own_rows=own)).loss for own in ((0, 2), (2, 6))]
    torch.testing.assert_close(sum(parts), whole)


def test_the_contracts_of_a_loss(context: BuildContext) -> None:
    from embed_core.testing import check_loss

    check_loss(loss(context, 0.3))


def test_the_default_teaches_across_widths(context: BuildContext) -> None:
    _, registry = activate(["distill"])
    config = DistilledConfig.model_validate(
        {"inner": {"kind": "infonce"}, "alpha": 1.0}, context={"registry": registry}
    )
    built = config.build(context)
    batch, targets = random_batch(5)
    rng = torch.Generator().manual_seed(0)
    wide = [torch.nn.functional.normalize(torch.randn(side.count, 33, generator=rng), dim=-1) for side in batch]
    found = built(batch, targets._replace(teacher=TeacherVectors(*wide)))
    logits = [(q @ p.T).double() / 0.05 for q, p in ((batch.query.dense_ND, batch.passage.dense_ND), wide)]  # type: ignore[union-attr]
    expected = torch.nn.functional.kl_div(
        logits[0].log_softmax(-1), logits[1].log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert float(found.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_mix_s_loss_finds_its_sources_inside(context: BuildContext, rows: Path, tiny: Path) -> None:
    """The loss kind ``by-source`` asks the dataset which source a row is from."""
    _, registry = activate(["data", "distill"])
    data = {
        "kind": "with-teacher",
        "inner": {"kind": "mix", "datasets": [{"data_path": str(rows), "weight": 2.0}]},
        "teachers": [{"name_or_path": str(tiny / "teacher")}],
    }
    config: Any = registry.get("dataset", "with-teacher").model_validate(data, context={"registry": registry})
    context.registry = registry
    context.dataset_factory = lambda: config.build(context)
    inner: Any = registry.get("loss", "by-source").model_validate(
        {"kind": "by-source", "inner": {"kind": "infonce"}}, context={"registry": registry}
    )
    batch, targets = random_batch(4)
    targets = targets._replace(row_ids_B=torch.arange(4))
    plain = InfoNCEConfig().build(context)
    torch.testing.assert_close(inner.build(context)(batch, targets).loss, 2 * plain(batch, targets).loss)


def test_rows_of_one_source_keep_their_teacher() -> None:
    from embed_data.mix.loss import subset

    batch, targets = random_batch(5)
    teacher = TeacherVectors(torch.randn(5, 7), torch.randn(batch.passage.count, 7))
    _, chosen = subset(batch, targets._replace(teacher=teacher), torch.tensor([3, 1]))
    groups = [range(*targets.groups_B1[row : row + 2].tolist()) for row in (3, 1)]
    assert chosen.teacher is not None
    torch.testing.assert_close(chosen.teacher.query_BW, teacher.query_BW[[3, 1]])
    torch.testing.assert_close(chosen.teacher.passage_PW, teacher.passage_PW[[*groups[0], *groups[1]]])
    assert subset(batch, targets, torch.tensor([0]))[1].teacher is None
