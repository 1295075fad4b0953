"""The Python API, through the names that BGE-M3's users know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from embed_bge import BGEM3Model, BGETrainer, BGETrainerConfig
from embed_core.api import BaseRetrieverTrainer
from embed_core.distributed.process_group import leave
from embed_core.errors import CheckpointError, ConfigError, DataError
from embed_core.plugin.hookspecs import hookimpl

torch.set_num_threads(1)

TOPICS = ("river", "bridge", "lantern", "harbour", "orchard", "glacier", "meadow", "quarry")
ROWS = [
    {
        "query": f"What is said of the {topic} in chapter {chapter}?",
        "pos": [f"In chapter {chapter} the {topic} is described at length, and twice."],
        "neg": [f"Chapter {chapter} is about something else.", f"The {topic} is not mentioned again."],
    }
    for topic in TOPICS
    for chapter in range(5)
]
TINY = {"from_scratch": {"vocab_size": 300, "hidden": 32, "layers": 1, "heads": 2}}
QUIET = {"tracking": {"report_to": []}}


class Steps:
    """Observer that keeps the losses and counts the ends."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.ends = 0

    @hookimpl
    def embed_step_ended(self, event: Any) -> None:
        if event.evaluation is None:
            self.losses.append(event.loss)

    @hookimpl
    def embed_run_ended(self, event: Any) -> None:
        self.ends += 1


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("EMBED_CACHE", str(tmp_path / "cache"))
    yield
    leave()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BGE-M3 model directory: one step from scratch on the rows, exported."""
    folder = tmp_path_factory.mktemp("scratch")
    config = BGETrainerConfig(
        output_dir=folder / "run", model=TINY, max_steps=1, held_out_rows=0, per_device_train_batch_size=8
    )
    trainer = BGETrainer(train_dataset=ROWS, config=config, overrides=QUIET, announce=lambda line: None)
    result = trainer.train()
    leave()
    return result.export_dir


@pytest.mark.parametrize("kind", [list, Dataset.from_list])
def test_the_program_of_the_quick_start(directory: Path, tmp_path: Path, kind: Any) -> None:
    train_dataset = kind(ROWS)
    config = BGETrainerConfig(
        model_name_or_path=str(directory),
        output_dir=str(tmp_path / "checkpoints" / "bge-m3"),
        learning_rate=1e-5,
        num_train_epochs=3,
        per_device_train_batch_size=8,
        unified_finetuning=True,
        use_self_distill=True,
    )
    model = BGEM3Model(
        model_name=config.model_name_or_path,
        unified_finetuning=config.unified_finetuning,
    )
    tokenizer = AutoTokenizer.from_pretrained(config.model_name_or_path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps, lines = Steps(), []
    trainer = BGETrainer(
        model=model,
        tokenizer=tokenizer,
        train_dataset=train_dataset,
        config=config,
        observers=[steps],
        announce=lines.append,
        overrides=QUIET,
    )
    assert isinstance(trainer, BaseRetrieverTrainer)
    result = trainer.train()

    # 40 rows, a tenth of them held out: 4 batches of 8 in each of 3 epochs.
    assert (result.steps, len(steps.losses), steps.ends) == (12, 12, 1)
    assert result.output_dir == tmp_path / "checkpoints" / "bge-m3"
    assert sorted(result.evaluations) == [0, 12]
    assert "data: train_dataset, rows in memory: 36 training rows; held out 4 queries" in "\n".join(lines)
    assert result.model is model
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert any("colbert" in name for name in changed)
    assert any("sparse" in name for name in changed)
    again = BGEM3Model(model_name=str(result.export_dir))
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    run = json.loads((result.output_dir / "run.json").read_text())
    assert run["status"] == "finished"
    assert run["command"].startswith("BGETrainer(...).train() in ")


def test_a_list_and_a_dataset_train_alike(directory: Path, tmp_path: Path) -> None:
    losses = []
    for name, rows in (("list", ROWS), ("dataset", Dataset.from_list(ROWS))):
        steps = Steps()
        config = BGETrainerConfig(model_name_or_path=str(directory), output_dir=tmp_path / name, max_steps=3)
        trainer = BGETrainer(
            train_dataset=rows, config=config, observers=[steps], overrides=QUIET, announce=lambda line: None
        )
        trainer.train()
        losses.append(steps.losses)
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 3


def test_overrides_resume_and_overwrite(directory: Path, tmp_path: Path) -> None:
    config = BGETrainerConfig(model_name_or_path=str(directory), output_dir=tmp_path / "run", max_steps=2)
    overrides = {**QUIET, "engine": {"zero_stage": 1}, "checkpoint": {"every_steps": 1}, "evaluation": []}

    def trainer(**more: Any) -> BGETrainer:
        given = {"train_dataset": ROWS, "config": config, "overrides": overrides, "announce": lambda line: None}
        return BGETrainer(**{**given, **more})

    trainer().train()
    assert "zero_stage: 1" in (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(CheckpointError, match="holds a finished run: --overwrite replaces it"):
        trainer().train()
    steps = Steps()
    longer = config.model_copy(update={"max_steps": 4})
    assert trainer(config=longer, observers=[steps]).train(resume=True).steps == 4
    assert len(steps.losses) == 2
    assert trainer().train(overwrite=True).steps == 2
    with pytest.raises(ConfigError, match="give one of them"):
        trainer().train(resume=True, overwrite=True)


def test_limit_applies_to_rows_in_memory(directory: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    config = BGETrainerConfig(
        model_name_or_path=str(directory), output_dir=tmp_path / "run", max_steps=1, data={"limit": 8}, held_out_rows=0
    )
    BGETrainer(train_dataset=ROWS, config=config, overrides=QUIET, announce=lines.append).train()
    assert any("rows in memory: 8 training rows" in line for line in lines)


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 is fine with CUDA")
def test_fp16_on_a_cpu_is_refused_clearly(directory: Path, tmp_path: Path) -> None:
    config = BGETrainerConfig(model_name_or_path=str(directory), output_dir=tmp_path / "run", fp16=True, max_steps=1)
    with pytest.raises(ConfigError, match=r"^engine\.precision: 'fp16' needs CUDA: use bf16 or fp32 on this machine$"):
        BGETrainer(train_dataset=ROWS, config=config, overrides=QUIET, announce=lambda line: None).train()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "train_dataset is empty: rows like "),
        ([{"query": "q"}], r"train_dataset\[0\].*pos"),
        (["text"], r"train_dataset\[0\]: a row is a mapping with `query` and `pos`, got str"),
        (iter(ROWS), "train_dataset: a sequence of rows is needed, got list_iterator: put it in a list"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, rows: Any, message: str) -> None:
    config = BGETrainerConfig(output_dir=tmp_path / "run", model=TINY, max_steps=1)
    with pytest.raises(DataError, match=message):
        BGETrainer(train_dataset=rows, config=config, overrides=QUIET).train()
    assert not (tmp_path / "run").exists()


def test_arguments_that_do_not_fit(directory: Path) -> None:
    with pytest.raises(ConfigError, match="config: BGERecipe is needed, got dict"):
        BGETrainer(config={"max_steps": 1})
    with pytest.raises(ConfigError, match="tokenizer: without a model it would not be used"):
        BGETrainer(tokenizer=AutoTokenizer.from_pretrained(directory))
    with pytest.raises(ConfigError, match="'egnine' is no key of recipe 'bge' or of a run: did you mean 'engine'"):
        BGETrainer(train_dataset=ROWS, overrides={"egnine": {}}).train()
