"""What chunks hold: watched storages against autograd's own, fits against chunks that run, the largest that fits."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from embed_core.acceleration.activation_checkpointing import enable_activation_checkpointing
from embed_core.profiling.activation_memory import (
    ActivationFit,
    ChunkProbe,
    Sample,
    Trace,
    fit_activations,
    largest,
    trace_on_cpu,
)
from embed_core.profiling.throughput import FUSED, Shape, _register_fused, largest_chunk
from embed_core.types import Embeddings, Encoded
from embed_core.zero.engine import Trainable

torch.set_num_threads(1)
WIDTH, LAYERS = 32, 2


class Model(nn.Module):
    """XLM-RoBERTa on texts of any length; the ids do not matter."""

    def __init__(self, attention: str = "sdpa", dropout: float = 0.0) -> None:
        super().__init__()
        from transformers import XLMRobertaConfig, XLMRobertaModel

        _register_fused()
        config = XLMRobertaConfig(
            vocab_size=400,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            intermediate_size=4 * WIDTH,
            max_position_embeddings=400,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        self.encoder = XLMRobertaModel(config)
        self.encoder.set_attn_implementation(attention)
        self.encoder.pooler.requires_grad_(False)

    def collate(self, encoded: list[Encoded]) -> dict[str, Tensor]:
        longest = max(one.length for one in encoded)
        mask_NL = torch.zeros(len(encoded), longest, dtype=torch.int64)
        for row, one in enumerate(encoded):
            mask_NL[row, : one.length] = 1
        return {"input_ids": torch.full_like(mask_NL, 7), "attention_mask": mask_NL}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Embeddings:
        states_NLD = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return Embeddings(dense_ND=states_NLD[:, 0])


def text(length: int) -> Encoded:
    return Encoded(b"", length, {})


def fitted(probe: ChunkProbe) -> ActivationFit:
    return fit_activations([(n, length, probe.trace([text(length)] * n)) for n, length in ((2, 16), (3, 16), (2, 40))])


def test_watched_storages_by_hand() -> None:
    """x [4,8] · w [8,16] → relu → sum: the product and the relu's result live, what backward makes comes and goes."""
    x, w = torch.randn(4, 8), torch.randn(8, 16, requires_grad=True)
    w.grad = torch.zeros_like(w)
    trace = trace_on_cpu(lambda: [torch.relu(x @ w).sum()], [x, w, w.grad])
    product = result = 4 * 4 * 16
    assert trace.alive[0] == product
    assert trace.alive[trace.after_forward] == result + 4, "relu keeps its result, nothing keeps the product"
    assert trace.peak >= product + result
    assert trace.kept == result + 4
    assert trace.alive[-1] <= result + 4 + 4 * 8 * 16, "w's gradient, before it is added"


