"""Packed chunks against padded ones, through transformers' own flash-attention code.

Only the kernel is replaced: where ``flash_attn`` would be called, a loop over the texts computes softmax(q·kᵀ)·v from
exactly the arguments that the kernel gets. The oracle is the same model with eager attention over padding.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from embed_core.acceleration.attention import FLASH, PRODUCTS, set_attention
from embed_core.acceleration.varlen_check import can_pack
from embed_core.batch.chunks import Chunks
from embed_core.batch.collate import draw_examples, make_host_batch
from embed_core.config.run import EngineConfig, TrainConfig
from embed_core.distributed.process_group import Ranks, join, leave
from embed_core.embeddings import values
from embed_core.errors import ConfigError
from embed_core.losses.config import InfoNCEConfig
from embed_core.models.from_scratch.config import EncoderShape
from embed_core.models.from_scratch.encoder import xlm_roberta
from embed_core.models.from_scratch.unigram import unigram_tokenizer
from embed_core.models.transformers_encoder.config import TransformersEncoderConfig
from embed_core.models.transformers_encoder.model import TransformersEncoder
from embed_core.testing import check_model, tiny_dataset
from embed_core.train.step import Step
from embed_core.types import Encoded
from embed_core.zero.engine import Trainable, initialize
from embed_core.zero.state import full_gradient

torch.set_num_threads(1)
GPU, CPU = Ranks(0, 1, 0, "cuda:0"), Ranks(0, 1, 0, "cpu")
BF16 = EngineConfig(precision="bf16", token_budget=64)
TEXTS = [
    "Where does the badger live?",
    "It digs.",
    "Worms, beetles and fallen fruit are what the badger eats, and roots, and once in a while a nest of wasps.",
    "A sett is a home of many rooms",
]
FAMILIES = ("xlm-roberta", "bert", "modernbert", "qwen3")


class Kernel:
    """In the place of the package ``flash_attn``; ``calls`` has what each call was told."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def varlen(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        deterministic: bool = False,
    ) -> Tensor:
        """The arguments of ``flash_attn_varlen_func`` 2.8; [T,H,d] each → [T,H,d]."""
        assert (dropout_p, softcap) == (0.0, 0.0)
        told = {"offsets": (cu_seqlens_q, cu_seqlens_k), "longest": (max_seqlen_q, max_seqlen_k)}
        self.calls.append(told | {"causal": causal, "window": window_size})
        offsets = cu_seqlens_q.tolist()
        return torch.cat([
            _attention(q[a:b], k[a:b], v[a:b], softmax_scale, causal, window_size)
            for a, b in pairwise(offsets)
        ])  # fmt: skip

    def rectangular(self, *arguments: Any, **options: Any) -> Tensor:
        raise AssertionError("texts of one length, without offsets: they were not packed")


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool, window: tuple[int, int]) -> Tensor:
    k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], 1) for part in (k, v))
    logits = torch.einsum("ihd,jhd->hij", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    gap = torch.arange(len(q))[:, None] - torch.arange(len(q))[None]
    hidden = (gap < 0) & torch.tensor(causal)
    if window != (-1, -1):
        hidden = hidden | (gap > window[0]) | (-gap > window[1])
    return torch.einsum("hij,jhd->ihd", logits.masked_fill(hidden, float("-inf")).softmax(-1), v)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """transformers finds a CUDA device and ``flash_attn``, which is ours."""
    from transformers import modeling_flash_attention_utils as flash
    from transformers import utils

    made = Kernel()
    functions = (made.rectangular, made.varlen, None, flash._pad_input, flash._unpad_input)
    monkeypatch.setattr(flash, "_lazy_imports", lambda *a, **o: functions)
    monkeypatch.setattr(flash, "_loaded_implementation", None)
    facts = flash.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]
    monkeypatch.setitem(facts, "general_availability_check", lambda: True)
    monkeypatch.setitem(facts, "supported_devices", ((lambda: True, "cuda"),))
    monkeypatch.setattr(utils, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return made


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return unigram_tokenizer(TEXTS, 120, tmp_path_factory.mktemp("cache"), lambda line: None, max_length=48)


def encoder(family: str) -> Any:
    """Two random layers with weights so large that attention is far from uniform."""
    from transformers import BertConfig, BertModel, ModernBertConfig, ModernBertModel, Qwen3Config, Qwen3Model

    torch.manual_seed(3)
    sizes = {"vocab_size": 120, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "pad_token_id": 1}
    if family == "xlm-roberta":
        made = xlm_roberta(
            120, EncoderShape(vocab_size=120, hidden=16, layers=2, heads=2, dropout=0.0), max_length=48, seed=3
        )
        made.embeddings.position_embeddings.weight.data.mul_(10)
    elif family == "bert":
        none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        made = BertModel(BertConfig(**sizes, **none, num_attention_heads=2, max_position_embeddings=64))
    elif family == "modernbert":
        # A window of two tokens either way in every other layer.
        ids = {"bos_token_id": 0, "cls_token_id": 0, "eos_token_id": 2, "sep_token_id": 2}
        made = ModernBertModel(
            ModernBertConfig(**sizes, **ids, num_attention_heads=2, local_attention=4, global_attn_every_n_layers=2)
        )
    else:
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        made = Qwen3Model(Qwen3Config(**sizes, **heads, max_position_embeddings=64))
    for name, parameter in made.named_parameters():
        if parameter.ndim > 1 and "embeddings" not in name and "embed" not in name:
            parameter.data.mul_(8)
    return made


@pytest.fixture
def make(tokenizer: Any) -> Callable[..., TransformersEncoder]:
    def made(family: str = "xlm-roberta", pooling: str = "mean") -> TransformersEncoder:
        limits = {"query_max_length": 24, "passage_max_length": 40}
        config = TransformersEncoderConfig(pooling=pooling, **limits)
        return TransformersEncoder(config, encoder(family), tokenizer)

    return made


def both(make: Any, *options: str) -> tuple[TransformersEncoder, TransformersEncoder]:
    """The model as the engine has it with flash-attention, and its twin over padding with eager attention."""
    model = make(*options)
    plain = copy.deepcopy(model)
    plain.encoder.set_attn_implementation("eager")
    set_attention(model, BF16, GPU)
    assert model.packed
    assert model.encoder.config._attn_implementation == FLASH
    return model, plain


def passages(model: Any, texts: list[str] = TEXTS) -> list[Encoded]:
    found: list[Encoded] = model.tokenize(texts, "passage", [None] * len(texts))
    return found


def gradients(model: nn.Module, vectors: Tensor) -> dict[str, Tensor]:
    upstream = torch.linspace(-1, 1, vectors.numel(), dtype=vectors.dtype).view_as(vectors)
    (vectors * upstream).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# The first token of a decoder sees nothing but itself.
@pytest.mark.parametrize(
    ("family", "pooling"),
    [(f, p) for f in FAMILIES for p in ("cls", "mean", "last_token") if (f, p) != ("qwen3", "cls")],
)
def test_packed_texts_have_the_vectors_and_gradients_of_padded_ones(
    family: str, pooling: str, make: Any, kernel: Kernel
) -> None:
    model, plain = both(make, family, pooling)
    found = model(**model.collate(passages(model))).dense_ND
    wanted = plain(**plain.collate(passages(plain))).dense_ND
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert not torch.allclose(wanted[0], wanted[1:], atol=1e-2), "the texts are all alike"
    own, other = gradients(model, found), gradients(plain, wanted)
    assert own.keys() == other.keys()
    for name, gradient in other.items():
        torch.testing.assert_close(own[name], gradient, atol=1e-5 * max(1.0, float(gradient.abs().max())), rtol=0)
    assert any(float(gradient.abs().max()) > 1e-2 for name, gradient in own.items() if "q" in name)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernel_is_told_where_the_texts_are(family: str, make: Any, kernel: Kernel) -> None:
    model, _ = both(make, family)
    encoded = passages(model)
    lengths = [one.length for one in encoded]
    model(**model.collate(encoded))
    assert len(kernel.calls) == 2, "one call per layer"
    for call in kernel.calls:
        for offsets in call["offsets"]:
            assert offsets.dtype == torch.int32
            assert offsets.diff().tolist() == lengths
            assert int(offsets[0]) == 0
        # Numbers, not tensors: the kernel's grid needs them on the host.
        assert [(type(longest), longest) for longest in call["longest"]] == [(int, max(lengths))] * 2
        assert call["causal"] is (family == "qwen3")
    windows = {call["window"] for call in kernel.calls}
    assert len(windows) == (2 if family == "modernbert" else 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_text_sees_another(family: str, make: Any, kernel: Kernel) -> None:
    model, _ = both(make, family)
    first, second, third, fourth = passages(model)
    with torch.no_grad():
        whole = model(**model.collate([first, second, third])).dense_ND
        # A neighbour of the same length: not a bit may change.
        changed = Encoded(b"", third.length, {"input_ids": third.data["input_ids"][::-1]})
        beside = model(**model.collate([first, second, changed])).dense_ND
        assert torch.equal(beside[:2], whole[:2])
        assert not torch.allclose(beside[2], whole[2], atol=1e-3)
        for text, row in zip((first, second, third), whole, strict=True):
            alone = model(**model.collate([text])).dense_ND[0]
            torch.testing.assert_close(alone, row, atol=1e-5, rtol=0)
        turned = model(**model.collate([fourth, third, first])).dense_ND
        torch.testing.assert_close(turned[1:], whole[[2, 0]], atol=1e-5, rtol=0)


def test_the_contract_of_models_holds(make: Any, kernel: Kernel) -> None:
    check_model(both(make, "qwen3", "last_token")[0], TEXTS, role="passage")


def test_a_padding_id_inside_a_text_takes_no_position_in_roberta(make: Any, kernel: Kernel) -> None:
    model, plain = both(make, "xlm-roberta")
    odd = [[0, 1, 7, 8, 2], [0, 9, 1, 1, 10, 2], [0, 11, 2]]
    encoded = [Encoded(b"", len(ids), {"input_ids": ids}) for ids in odd]
    with torch.no_grad():
        found, wanted = (one(**one.collate(encoded)).dense_ND for one in (model, plain))
        # What the padded model makes of a text alone, positions counted by transformers itself.
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_a_decoder_keeps_no_cache(make: Any, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for model in both(make, "qwen3"):
        inner = model.encoder.forward

        def spy(inner: Any = inner, **options: Any) -> Any:
            seen.append(inner(**options))
            return seen[-1]

        spy.__signature__ = inspect.signature(inner)  # type: ignore[attr-defined]
        model.encoder.forward = spy
        model(**model.collate(passages(model)))
    assert [output.past_key_values for output in seen] == [None, None]


@pytest.fixture
def alone() -> Iterator[Ranks]:
    yield join("cpu")
    leave()


def trained(model: Any, ranks: Ranks, **options: Any) -> tuple[list[float], dict[str, Tensor], list[int]]:
    """Losses, gradients after two batches, and tokens that the hardware saw."""
    config = EngineConfig(precision="fp32", token_budget=40, **options)
    loss = build_loss()
    module = Trainable(model, loss)
    engine = initialize(module, config, TrainConfig(gradient_accumulation_steps=2), ranks, lambda line: None)
    step, dataset = Step(engine, model, loss, config, ranks), tiny_dataset()
    outputs = [
        step.forward_backward(
            make_host_batch(model, draw_examples(dataset, range(6 * n, 6 * n + 6), 0, n)), n, last=n == 1
        )
        for n in range(2)
    ]
    found = {name: full_gradient(engine, p) for name, p in module.named_parameters() if p.requires_grad}
    assert [output.tokens <= output.padded_tokens for output in outputs] == [True] * 2
    tokens = [output.padded_tokens - (output.tokens if model.packed else 0) for output in outputs]
    return (
        [float(output.loss) for output in outputs],
        {name: value.clone() for name, value in found.items() if value is not None},
        tokens,
    )


def build_loss() -> Any:
    from embed_core.config.context import BuildContext
    from embed_core.config.registry import Registry

    return InfoNCEConfig(temperature=0.2).build(BuildContext(registry=Registry(), announce=lambda line: None))


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "direct"},
        {"strategy": "cached"},
        {"strategy": "cached", "zero_stage": 2, "gradient_checkpointing": True},
        {"strategy": "direct", "zero_stage": 3},
    ],
    ids=str,
)
def test_the_loop_trains_on_packed_chunks_as_on_padded_ones(
    options: dict[str, Any], make: Any, kernel: Kernel, alone: Ranks
) -> None:
    model, plain = both(make, "qwen3", "last_token")
    losses, found, waste = trained(model, alone, **options)
    wanted_losses, wanted, _ = trained(plain, alone, strategy="direct")
    assert losses == pytest.approx(wanted_losses, abs=1e-5)
    assert waste == [0, 0], "packed chunks have no padding"
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5 * max(1.0, float(gradient.abs().max())), rtol=0)
    assert len(kernel.calls) > 4


