"""The sampler `curriculum`: what its stages become in a run, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embed_core.config.document import Document, overrides
from embed_core.config.resolve import Request, plain, resolve
from embed_core.config.run import RunConfig
from embed_core.distributed.process_group import Ranks
from embed_core.errors import ConfigError
from embed_core.inspection.parts import Parts
from embed_core.plugin.manager import activate
from embed_core.samplers.no_duplicates import NoDuplicatesSampler
from embed_core.testing import check_sampler, tiny_dataset
from embed_qwen.curriculum_config import CurriculumConfig


def resolved(*settings: str, sanity: bool = False, **stages: Any) -> RunConfig:
    """A run with the curriculum; ``stages`` are other keys of the sampler."""
    _, registry = activate(["qwen"])
    data: dict[str, Any] = {
        "model": {"kind": "transformers-encoder"},
        "data": {"kind": "retrieval", "path": "rows.jsonl"},
        "loss": {"kind": "infonce", "temperature": 0.05},
        "checkpoint": {"kind": "transformers"},
        "train": {"gradient_accumulation_steps": 2, "epochs": 7, "optimizer": {"weight_decay": 0.5}},
        "sampler": {"kind": "curriculum", "batch_size": 24, **stages},
    }
    request = Request(None, Document(data=data), overrides=overrides(settings), sanity=sanity)
    return resolve(registry, request)


def refused(**stages: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(**stages)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_defaults_are_the_three_stages_of_the_paper() -> None:
    run = resolved()
    phases = [run.in_phase(number) for number in range(3)]
    assert [phase.name for phase in run.phases] == ["stage-1-in-batch", "stage-2-easier", "stage-3-harder"]
    assert [one.train.epochs for one in phases] == [3, 4, 3]
    assert [one.train.optimizer.learning_rate for one in phases] == [1e-5, 8e-6, 4e-6]
    assert [one.train.schedule.warmup_steps for one in phases] == [50, 0, 0]
    bands = [plain_data(one) for one in phases]
    assert [one["negatives"] for one in bands] == [0, 20, 20]
    assert [(one["by"], one["band"]) for one in bands] == [
        ("given", None), ("share", [0.5, 1.0]), ("share", [0.0, 0.5]),
    ]  # fmt: skip
    assert all(one["kind"] == "banded" and one["inner"] is None for one in bands)


def plain_data(run: RunConfig) -> dict[str, Any]:
    found: dict[str, Any] = plain(run)["data"]
    return found


def test_what_a_stage_leaves_out_is_the_run_s() -> None:
    run = resolved(stages=[{"learning_rate": 1e-3}, {"epochs": 2, "loss": {"temperature": 0.01}}])
    first, second = run.in_phase(0), run.in_phase(1)
    assert run.phases[0].data is None
    assert first.data == run.data
    assert (first.train.epochs, second.train.epochs) == (7, 2)
    assert first.train.optimizer.weight_decay == second.train.optimizer.weight_decay == 0.5
    assert (first.train.optimizer.learning_rate, second.train.optimizer.learning_rate) == (1e-3, 2e-5)
    assert first.train.gradient_accumulation_steps == second.train.gradient_accumulation_steps == 2
    assert first.loss == run.loss
    assert plain(second)["loss"] == {**plain(run)["loss"], "temperature": 0.01}
    assert [one.sampler.kind for one in (first, second)] == ["no-duplicates"] * 2
    assert [one.sampler.batch_size for one in (first, second)] == [24, 24]


def test_written_out_and_read_again_it_is_the_same_run() -> None:
    _, registry = activate(["qwen"])
    run = resolved(stages=[{"negatives": "in-batch"}, {"remine": {"ranks": [2, 9]}, "negatives": 3}])
    again = resolve(registry, Request(None, Document(data=plain(run))))
    assert plain(again) == plain(run)


def test_rows_of_a_stage() -> None:
    band = {"by": "margin", "band": [0.1, None]}
    run = resolved(
        stages=[
            {"data": "easy.jsonl", "negatives": 4},
            {"data": {"kind": "retrieval", "path": "other.jsonl"}, "difficulty": band},
            {"remine": {"ranks": [5, 40]}, "negatives": 2, "name": "last"},
        ]
    )
    first, second, third = (plain_data(run.in_phase(number)) for number in range(3))
    assert (first["kind"], first["inner"]["kind"], first["inner"]["path"]) == ("banded", "file", "easy.jsonl")
    assert second["inner"]["kind"] == "retrieval"
    assert (second["by"], second["band"], second["negatives"]) == ("margin", [0.1, None], 20)
    assert (third["inner"]["kind"], third["inner"]["ranks"], third["negatives"]) == ("remined", [5, 40], 2)
    assert [phase.name for phase in run.phases] == ["stage-1", "stage-2-margin-from-0.1", "last"]
    assert [run.in_phase(number).data.waits() for number in range(3)] == [False, False, True]


def test_sanity_and_max_steps_reach_every_stage() -> None:
    run = resolved("train.max_steps=3", sanity=True, stages=[{"max_steps": 100}, {"max_steps": 2}, {"epochs": 9}])
    assert [run.in_phase(number).train.max_steps for number in range(3)] == [3, 2, 3]
    assert {run.in_phase(number).sampler.batch_size for number in range(3)} == {8}


def test_a_setting_reaches_one_stage() -> None:
    run = resolved("sampler.stages.1.epochs=5", stages=[{"epochs": 1}, {"epochs": 2}])
    assert [run.in_phase(number).train.epochs for number in range(2)] == [1, 5]


def test_own_hard_negatives_need_a_loss_with_the_option() -> None:
    message = refused(stages=[{"hard_negatives": "own"}])
    assert message == (
        "sampler 'curriculum', stage 'stage-1': hard_negatives 'own' is no option of loss 'infonce': leave it out, or "
        "use loss qwen3-infonce"
    )


def test_another_loss_s_option_of_that_name_is_not_it() -> None:
    with pytest.raises(ConfigError, match="hard_negatives 'batch' is no option of loss 'swift-infonce'"):
        resolved("loss={kind: swift-infonce}", stages=[{"hard_negatives": "batch"}])


@pytest.mark.parametrize("choice", ["own", "batch"])
def test_hard_negatives_by_stage(choice: str) -> None:
    run = resolved("loss={kind: qwen3-infonce}", stages=[{"negatives": "in-batch"}, {"hard_negatives": choice}])
    assert plain(run.in_phase(1))["loss"]["hard_negatives"] == choice
    assert run.in_phase(0).loss == run.loss


@pytest.mark.parametrize(
    ("stages", "part"),
    [
        ([{"remine": True}], "no stage before the first one trained a model to mine with: mine with `embed mine`"),
        ([{"name": "a"}, {"name": "a"}], "stages: 'a' names two of them: give each a `name` of its own"),
        ([], "sampler.stages: tuple should have at least 1 item"),
        ([{"difficulty": {"by": "rank"}}], "by 'rank' needs a `band`: [lowest, highest], null where it is open"),
        ([{"difficulty": {"band": [1, 2]}}], "band [1.0, 2.0] needs `by`: one of rank, share, score, margin"),
        ([{"difficulty": {"by": "rank", "band": [9, 2]}}], "the lowest comes first: write [2.0, 9.0]"),
        ([{"difficulty": {"by": "rank", "band": [0, 2]}}], "ranks are whole numbers from 1: [1, 20]"),
        ([{"difficulty": {"by": "share", "band": [0, 50]}}], "shares are from 0 to 1: [0, 0.5] is the harder half"),
        ([{"negatives": "inbatch"}], "sampler.stages.0.negatives"),
        ([{"loss": {"temperatur": 0.1}}], "sampler 'curriculum', phase 'stage-1': loss.temperatur: "),
        ([{}, {"remine": {"rank": [1, 2]}}], "sampler 'curriculum', phase 'stage-2-mined': data.inner.rank: "),
    ],
)
def test_what_is_refused(stages: list[Any], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(stages=stages)
    assert part in str(caught.value)


def test_the_batches_of_a_stage_can_be_looked_at(tmp_path: Path) -> None:
    """As `embed explain`, `plan` and `prove` do, outside of a run: its rows are those of the run's data."""
    lines = [{"query": f"q {n}", "pos": [f"p {n}"], "neg": [f"n {n}.{k}" for k in range(4)]} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stages = [
        {"negatives": "in-batch"},
        {"difficulty": {"by": "share", "band": [0.5, 1]}, "negatives": 2},
        {"remine": True},
    ]
    run = resolved(f"data.path={tmp_path / 'rows.jsonl'}", batch_size=3, stages=stages)
    _, registry = activate(["qwen"])
    names, ranks = [phase.name for phase in run.phases], Ranks(0, 1, 0, "cpu")
    for name, wanted in zip(names[:2], ([], ["2", "3"]), strict=True):
        for example in Parts(run.only(name), registry, ranks).batches.examples(0):
            assert sorted(text[-1] for text in example.passages[1:]) == wanted
    with pytest.raises(ConfigError, match="its rows are made with the model of the phases before it"):
        Parts(run.only(names[2]), registry, ranks)


def test_a_curriculum_holds_no_other() -> None:
    assert "put all stages into one list" in refused(inner={"kind": "curriculum"})


def test_its_batches_are_the_inner_sampler_s() -> None:
    config = CurriculumConfig(batch_size=8)

    class Context:
        seed = 0
        announce = staticmethod(lambda line: None)

    def build(dataset: Any, seed: int) -> Any:
        context: Any = Context()
        context.seed = seed
        sampler = config.build(context, dataset)
        assert isinstance(sampler, NoDuplicatesSampler)
        return sampler

    check_sampler(build, tiny_dataset(), batch_size=8)
