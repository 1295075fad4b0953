"""Run as a process per rank by test_engine_vision.py: trains a tiny model on pictures, and writes what steps said."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embed_core.batch.collate import make_host_batch, share_of_rank
from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.config.run import EngineConfig, OptimizerConfig, TrainConfig
from embed_core.distributed.process_group import Ranks, join, leave
from embed_core.models.lora.build import adapt
from embed_core.models.lora.config import LoraModelConfig
from embed_core.train.step import Step
from embed_core.types import Batch, Example, LossOutput, Targets
from embed_core.zero.engine import Trainable, initialize
from embed_core.zero.state import full_gradient, full_state
from embed_vision.datasets.items import Mixed, Picture
from embed_vision.losses.config import ClipLossConfig, SiglipLossConfig
from embed_vision.models.config import ClipConfig, VisionConfig


class ScaledLoss(nn.Module):
    """CLIP's loss in one direction, with a scale that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.logit_scale.weight, 2.0)

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        query_BD, passage_PD = batch.query.dense_ND, batch.passage.dense_ND
        assert query_BD is not None
        assert passage_PD is not None
        scale = self.logit_scale(torch.ones(1, 1, dtype=self.logit_scale.weight.dtype)).float().exp()
        loss = nn.functional.cross_entropy(query_BD @ passage_PD.T * scale, targets.positive_columns_B)
        return LossOutput(loss, {"dense": loss.detach()})


def examples(out: Path, mode: str) -> list[Example]:
    """Eight rows. Of ``t2i`` every second query is a text with a picture; of ``mixed`` rank 0 has texts alone, rank 1
    pictures alone."""
    captions = (out / "captions.txt").read_text(encoding="utf-8").splitlines()
    pictures = [Picture(str(out / f"{number}.png")) for number in range(len(captions))]
    rows = []
    for number in range(8):
        caption, own, other = captions[number], pictures[number], pictures[(number + 3) % len(pictures)]
        if mode == "t2i":
            query: Any = Mixed(caption, other) if number % 2 else caption
            rows.append(Example(number, query, (own, other), place=f"rows:{number}"))
        elif number < 4:
            rows.append(Example(number, caption, (captions[-1 - number],), place=f"rows:{number}"))
        else:
            rows.append(Example(number, own, (other,), place=f"rows:{number}"))
    return rows


def main(out: Path, settings: list[str]) -> None:
    """Two steps per setting ``model-mode-stage-budget-strategy[-checkpointing][-own]``, to
    ``out/{ranks}-{setting}.json``; ``own`` is the loss that the model is known by."""
    torch.set_num_threads(1)
    ranks = join("cpu")
    for setting in settings:
        model, mode, stage, budget, strategy, *more = setting.split("-")
        engine = EngineConfig.model_validate(
            {
                "zero_stage": int(stage),
                "precision": "fp32",
                "token_budget": int(budget),
                "strategy": strategy,
                "gradient_checkpointing": "checkpointing" in more,
            }
        )
        loss = _loss(model) if "own" in more else ScaledLoss()
        answer = train(_model(out, model), loss, examples(out, mode), engine, ranks)
        if ranks.rank == 0:
            (out / f"{ranks.world_size}-{setting}.json").write_text(json.dumps(answer))
    leave()


def _loss(model: str) -> Any:
    """With a scale that is learned, and a bias; each rank computes its own rows."""
    context = BuildContext(registry=Registry(), announce=lambda line: None)
    config = SiglipLossConfig(scale=5.0, bias=-1.0) if model == "siglip" else ClipLossConfig(temperature=0.2)
    return config.build(context)


def _model(out: Path, name: str) -> Any:
    context = BuildContext(registry=Registry(), announce=lambda line: None)
    model: Any = VisionConfig(name_or_path=str(out / name.removeprefix("lora"))).build(context)
    with torch.no_grad():  # rounding grows with the weights, layer by layer
        for parameter in model.parameters():
            parameter.mul_(1 if parameter.ndim < 2 else 0.3)
    if name.startswith("lora"):
        return adapt(model, LoraModelConfig(inner=ClipConfig(), r=2), context)
    return model


def train(model: Any, loss: Any, rows: list[Example], engine_config: EngineConfig, ranks: Ranks) -> dict[str, object]:
    """Loss and gradients of each step, and the weights after the last."""
    # A large epsilon keeps Adam from hiding a wrong factor of the gradient.
    optimizer = OptimizerConfig(learning_rate=0.01, epsilon=1e-3)
    module = Trainable(model, loss)
    settings = TrainConfig(gradient_clipping=0.5, optimizer=optimizer)
    engine = initialize(module, engine_config, settings, ranks, lambda line: None)
    step = Step(engine, model, module.loss, engine_config, ranks)
    log = []
    for number in range(2):
        own = share_of_rank(range(len(rows)), ranks.rank, ranks.world_size)
        output = step.forward_backward(make_host_batch(model, [rows[index] for index in own]), number)
        full = {name: full_gradient(engine, parameter) for name, parameter in module.named_parameters()}
        gradients = {name: value.flatten().tolist() for name, value in full.items() if value is not None}
        engine.step()
        log.append({"loss": float(output.loss), "gradients": gradients})
    weights = {name: value.flatten().tolist() for name, value in full_state(engine, module, ranks).items()}
    return {"steps": log, "weights": weights}


def memory(out: Path, strategy: str, limit: int) -> None:
    """One step over 512 pictures; with ``limit`` (bytes) the process gets so much more memory than it has when the
    step begins, and no more. Writes peak, loss and a few gradients."""
    torch.set_num_threads(1)
    ranks = join("cpu")
    rows = []
    for number in range(256):
        one, other = (Picture(data=_noise(2 * number + half)) for half in range(2))
        rows.append(Example(number, one, (other,), place=f"rows:{number}"))
    engine_config = EngineConfig.model_validate(
        {"zero_stage": 0, "precision": "fp32", "token_budget": 1100, "strategy": strategy}
    )
    module = Trainable(_model(out, "clip"), ScaledLoss())
    engine = initialize(module, engine_config, TrainConfig(), ranks, lambda line: None)
    step = Step(engine, module.model, module.loss, engine_config, ranks)  # type: ignore[arg-type]
    host = make_host_batch(module.model, rows)  # type: ignore[arg-type]
    assert len(host.encoded) == 512
    begun = _status("VmSize")
    if limit:
        resource.setrlimit(resource.RLIMIT_AS, (begun + limit, begun + limit))
    peak = _status("VmHWM")
    output = step.forward_backward(host, 0)
    gradients = {name: p.grad.flatten()[:50].tolist() for name, p in module.named_parameters() if p.grad is not None}
    answer = {"taken": _status("VmHWM") - peak, "loss": float(output.loss), "gradients": gradients}
    (out / f"memory-{strategy}-{limit}.json").write_text(json.dumps(answer))
    leave()


def _noise(seed: int) -> bytes:
    from io import BytesIO

    import numpy as np
    from PIL import Image

    stream = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG", compress_level=0)
    return stream.getvalue()


def _status(name: str) -> int:
    """A size of this process in bytes, as Linux tells it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    if sys.argv[2] == "memory":
        memory(Path(sys.argv[1]), sys.argv[3], int(sys.argv[4]))
    else:
        main(Path(sys.argv[1]), sys.argv[2:])
