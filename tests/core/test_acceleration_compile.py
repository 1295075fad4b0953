"""``engine.compile``: the loop's losses and gradients stay what they are, with everything else that can be set.

Quick tests trace the graphs and run them as they are; slow ones (some ten seconds of a free core each) also trace their
backward as torch.compile does, and one generates the C++.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from embed_core.acceleration.compile import compile_encoders
from embed_core.batch.collate import draw_examples, make_host_batch
from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.config.run import EngineConfig, TrainConfig
from embed_core.distributed.process_group import Ranks, join, leave
from embed_core.errors import ConfigError
from embed_core.losses.config import InfoNCEConfig
from embed_core.models.from_scratch.config import EncoderShape
from embed_core.models.from_scratch.encoder import xlm_roberta
from embed_core.models.from_scratch.unigram import unigram_tokenizer
from embed_core.models.transformers_encoder.config import TransformersEncoderConfig
from embed_core.models.transformers_encoder.model import TransformersEncoder
from embed_core.testing import tiny_dataset
from embed_core.testing.tiny import TinyModel
from embed_core.train.step import Step
from embed_core.zero.engine import Trainable, initialize
from embed_core.zero.state import full_gradient

torch.set_num_threads(1)
PACKS = "test_compiled_packs"
STEPS = 2
Answer = tuple[list[float], dict[str, Tensor]]


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """torch.compile without its code generator, and without the backward's graph unless ``aot_eager`` is asked for."""
    compiled, name = nn.Module.compile, getattr(request, "param", "eager")
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compiled(self, backend=name, **options))
    return name


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def alone() -> Iterator[Ranks]:
    yield join("cpu")
    leave()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    cache = tmp_path_factory.mktemp("cache")
    return unigram_tokenizer(tiny_dataset().texts(), 200, cache, lambda line: None, max_length=48)


def made(tokenizer: Any, layers: int = 1) -> TransformersEncoder:
    shape = EncoderShape(vocab_size=200, hidden=16, layers=layers, heads=2, dropout=0.0)
    encoder = xlm_roberta(len(tokenizer), shape, max_length=48, seed=3)
    config = TransformersEncoderConfig(pooling="mean", query_max_length=24, passage_max_length=40)
    return TransformersEncoder(config, encoder, tokenizer)


def trained(model: Any, ranks: Ranks, **options: Any) -> Answer:
    """Losses and summed gradients of two batches of several chunks each."""
    config = EngineConfig(precision="fp32", token_budget=60, **options)
    loss = InfoNCEConfig(temperature=0.2).build(BuildContext(registry=Registry(), announce=lambda line: None))
    module = Trainable(model, loss)
    train = TrainConfig(gradient_accumulation_steps=STEPS)
    engine = initialize(module, config, train, ranks, lambda line: None)
    step, dataset, losses = Step(engine, model, loss, config, ranks), tiny_dataset(), []
    for number in range(STEPS):
        host = make_host_batch(model, draw_examples(dataset, range(6 * number, 6 * number + 6), 0, number))
        losses.append(float(step.forward_backward(host, number, last=number == STEPS - 1).loss))
    each = {name: full_gradient(engine, p) for name, p in module.named_parameters() if p.requires_grad}
    return losses, {name: value.clone() for name, value in each.items() if value is not None}


def assert_same(found: Answer, wanted: Answer) -> None:
    assert found[0] == pytest.approx(wanted[0], abs=1e-5)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        # Keys have no gradient but rounding: a bias of theirs moves all logits of a query alike.
        assert float((found[1][name] - gradient).norm()) <= 1e-5 * max(1.0, float(gradient.norm())), name
    assert sum(float(gradient.norm()) > 0.01 for gradient in wanted[1].values()) > 10


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


EVERYTHING = {"strategy": "cached", "gradient_checkpointing": True, "zero_stage": 2}
SLOW = [
    {"strategy": "direct"},
    {"strategy": "cached", "zero_stage": 1},
    {"strategy": "direct", "gradient_checkpointing": True},
    EVERYTHING,
    {"strategy": "direct", "zero_stage": 3},
]


