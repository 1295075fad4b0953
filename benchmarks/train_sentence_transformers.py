"""Train as an order says with sentence-transformers: SentenceTransformerTrainer and its ranking losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.clock import Clock, read_order, trainer_callback


def main() -> None:
    """The one run, as its documentation does it; only the order of the rows is given, so that all see the same."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, losses
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments

    order, clock = read_order(), Clock()
    rows = [json.loads(line) for line in Path(order["ordered_rows"]).read_text(encoding="utf-8").splitlines()]
    data = Dataset.from_dict({"anchor": [r["query"] for r in rows], "positive": [r["pos"][0] for r in rows]})
    model = SentenceTransformer(order["model"], device=order["device"])
    model.max_seq_length = order["passage_max_len"]
    if order["strategy"] == "cached":
        loss = losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=order["mini_batch_size"])
    else:
        loss = losses.MultipleNegativesRankingLoss(model)
    arguments = Arguments(
        output_dir=order["output"],
        max_steps=order["steps"],
        per_device_train_batch_size=order["batch_size"],
        learning_rate=order["learning_rate"],
        warmup_steps=0,
        weight_decay=0.0,
        lr_scheduler_type="linear",
        batch_sampler=in_given_order,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=order["device"] == "cpu",
        bf16=order["precision"] == "bf16",
        seed=order["seed"],
    )
    callback = trainer_callback(clock)
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss, callbacks=[callback]).train()
    clock.write(Path(order["measured"]))


def in_given_order(dataset: Any, batch_size: int, drop_last: bool, **more: Any) -> Any:
    """sentence-transformers' default batches, of the rows as they come."""
    from sentence_transformers.sampler import DefaultBatchSampler
    from torch.utils.data import SequentialSampler

    return DefaultBatchSampler(SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last)


if __name__ == "__main__":
    main()