def test_dropout_repeats_itself_in_packed_chunks(make: Any, kernel: Kernel) -> None:
    model, _ = both(make, "bert")
    model.encoder.embeddings.dropout.p = 0.5
    encoded = passages(model)
    one, same, other = (Chunks(encoded, model, BF16, CPU, seed) for seed in (1, 1, 2))
    once, again, different = (chunks.forward(model, 0).dense_ND for chunks in (one, same, other))
    assert torch.equal(once, again)
    assert not torch.equal(once, different)


def test_flash_attention_is_taken_where_everything_is_there(make: Any, kernel: Kernel) -> None:
    lines: list[str] = []
    model = make()
    set_attention(model, BF16, GPU, lines.append)
    assert (model.packed, lines) == (True, ["attention by flash-attention, chunks without padding"])


@pytest.mark.parametrize("missing", ["cuda", "half precision", "package", "capability", "choice", "support", "import"])
def test_where_anything_is_missing_chunks_are_padded_under_sdpa(
    missing: str, make: Any, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import utils

    lines: list[str] = []
    model = make()
    engine = {
        "half precision": EngineConfig(precision="fp32"),
        "choice": EngineConfig(precision="bf16", attention="sdpa"),
    }
    if missing == "package":
        monkeypatch.setattr(utils, "is_flash_attn_2_available", lambda: False)
    if missing == "capability":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    if missing == "support":
        model.encoder._supports_flash_attn = False
    if missing == "import":
        from transformers import modeling_flash_attention_utils as flash

        monkeypatch.setitem(flash.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2], "general_availability_check", lambda: False)
    set_attention(model, engine.get(missing, BF16), CPU if missing == "cuda" else GPU, lines.append)
    assert (model.packed, lines) == (False, [])
    assert model.encoder.config._attn_implementation == (PRODUCTS if missing == "cuda" else "sdpa")


