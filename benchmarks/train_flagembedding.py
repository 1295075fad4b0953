"""Train as an order says with FlagEmbedding: what its command for BGE-M3 does, with a stopwatch.

The peer is ``python -m FlagEmbedding.finetune.embedder.encoder_only.m3`` with the arguments of :func:`arguments`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.clock import Clock, read_order, trainer_callback


def arguments(order: Mapping[str, Any]) -> list[str]:
    """The command line."""
    settings = {
        "model_name_or_path": order["model"],
        "train_data": order["ordered_rows"],
        "cache_path": str(Path(order["output"]) / "cache"),
        "train_group_size": order["group_size"],
        "query_max_len": order["query_max_len"],
        "passage_max_len": order["passage_max_len"],
        "pad_to_multiple_of": 8,
        "output_dir": str(Path(order["output"]) / "model"),
        "max_steps": order["steps"],
        "per_device_train_batch_size": order["batch_size"],
        "learning_rate": order["learning_rate"],
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "lr_scheduler_type": "linear",
        "train_sampling_strategy": "sequential",
        "dataloader_drop_last": True,
        "bf16": order["precision"] == "bf16",
        "unified_finetuning": True,
        "use_self_distill": True,
        "knowledge_distillation": True,
        "kd_loss_type": "m3_kd_loss",
        "temperature": 0.02,
        "sentence_pooling_method": "cls",
        "normalize_embeddings": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": order["device"] == "cpu",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": order["seed"],
    }
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def main() -> None:
    """The body of the peer's own ``__main__``, and the clock among its callbacks."""
    from FlagEmbedding.finetune.embedder.encoder_only import m3
    from transformers import HfArgumentParser

    order, clock = read_order(), Clock()
    kinds = (
        m3.EncoderOnlyEmbedderM3ModelArguments,
        m3.EncoderOnlyEmbedderM3DataArguments,
        m3.EncoderOnlyEmbedderM3TrainingArguments,
    )
    model, data, training = HfArgumentParser(kinds).parse_args_into_dataclasses(arguments(order))
    runner = m3.EncoderOnlyEmbedderM3Runner(model_args=model, data_args=data, training_args=training)
    runner.trainer.add_callback(trainer_callback(clock))
    runner.trainer.train()
    clock.write(Path(order["measured"]))


if __name__ == "__main__":
    main()
