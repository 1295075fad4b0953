"""FlagEmbedding's documented call: several files and folders, one of them without in-batch negatives."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embed_bge.recipe import BGERecipe
from embed_core.batch.collate import draw_examples, make_host_batch
from embed_core.batch.global_batch import GlobalBatch
from embed_core.config.context import BuildContext
from embed_core.config.document import overrides
from embed_core.config.resolve import Request, resolve
from embed_core.datasets.wrappers import check_loss
from embed_core.distributed.process_group import Ranks
from embed_core.errors import ConfigError
from embed_core.losses.config import InfoNCEConfig
from embed_core.plugin.manager import activate
from embed_core.types import Batch, Embeddings, Encoded

CALL = (
    "train_data=[retrieval, sts/sts.jsonl, classification-no_in_batch_neg, clustering-no_in_batch_neg]",
    "train_group_size=2", "same_dataset_within_batch=true", "per_device_train_batch_size=4", "held_out_rows=0",
    "knowledge_distillation=true", "small_threshold=0", "drop_threshold=0", "temperature=1e6",
    "unified_finetuning=false",
)  # fmt: skip
"""The call of FlagEmbedding's README, as far as it is about data; every score is then 0."""


@pytest.fixture(autouse=True)
def example_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("retrieval/nq.jsonl", "retrieval/fiqa.jsonl", "sts/sts.jsonl",
                 "classification-no_in_batch_neg/amazon.jsonl", "clustering-no_in_batch_neg/arxiv.jsonl"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        rows = ({"query": f"{name} {n}?", "pos": [f"{name} {n}."], "neg": [f"not {name} {n}."]} for n in range(12))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "retrieval" / "README").write_text("no data")


def built(*pairs: str) -> tuple[Any, Any, Any, list[str]]:
    """Dataset, sampler and loss of the run, and what was announced."""
    registry = activate(["data", "bge"])[1]
    run = resolve(registry, Request(BGERecipe, overrides=overrides(pairs), world_size=1))
    said: list[str] = []
    context = BuildContext(registry, cache_dir=Path("cache"), announce=said.append)
    dataset = run.data.build(context)
    loss: Any = run.loss.build(context)
    return dataset, run.sampler.build(context, dataset), loss, said


class Words:
    """A model that tokenises: a token a word."""

    def tokenize(self, items: Any, role: Any, prompts: Any) -> list[Encoded]:
        return [Encoded(key=text.encode(), length=len(text.split()), data={}) for text in items]


def batch_of(dataset: Any, rows: list[int]) -> GlobalBatch:
    return GlobalBatch(make_host_batch(Words(), draw_examples(dataset, rows, 0, 0)), 0, Ranks(0, 1, 0, "cpu"))


def test_every_path_is_read_and_every_batch_is_of_one_source() -> None:
    dataset, sampler, _, said = built(*CALL)
    assert len(dataset) == 60
    assert said[1] == "data: trained without in-batch negatives: amazon, arxiv"
    found = [{dataset.source(row) for row in sampler.batch(number)} for number in range(sampler.draws_per_epoch)]
    assert sorted(name for sources in found for name in sources) == sorted(
        3 * ["nq", "fiqa", "sts", "amazon", "arxiv"]
    )  # one name per batch, three batches of four rows each


def test_a_folder_so_named_has_its_own_negatives_only() -> None:
    dataset, sampler, loss, _ = built(*CALL)
    for number in range(sampler.draws_per_epoch):
        rows = list(sampler.batch(number))
        shared = batch_of(dataset, rows)
        side = [Embeddings(torch.zeros(count, 3)) for count in (len(rows), 2 * len(rows))]
        value = loss(Batch(*side), shared.targets).loss.item()
        apart = dataset.source(rows[0]) in ("amazon", "arxiv")
        assert (shared.targets.in_batch_B is not None) == apart
        assert value == pytest.approx(math.log(2 if apart else 8))


def test_in_a_mixed_batch_they_are_nobody_s_negatives() -> None:
    """Rows 0 and 1 compete, rows 48 and 49 (arxiv) do not: two rows choose among four passages, two among two."""
    dataset, _, loss, _ = built(*CALL, "same_dataset_within_batch=false")
    shared = batch_of(dataset, [0, 48, 1, 49])
    assert shared.targets.in_batch_B is not None
    assert shared.targets.in_batch_B.tolist() == [True, False, True, False]
    value = loss(Batch(Embeddings(torch.zeros(4, 3)), Embeddings(torch.zeros(8, 3))), shared.targets).loss.item()
    assert value == pytest.approx((2 * math.log(4) + 2 * math.log(2)) / 4)


def test_the_fingerprint_and_examples_know_it() -> None:
    dataset, _, _, _ = built(*CALL)
    plain, _, _, said = built(*CALL, "data.no_in_batch_negatives=[]")
    assert "without in-batch negatives" not in "".join(said)
    assert plain.fingerprint() != dataset.fingerprint()
    drawn = [one.example(59, np.random.default_rng(0)).in_batch_negatives for one in (dataset, plain)]
    assert drawn == [False, True]


def test_a_loss_that_cannot_do_that_is_refused() -> None:
    dataset, _, loss, _ = built(*CALL)
    check_loss(loss, dataset)
    infonce = InfoNCEConfig().build(BuildContext(activate([])[1]))
    with pytest.raises(ConfigError) as caught:
        check_loss(infonce, dataset)
    assert str(caught.value) == (
        "data: 'amazon' is to be trained without in-batch negatives, which InfoNCE cannot do for some rows of a batch: "
        "use the loss kind `bge-unified`, or set data.no_in_batch_negatives to []"
    )


@pytest.mark.parametrize("key", ["small_threshold", "drop_threshold"])
def test_thresholds_that_would_merge_or_drop_sources_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: 5 is not offered: every source keeps its rows and its batches"):
        built(*CALL, f"{key}=5")