class Deaf(nn.Module):
    """An encoder that takes every argument and hands on none of those that keep texts apart."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **unused: Any) -> Any:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask)


class Shifted(nn.Module):
    """One that counts positions its own way: no flash-attention would make up for it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, position_ids: Tensor | None = None, **options: Any) -> Any:
        return self.inner(position_ids=None if position_ids is None else position_ids + 3, **options)


@pytest.mark.parametrize("wrapper", [Deaf, Shifted])
def test_a_model_that_would_mix_its_texts_is_found_out(wrapper: Any, make: Any, kernel: Kernel) -> None:
    model = make("bert")
    model.encoder = wrapper(model.encoder)
    assert not can_pack(model)
    set_attention(model, BF16, GPU)
    assert not model.packed
    assert model.encoder.inner.config._attn_implementation == "sdpa"
    # Asked for by name it still attends, over padding.
    set_attention(model, BF16.model_copy(update={"attention": FLASH}), GPU)
    assert not model.packed
    assert model.encoder.inner.config._attn_implementation == FLASH


def test_the_trial_leaves_nothing_behind(make: Any) -> None:
    model = make("bert")
    model.train()
    state = torch.get_rng_state()
    assert can_pack(model)
    assert (model.training, model.packed, model.encoder.config._attn_implementation) == (True, False, "sdpa")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not can_pack(SimpleNamespace()), "a model that knows nothing of packing"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes_the_trial_in_either_precision(family: str, make: Any) -> None:
    assert can_pack(make(family, "cls"))
    assert can_pack(make(family, "mean").bfloat16())


