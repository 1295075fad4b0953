"""Train as an order says with embed-sbert: the same sentence-transformers directory, by its own modules."""

from __future__ import annotations

from pathlib import Path

from benchmarks.clock import read_order
from benchmarks.train_embed import observer, overrides


def main() -> None:
    """The one run."""
    from embed_sbert import SbertRecipe, SbertTrainer

    order = read_order()
    config = SbertRecipe.model_validate(
        {
            "model_id": order["model"],
            "train": {
                "batch_size": order["batch_size"],
                "max_steps": order["steps"],
                "max_length": order["passage_max_len"],
            },
            "optim": {"lr": order["learning_rate"], "weight_decay": 0, "warmup_ratio": 0},
            "data": {"pairs_path": order["rows"], "held_out_rows": 0, "negatives": 0},
            "seed": order["seed"],
        }
    )
    told = {**overrides(order), "output_dir": order["output"]}
    SbertTrainer(config=config, overrides=told, observers=[observer(order)]).train(overwrite=True)
    assert (Path(order["output"]) / "model" / "modules.json").is_file()


if __name__ == "__main__":
    main()