@pytest.mark.parametrize(
    ("options", "backend"),
    [(EVERYTHING, "eager"), *(pytest.param(each, "aot_eager", marks=pytest.mark.slow) for each in SLOW)],
    ids=str,
    indirect=["backend"],
)
def test_losses_and_gradients_stay_what_they_are(
    options: dict[str, Any], tokenizer: Any, alone: Ranks, backend: str
) -> None:
    wanted = trained(made(tokenizer), alone, strategy="direct")
    assert graphs() == 0
    found = trained(made(tokenizer), alone, compile=True, **options)
    assert_same(found, wanted)
    assert graphs() > 0, "nothing was compiled"


def test_lengths_share_a_graph(tokenizer: Any, backend: str) -> None:
    """Chunks of every size go through what the first of them made: compiling takes minutes on real models."""
    model = made(tokenizer)
    compile_encoders(model)
    for count in range(2, 9):
        inputs = model.collate(model.tokenize(["word " * count] * count, "passage", [None] * count))
        model(**inputs).dense_ND.sum().backward()
    assert graphs() == 1


def one_matrix(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **unused: Any,
) -> tuple[Tensor, None]:
    """What flash-attention computes of packed texts, in operations that torch.compile can follow."""
    place = torch.arange(query.shape[2])
    text = torch.bucketize(place, cu_seq_lens_q[1:].long(), right=True)
    far = (text[:, None] != text[None]) | ((place[:, None] - place[None]).abs() >= max_length_q)
    logits = (query @ key.transpose(2, 3) * scaling).masked_fill(far, float("-inf"))
    return (logits.softmax(-1) @ value).transpose(1, 2), None


@pytest.mark.parametrize(
    ("checkpointing", "backend"),
    [(False, "eager"), pytest.param(True, "aot_eager", marks=pytest.mark.slow)],
    indirect=["backend"],
)
def test_packed_chunks_compile_too(checkpointing: bool, tokenizer: Any, alone: Ranks, backend: str) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask

    AttentionInterface.register(PACKS, one_matrix)
    AttentionMaskInterface.register(PACKS, flash_attention_mask)
    wanted = trained(made(tokenizer), alone, strategy="direct")
    model = made(tokenizer)
    model.encoder.set_attn_implementation(PACKS)
    model.packed = True
    found = trained(model, alone, compile=True, strategy="cached", gradient_checkpointing=checkpointing)
    assert_same(found, wanted)
    # One more where a chunk has a single text, and each may be made anew for the backward.
    assert 0 < graphs() <= 4, "a graph for every number of texts"


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="needs a C++ compiler")
def test_the_same_with_generated_code(tokenizer: Any, alone: Ranks) -> None:
    options: dict[str, Any] = {"strategy": "direct", "gradient_checkpointing": True}
    wanted = trained(made(tokenizer), alone, **options)
    assert_same(trained(made(tokenizer), alone, compile=True, **options), wanted)
    assert graphs() > 0


class Holder(nn.Module):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)


def test_every_outermost_transformers_model_is_compiled_in_place(tokenizer: Any) -> None:
    from transformers import XLMRobertaForMaskedLM

    first, second = made(tokenizer), made(tokenizer)
    outer = XLMRobertaForMaskedLM(first.encoder.config)
    model = Holder(a=first, b=second, outer=outer, head=nn.Linear(2, 2))
    names = list(model.state_dict())
    compile_encoders(model)
    assert list(model.state_dict()) == names
    compiled = [name for name, part in model.named_modules() if part._compiled_call_impl is not None]
    assert compiled == ["parts.a.encoder", "parts.b.encoder", "parts.outer"]
    alone = XLMRobertaForMaskedLM(first.encoder.config)
    compile_encoders(alone)
    assert [name for name, part in alone.named_modules() if part._compiled_call_impl is not None] == [""]


def test_a_model_without_transformers_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        compile_encoders(TinyModel())
    assert str(caught.value) == (
        "engine.compile: true finds no transformers model in TinyModel: set engine.compile: false"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="on CUDA no C++ compiler is needed")
def test_a_machine_without_a_compiler_says_so(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError) as caught:
        compile_encoders(made(tokenizer))
    assert str(caught.value) == (
        f"engine.compile: true needs a C++ compiler on this machine ({sys.platform}, no CUDA) and g++, clang++ and c++ "
        "are not on the PATH: install one, or set engine.compile: false"
    )
