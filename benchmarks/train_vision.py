"""Train as an order says with embed-vision: captions and pictures, InfoNCE in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.clock import Clock, read_order
from benchmarks.train_embed import ClockObserver


def main() -> None:
    """The one run."""
    from embed_core.config import document
    from embed_core.config.resolve import Request, resolve
    from embed_core.plugin.manager import activate
    from embed_core.train.run import Options, run

    order = read_order()
    manager, registry = activate(["vision"])
    observer = ClockObserver(Clock(), Path(order["measured"]), order["batch_size"])
    manager.register(observer)
    settings: dict[str, Any] = {
        "model_name": order["model"],
        "data_path": order["rows"],
        "held_out_rows": 0,
        "loss_type": "infonce",
        "temperature": 0.05,  # a scale of 20
        "lr": order["learning_rate"],
        "weight_decay": 0,
        "scheduler_type": "linear",
        "warmup_ratio": 0,
        "max_steps": order["steps"],
        "batch_size": order["batch_size"],
        "seed": order["seed"],
        "use_gradient_cache": order["strategy"] == "cached",
        # The peer masks no false negatives, and saves nothing on the way.
        "sampler": {"kind": "shuffled", "batch_size": order["batch_size"]},
        "loss": {"kind": "infonce", "mask": {"same_text": False, "same_id": False}},
        "checkpoint": {"every_minutes": 0},
        "engine": {"precision": order["precision"]},
    }
    request = Request(
        registry.recipe("vision"),
        overrides=document.Document(settings),
        flags={"output_dir": order["output"], "plugins": ["vision"]},
    )
    run(resolve(registry, request), manager, registry, Options(overwrite=True))


if __name__ == "__main__":
    main()
