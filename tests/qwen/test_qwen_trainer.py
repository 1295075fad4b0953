"""`create_qwen_trainer`, and ms-swift's rows mixed with ours: none is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from embed_core.batch.loader import Batches
from embed_core.config.context import BuildContext
from embed_core.config.document import Document
from embed_core.config.resolve import Request, resolve
from embed_core.errors import ConfigError
from embed_core.plugin.manager import activate
from embed_core.types import Batch, Embeddings, Targets
from embed_qwen import QwenTrainer, QwenTrainerConfig, create_qwen_trainer

torch.set_num_threads(1)


def rows(count: int) -> list[dict[str, Any]]:
    """A quarter each: ms-swift's with and without negatives, ours with and without."""
    found: list[dict[str, Any]] = []
    for n in range(count):
        query, pos, neg = f"query {n}", f"the answer to number {n}", [f"wrong {n}", f"false {n}"]
        if n % 4 < 2:
            row: dict[str, Any] = {
                "messages": [{"role": "user", "content": query}],
                "positive_messages": [[{"role": "user", "content": pos}]],
            }
            if n % 4 == 0:
                row["negative_messages"] = [[{"role": "user", "content": text}] for text in neg]
        else:
            row = {"query": query, "pos": [pos]} | ({"neg": neg} if n % 4 == 2 else {})
        found.append(row)
    return found


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    return path


def test_the_seed_s_arguments() -> None:
    trainer = create_qwen_trainer(
        dataset_paths=["data/training/dataset.jsonl"],
        output_dir="./model/checkpoints/qwen",
        learning_rate=6e-6,
        num_train_epochs=10,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=16,
    )
    assert isinstance(trainer, QwenTrainer)
    config = trainer.config
    assert isinstance(config, QwenTrainerConfig)
    assert config.model_name_or_path == "Qwen/Qwen3-Embedding-0.6B"
    assert config.dataset_paths == ("data/training/dataset.jsonl",)
    assert config.output_dir == Path("model/checkpoints/qwen")
    run = config.compile(world_size=2)
    assert run["sampler"] == {"kind": "no-duplicates", "batch_size": 16}
    assert run["train"]["gradient_accumulation_steps"] == 16


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"learning_rat": 1e-5}, "create_qwen_trainer: unknown key 'learning_rat': did you mean 'learning_rate'?"),
        ({"learning_rate": -1}, "create_qwen_trainer: learning_rate: input should be greater than 0, got -1"),
        ({"fp16": True, "bf16": True}, "create_qwen_trainer: fp16 and bf16 are both true: choose one of them"),
    ],
)
def test_what_it_refuses(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_qwen_trainer("a.jsonl", **keys)
    assert str(caught.value) == message


def test_stages_may_name_components() -> None:
    trainer = create_qwen_trainer("a.jsonl", stages=[{"data": {"kind": "retrieval", "path": "b.jsonl"}}])
    stages: Any = trainer.config.stages  # type: ignore[attr-defined]
    assert stages[0].data.kind == "retrieval"


def test_it_trains_a_curriculum(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    said: list[str] = []
    trainer = create_qwen_trainer(
        write(tmp_path / "rows.jsonl", rows(64)),
        tmp_path / "out",
        "from-scratch",
        curriculum=True,
        max_steps=2,
        per_device_train_batch_size=8,
        held_out_rows=8,
        bf16=False,
        instruction="",
        model={"from_scratch": {"vocab_size": 300, "hidden": 16, "layers": 1, "heads": 2, "key_value_heads": 1}},
        overrides={"tracking": {"report_to": []}},
        announce=said.append,
    )
    result = trainer.train()
    assert result.steps == 6
    assert [line for line in said if line.startswith("phase ")] == [
        "phase 1 of 3, stage-1-in-batch: 2 steps",
        "phase 2 of 3, stage-2-easier: 2 steps",
        "phase 3 of 3, stage-3-harder: 2 steps",
    ]
    loaded = SentenceTransformer(str(result.export_dir), device="cpu")
    vector = loaded.encode(["query 1"])
    assert vector.shape == (1, 16)
    assert float((vector**2).sum()) == pytest.approx(1, abs=1e-5)


def test_64_of_64_mixed_rows_arrive(tmp_path: Path) -> None:
    """ms-swift's own loader loses those without negatives: 16 of 64."""
    _, registry = activate(["qwen"])
    path = write(tmp_path / "rows.jsonl", rows(64))
    document = Document(data={"dataset_paths": str(path), "held_out_rows": 0, "negatives": 2})
    config = resolve(registry, Request(registry.recipe("qwen"), document))
    config = config.model_copy(update={"sampler": config.sampler.model_copy(update={"batch_size": 16})})
    context = BuildContext(registry, cache_dir=tmp_path / "cache", announce=lambda line: None)
    dataset = config.data.build(context)
    batches = Batches(config, dataset, config.sampler.build(context, dataset))
    drawn = [example for draw in range(4) for example in batches.examples(draw)]
    assert sorted(example.query for example in drawn) == sorted(f"query {n}" for n in range(64))
    for example in drawn:
        n = int(example.query.split()[1])
        wrong = {f"wrong {n}", f"false {n}"} if n % 2 == 0 else set()
        assert example.passages[0] == f"the answer to number {n}"
        assert set(example.passages[1:]) == wrong


@pytest.mark.parametrize("kind", ["infonce", "qwen3-infonce"])
def test_other_positives_of_a_question_are_no_negatives(kind: str) -> None:
    """Rows 0 and 1 ask the same and have a positive each: neither's is the other's negative, so each loss is that of
    the row without the other's positive. The oracle is a softmax over what is left, in float64."""
    _, registry = activate(["qwen"])
    options = {"temperature": 0.5, "mask": {"margin": None}}
    if kind == "qwen3-infonce":
        options |= {"query_query": False, "document_document": False}
    loss: Any = registry.get("loss", kind).model_validate({"kind": kind, **options}).build(BuildContext(registry))  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(0)
    query = torch.nn.functional.normalize(torch.randn(3, 8, generator=generator), dim=1)
    query[1] = query[0]
    passage = torch.nn.functional.normalize(torch.randn(5, 8, generator=generator), dim=1)
    groups = torch.tensor([0, 2, 3, 5])  # a negative in rows 0 and 2
    ids = torch.arange(100, 105)
    targets = Targets(
        groups, torch.arange(3), torch.tensor([7, 7, 9]), ids, torch.zeros(5, dtype=torch.int64),
        ids[groups[:-1]], torch.arange(4), None, 0,
    )  # fmt: skip
    allowed = {0: [0, 1, 3, 4], 1: [2, 1, 3, 4], 2: [3, 4, 0, 1, 2]}
    found, wanted = [], []
    for tensors in ((query, passage), (query.double(), passage.double())):
        leaves = [one.clone().requires_grad_() for one in tensors]
        if tensors[0].dtype == torch.float32:
            value = loss(Batch(Embeddings(leaves[0]), Embeddings(leaves[1])), targets).loss
        else:
            terms = []
            for row, columns in allowed.items():
                logits = leaves[0][row] @ leaves[1][columns].T / 0.5
                terms.append(torch.logsumexp(logits, 0) - logits[0])
            value = torch.stack(terms).mean()
        value.backward()
        (found if value.dtype == torch.float32 else wanted).extend([value.detach(), *(one.grad for one in leaves)])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-6)
