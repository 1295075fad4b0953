"""Train as an order says with ms-swift: what ``swift sft --task_type embedding`` does, with a stopwatch.

The peer is ``NPROC_PER_NODE=1 swift sft`` with the arguments of :func:`arguments`.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.clock import Clock, read_order, trainer_callback

TEMPERATURE = 0.05
"""A scale of 20, as in the other cases."""


def arguments(order: Mapping[str, Any]) -> list[str]:
    """The command line."""
    half = order["precision"] == "bf16"
    settings = {
        "model": order["model"],
        "model_type": "qwen3_emb",
        "task_type": "embedding",
        "loss_type": "infonce",
        "tuner_type": "full",
        "torch_dtype": "bfloat16" if half else "float32",
        "fp16": False,
        "bf16": half,
        "use_cpu": order["device"] == "cpu",
        "check_model": False,
        "gradient_checkpointing": False,
        "deepspeed": "zero2",
        "dataset": str(Path(order["output"]) / "rows.jsonl"),
        "split_dataset_ratio": 0,
        "dataset_shuffle": False,
        "train_dataloader_shuffle": False,
        "eval_strategy": "no",
        "max_length": order["passage_max_len"],
        "truncation_strategy": "right",
        "per_device_train_batch_size": order["batch_size"],
        "gradient_accumulation_steps": 1,
        "learning_rate": order["learning_rate"],
        "weight_decay": 0,
        "adam_beta2": 0.999,
        "lr_scheduler_type": "linear",
        "warmup_ratio": 0,
        "max_steps": order["steps"],
        "logging_steps": 1,
        "save_strategy": "no",
        "dataloader_num_workers": 0,
        "dataloader_drop_last": True,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": order["seed"],
        "output_dir": str(Path(order["output"]) / "model"),
    }
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def swift_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as ms-swift has it: bare texts, each the message of a user."""

    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": text}]

    return {"messages": said(row["query"]), "positive_messages": [said(row["pos"][0])]}


def launched() -> dict[str, str]:
    """What the launcher of one process tells it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    one = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    return one | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "INFONCE_TEMPERATURE": str(TEMPERATURE)}


def main() -> None:
    """The body of the peer's own command, and the clock among its callbacks."""
    order, clock = read_order(), Clock()
    os.environ.update(launched())
    from swift.pipelines.train.sft import SwiftSft

    class Timed(SwiftSft):  # type: ignore[misc]
        def train(self, trainer: Any) -> Any:
            trainer.add_callback(trainer_callback(clock))
            return super().train(trainer)

    rows = [json.loads(line) for line in Path(order["ordered_rows"]).read_text(encoding="utf-8").splitlines()]
    place = Path(order["output"]) / "rows.jsonl"
    place.parent.mkdir(parents=True)
    place.write_text("".join(json.dumps(swift_row(row), ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    Timed(arguments(order)).main()
    clock.write(Path(order["measured"]))


if __name__ == "__main__":
    main()
