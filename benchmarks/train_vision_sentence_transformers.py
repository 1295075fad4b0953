"""Train as an order says with sentence-transformers: its CLIP training, symmetric ranking loss over captions and
pictures."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.clock import Clock, read_order, trainer_callback
from benchmarks.train_sentence_transformers import in_given_order


def main() -> None:
    """The one run, as its documentation does it; only the order of the rows is given, so that both see the same."""
    from datasets import Dataset, Image
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesSymmetricRankingLoss

    order, clock = read_order(), Clock()
    rows = [json.loads(line) for line in Path(order["ordered_rows"]).read_text(encoding="utf-8").splitlines()]
    columns = {"anchor": [row["query"] for row in rows], "positive": [row["positive"] for row in rows]}
    data = Dataset.from_dict(columns).cast_column("positive", Image())
    model = SentenceTransformer(order["model"], device="cpu")
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
        use_cpu=True,
        bf16=order["precision"] == "bf16",
        seed=order["seed"],
    )
    SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        loss=MultipleNegativesSymmetricRankingLoss(model),
        callbacks=[trainer_callback(clock)],
    ).train()
    clock.write(Path(order["measured"]))


if __name__ == "__main__":
    main()