def test_kept_is_what_autograd_saved() -> None:
    """Storages of all tensors saved for the backward, each once, are what is alive after the forward."""
    model = Model(FUSED)
    saved: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        saved[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    inputs = model.collate([text(64)] * 4)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        result = model(**inputs)
    for known in (*model.parameters(), *model.buffers(), *inputs.values()):
        saved.pop(known.untyped_storage().data_ptr(), None)
    kept = ChunkProbe(Trainable(model, None), "cpu").trace([text(64)] * 4).kept
    assert kept == pytest.approx(sum(saved.values()), rel=0.03)
    del result


@pytest.mark.parametrize("attention", [FUSED, "eager"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_larger_chunks_are_foreseen(attention: str, checkpointing: bool, dropout: float) -> None:
    model = Model(attention, dropout)
    if checkpointing:
        enable_activation_checkpointing(model)
    probe = ChunkProbe(Trainable(model, None), "cpu")
    foreseen, real = fitted(probe).trace(7, 150), probe.trace([text(150)] * 7)
    assert foreseen.kept == pytest.approx(real.kept, rel=0.02)
    assert foreseen.peak == pytest.approx(real.peak, rel=0.05)


def test_options_change_what_is_kept() -> None:
    plain, checkpointed, eager, half = Model(FUSED), Model(FUSED), Model("eager"), Model(FUSED).bfloat16()
    enable_activation_checkpointing(checkpointed)
    kept = [
        ChunkProbe(Trainable(m, None), "cpu").trace([text(128)] * 4).kept for m in (plain, checkpointed, eager, half)
    ]
    assert kept[1] < 0.2 * kept[0]
    assert kept[2] > 1.3 * kept[0], "eager attention keeps its weights"
    assert kept[3] == pytest.approx(0.5 * kept[0], rel=0.1)


def test_activations_of_a_layer_are_the_textbook_s() -> None:
    """Korthikanti et al. 2022 (arXiv 2205.05198): 34·s·b·h bytes per layer in half precision, dropout masks included,
    besides attention's own; without dropout (3 · s·b·h of masks) 31, and fused attention keeps no s×s matrix."""
    model = Model(FUSED).bfloat16()
    one, two = (ChunkProbe(Trainable(m, None), "cpu").trace([text(128)] * 4).kept for m in (model, deeper(model)))
    per_layer = (two - one) / LAYERS
    # GELU's input and output are 8·s·b·h of it; XLM-RoBERTa normalises after each block, keeping one state more.
    assert 26 < per_layer / (4 * 128 * WIDTH) < 36


def deeper(model: Model) -> Model:
    other: Model = Model(FUSED).bfloat16()
    other.encoder.encoder.layer.extend(Model(FUSED).bfloat16().encoder.encoder.layer)
    return other


def trace(*alive: float, after: int = 0) -> Trace:
    return Trace(np.array(alive), after)


def test_a_fit_in_closed_form() -> None:
    def bytes_of(n: int, length: int) -> Trace:
        return trace(100 + n * (3 * length + 0.5 * length**2), 10 + 7 * n * length, after=1)

    samples: list[Sample] = [(n, length, bytes_of(n, length)) for n, length in ((2, 8), (3, 8), (2, 20))]
    found = fit_activations(samples).trace(50, 300)
    assert found.alive == pytest.approx(bytes_of(50, 300).alive)
    assert (found.kept, found.peak) == (found.alive[1], found.alive[0])


def test_a_fit_of_one_length_grows_with_the_tokens() -> None:
    found = fit_activations([(2, 10, trace(120.0)), (3, 10, trace(170.0))])
    assert found.trace(4, 10).peak == pytest.approx(220)
    assert found.trace(2, 20).peak == pytest.approx(220)


def test_a_fit_of_models_whose_operations_depend_on_the_data() -> None:
    found = fit_activations(
        [(2, 10, trace(1, 5, 40, after=1)), (3, 10, trace(1, 2, 7, 60, after=2)), (2, 20, trace(9, 80))]
    )
    assert found.trace(3, 10).kept == pytest.approx(7)
    assert found.trace(3, 10).peak == pytest.approx(60)


@given(st.integers(0, 300), st.integers(0, 300))
def test_largest_asks_little_and_finds_it(true: int, limit: int) -> None:
    asked: list[int] = []

    def fits(n: int) -> bool:
        asked.append(n)
        return n <= true

    assert largest(fits, limit) == min(true, limit)
    assert all(1 <= n <= limit for n in asked)
    assert len(asked) <= 20


class Limited(nn.Module):
    """Runs out of memory above so many texts."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.weight = most, nn.Linear(1, 1)

    def collate(self, encoded: list[Encoded]) -> dict[str, Tensor]:
        return {"rows": torch.ones(len(encoded), 1)}

    def forward(self, rows: Tensor) -> Embeddings:
        if len(rows) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Embeddings(dense_ND=self.weight(rows))


def test_trying_survives_running_out_of_memory() -> None:
    probe = ChunkProbe(Trainable(Limited(13), None), "cpu")
    assert [probe.fits([text(1)] * n) for n in (13, 14, 13)] == [True, False, True]
    assert largest(lambda n: probe.fits([text(1)] * n), 100) == 13


def test_the_largest_chunk_is_the_largest() -> None:
    """In a few MiB: the chunk that is found really takes no more, and one text more would."""
    probe = ChunkProbe(Trainable(Model(FUSED), None), "cpu")
    longest, room = text(100), 6 * 2**20
    share = [Shape(64, 100)] * 2
    found = largest_chunk(fitted(probe), longest, share, room, probe, held=0)
    texts = found.tokens // 100
    assert (found.text_tokens, found.whole_share, found.tried) == (100, False, False)
    assert 2 < texts < 128
    assert probe.trace([longest] * texts).peak <= 1.01 * room
    assert probe.trace([longest] * (texts + 1)).peak > 0.99 * room
    everything = largest_chunk(fitted(probe), longest, share, 1e12, probe, held=0)
    assert (everything.tokens, everything.whole_share) == (12_800, True)
    assert largest_chunk(fitted(probe), longest, share, 1000, probe, held=0).tokens == 0


def test_gradients_do_not_count_as_activations() -> None:
    """A large table's gradient is there from step to step: the state's, not the chunk's."""
    model = Model(FUSED)
    model.encoder.resize_token_embeddings(20_000)
    gc.collect()
    probe = ChunkProbe(Trainable(model, None), "cpu")
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert probe.trace([text(16)] * 2).kept < 20_000 * WIDTH * 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_chunks_really_run() -> None:
    probe = ChunkProbe(Trainable(Model("sdpa").bfloat16().to("cuda:0"), None), "cuda:0")
    probe.run([text(100)] * 4)
    samples: list[Sample] = [(n, 100, probe.trace([text(100)] * n)) for n in (64, 128)]
    foreseen, real = fit_activations(samples).trace(256, 100), probe.trace([text(100)] * 256)
    assert foreseen.kept == pytest.approx(real.kept, rel=0.05)
    torch.cuda.empty_cache()
    room = 256 * 2**20
    found = largest_chunk(
        fit_activations(samples), text(100), [Shape(10**6, 100)], room, probe, held=torch.cuda.memory_allocated()
    )
    assert found.tried
    assert probe.trace([text(100)] * (found.tokens // 100)).peak < 1.5 * room