@pytest.mark.parametrize(
    ("engine", "ranks", "message"),
    [
        (BF16, CPU, "engine.attention: 'flash_attention_2' needs CUDA, this run is on cpu: use auto or sdpa"),
        (
            EngineConfig(precision="fp32"),
            GPU,
            "engine.attention: 'flash_attention_2' needs half precision, engine.precision is 'fp32': use bf16, or "
            "attention sdpa",
        ),
    ],
)
def test_what_cannot_run_says_so(engine: EngineConfig, ranks: Ranks, message: str, make: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        set_attention(make(), engine.model_copy(update={"attention": FLASH}), ranks)
    assert str(caught.value) == message


def test_what_is_not_installed_says_so(make: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"^engine.attention: 'flash_attention_2' does not run here \(.+\): use auto or"
    ):
        set_attention(make(), BF16.model_copy(update={"attention": FLASH}), GPU)


def test_nothing_is_said_of_a_model_that_is_still_on_the_cpu(
    make: Any, kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    both(make)
    assert not [record for record in caplog.records if "Flash Attention" in str(record.msg)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", ["xlm-roberta", "bert", "qwen3"])
def test_the_real_kernel(family: str, make: Any) -> None:
    pytest.importorskip("flash_attn", reason="needs the package flash_attn")
    model = make(family, "last_token")
    plain = copy.deepcopy(model).to("cuda")
    set_attention(model, BF16, GPU)
    assert model.packed
    model = model.to("cuda")
    vectors = []
    for one in (model, plain):
        with torch.autocast("cuda", torch.bfloat16):
            inputs = {name: value.to("cuda") for name, value in one.collate(passages(one)).items()}
            vectors.append(values(one(**inputs))[0].float())
    torch.testing.assert_close(*vectors, atol=5e-2, rtol=0)
    own, other = gradients(model, vectors[0]), gradients(plain, vectors[1])
    flat = [torch.cat([each[name].flatten() for name in other]) for each in (own, other)]
    assert float(torch.cosine_similarity(*flat, dim=0)) > 0.98
