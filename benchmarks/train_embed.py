"""Train as an order says with embed, through the Python API of embed-bge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.clock import Clock, read_order

from embed_core.plugin.hookspecs import hookimpl


class ClockObserver:
    """The clock as an observer of the run; it writes after the last step, before the model is exported."""

    def __init__(self, clock: Clock, path: Path, rows: int) -> None:
        self.clock, self.path, self.rows = clock, path, rows

    @hookimpl
    def embed_step_ended(self, event: Any) -> None:
        """Mark optimizer steps; there are no evaluations."""
        assert event.rows == self.rows, f"a step had {event.rows} rows, not {self.rows}"
        self.clock.mark()
        self.clock.losses.append(event.loss)
        self.clock.flops.append(event.flops or 0.0)
        self.clock.peak_flops = event.peak_flops or 0.0
        if event.step == event.total_steps:
            self.clock.write(self.path)


def main() -> None:
    """The one run."""
    from embed_bge import BGETrainer, BGETrainerConfig

    order = read_order()
    if order["family"] != "xlm-roberta":
        (train_pairs if order["family"] == "qwen3" else train_qwen)(order)
        return
    unified = order["loss"] == "m3"
    config = BGETrainerConfig(
        model_name_or_path=order["model"],
        train_data=order["rows"],
        held_out_rows=0,
        output_dir=Path(order["output"]),
        seed=order["seed"],
        train_group_size=order["group_size"],
        query_max_len=order["query_max_len"],
        passage_max_len=order["passage_max_len"],
        unified_finetuning=unified,
        sentence_pooling_method="cls" if unified else "mean",
        temperature=0.02 if unified else 0.05,  # 0.05 is a scale of 20
        use_self_distill=unified,
        knowledge_distillation=unified,
        kd_loss_type="m3_kd_loss",
        learning_rate=order["learning_rate"],
        max_steps=order["steps"],
        per_device_train_batch_size=order["batch_size"],
        warmup_ratio=0,
        weight_decay=0,
    )
    BGETrainer(config=config, overrides=overrides(order), observers=[observer(order)]).train(overwrite=True)


def train_pairs(order: dict[str, Any]) -> None:
    """Any encoder that transformers loads, with InfoNCE: the recipe of embed-data."""
    from embed_core.api import BaseRetrieverTrainer
    from embed_data.recipe import DataRecipe

    class PairsTrainer(BaseRetrieverTrainer):
        plugin = "data"
        recipe_class = DataRecipe

    config = DataRecipe(
        model_name_or_path=order["model"],
        train_data=order["rows"],
        held_out_rows=0,
        output_dir=Path(order["output"]),
        seed=order["seed"],
        query_max_length=order["query_max_len"],
        max_length=order["passage_max_len"],
        negatives=0,
        temperature=0.05,
        learning_rate=order["learning_rate"],
        max_steps=order["steps"],
        per_device_train_batch_size=order["batch_size"],
        warmup_ratio=0,
        weight_decay=0,
    )
    PairsTrainer(config=config, overrides=overrides(order), observers=[observer(order)]).train(overwrite=True)


def train_qwen(order: dict[str, Any]) -> None:
    """Qwen3-Embedding, bare texts, as ms-swift trains it under ZeRO 2: the recipe of embed-qwen."""
    from embed_core.api import BaseRetrieverTrainer
    from embed_qwen.recipe import QwenRecipe

    class QwenTrainer(BaseRetrieverTrainer):
        plugin = "qwen"
        recipe_class = QwenRecipe

    config = QwenRecipe(
        model_name_or_path=order["model"],
        dataset_paths=(order["rows"],),
        held_out_rows=0,
        output_dir=Path(order["output"]),
        seed=order["seed"],
        query_max_length=order["query_max_len"],
        max_length=order["passage_max_len"],
        instruction="",
        infonce_include_qq=False,
        infonce_include_dd=False,
        infonce_mask_fake_negative=False,
        negatives=0,
        temperature=0.05,
        learning_rate=order["learning_rate"],
        max_steps=order["steps"],
        per_device_train_batch_size=order["batch_size"],
        warmup_ratio=0,
        weight_decay=0,
        deepspeed="zero2",
    )
    QwenTrainer(config=config, overrides=overrides(order), observers=[observer(order)]).train(overwrite=True)


def overrides(order: dict[str, Any]) -> dict[str, Any]:
    """What is not the recipes' to say."""
    return {
        # The peers mask no false negatives, and save nothing on the way.
        "sampler": {"kind": "shuffled", "batch_size": order["batch_size"]},
        "loss": {"mask": {"same_text": False, "same_id": False}},
        "checkpoint": {"every_minutes": 0},
        "engine": {"strategy": order["strategy"], "precision": order["precision"], "device": order["device"]},
        "tracking": {"report_to": []},
    }


def observer(order: dict[str, Any]) -> ClockObserver:
    """The clock of the order."""
    return ClockObserver(Clock(), Path(order["measured"]), order["batch_size"])


if __name__ == "__main__":
    main()
