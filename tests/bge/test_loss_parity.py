"""The unified loss against FlagEmbedding's own forward on a tiny random XLM-RoBERTa: terms, total, gradients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from FlagEmbedding.finetune.embedder.encoder_only.m3.modeling import EncoderOnlyEmbedderM3Model
from torch import Tensor, nn
from transformers import XLMRobertaConfig, XLMRobertaModel

from embed_bge.loss_config import BGEUnifiedConfig
from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.embeddings import offsets_of
from embed_core.types import Batch, Embeddings, LossOutput, MultiVectors, SparseVectors, Targets

torch.set_num_threads(1)
VOCABULARY, HIDDEN = 40, 16
SPECIAL = {"cls_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "unk_token_id": 3}
B, G = 4, 3
QUERY_TOKENS, PASSAGE_TOKENS = 6, 9
TEACHER = [3.0, 1.0, 0.5, 2.0, 2.5, -1.0, 0.0, 0.1, 0.2, 1.0, -3.0, 1.5]
NO_MASK = {"same_text": False, "same_id": False}


class Recording(EncoderOnlyEmbedderM3Model):
    """FlagEmbedding's model, which also remembers what it encoded and the terms it added up."""

    def encode(self, features: Any) -> Any:
        self.encoded = [*getattr(self, "encoded", []), super().encode(features)]
        return self.encoded[-1]

    def _compute_in_batch_neg_loss(self, *args: Any, **kwargs: Any) -> Any:
        scores, loss = super()._compute_in_batch_neg_loss(*args, **kwargs)
        self.terms = [*getattr(self, "terms", []), loss.detach().clone()]
        return scores, loss


def reference(dtype: torch.dtype, **options: Any) -> Recording:
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
    )
    parts = {
        "model": XLMRobertaModel(config, add_pooling_layer=False),
        "colbert_linear": nn.Linear(HIDDEN, HIDDEN),
        "sparse_linear": nn.Linear(HIDDEN, 1),
    }
    model = Recording(parts, SimpleNamespace(**SPECIAL), temperature=0.02, normalize_embeddings=True, **options)
    model.to(dtype).train()
    return model


def features(count: int, tokens: int, seed: int) -> dict[str, Tensor]:
    """Texts of one length, so that FlagEmbedding's zero vectors for padding do not come in."""
    ids = torch.randint(4, VOCABULARY, (count, tokens), generator=torch.Generator().manual_seed(seed))
    ids[:, 0], ids[:, -1] = SPECIAL["cls_token_id"], SPECIAL["eos_token_id"]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def as_embeddings(encoded: tuple[Tensor, Tensor | None, Tensor | None], input_ids: Tensor) -> Embeddings:
    """FlagEmbedding's tensors in our flat form, gradient intact: lexical weights of the ids that occur."""
    dense, lexical, colbert = encoded
    if lexical is None or colbert is None:
        return Embeddings(dense)
    distinct = [[i for i in sorted(set(row)) if i not in SPECIAL.values()] for row in input_ids.tolist()]
    rows = torch.tensor([n for n, ids in enumerate(distinct) for _ in ids])
    ids = torch.tensor([i for row in distinct for i in row])
    return Embeddings(
        dense,
        SparseVectors(lexical[rows, ids], ids, offsets_of(torch.tensor([len(row) for row in distinct]))),
        MultiVectors(colbert.flatten(0, 1), offsets_of(torch.tensor([colbert.shape[1]] * colbert.shape[0]))),
    )


def targets_of(scores: list[float] | None, step: int) -> Targets:
    return Targets(
        groups_B1=torch.arange(B + 1) * G,
        row_ids_B=torch.arange(B),
        query_ids_B=torch.arange(B),
        passage_ids_P=torch.arange(B * G),
        passage_keys_P=torch.zeros(B * G, dtype=torch.int64),
        positives_K=torch.zeros(0, dtype=torch.int64),
        positive_offsets_B1=torch.zeros(B + 1, dtype=torch.int64),
        scores_P=None if scores is None else torch.tensor(scores),
        step=step,
    )


def ours(model: Recording, ids: tuple[Tensor, Tensor], targets: Targets, options: dict[str, Any]) -> LossOutput:
    loss = BGEUnifiedConfig(mask=NO_MASK, **options).build(BuildContext(registry=Registry()))
    query, passage = (as_embeddings(encoded, i) for encoded, i in zip(model.encoded, ids, strict=True))
    output: LossOutput = loss(Batch(query, passage), targets)
    return output


CASES: dict[str, tuple[dict[str, Any], list[float] | None, int]] = {
    "plain unified": ({}, None, 0),
    "self-distill": ({"use_self_distill": True}, None, 0),
    "self-distill before its start": ({"use_self_distill": True, "self_distill_start_step": 5}, None, 5),
    "self-distill after its start": ({"use_self_distill": True, "self_distill_start_step": 5}, None, 6),
    "kl_div": ({"kd_loss_type": "kl_div"}, TEACHER, 0),
    "m3_kd_loss": ({"kd_loss_type": "m3_kd_loss"}, TEACHER, 0),
    "kl_div and self-distill": ({"kd_loss_type": "kl_div", "use_self_distill": True}, TEACHER, 0),
    "m3_kd_loss and self-distill": ({"kd_loss_type": "m3_kd_loss", "use_self_distill": True}, TEACHER, 0),
    "dense only": ({"unified_finetuning": False}, None, 0),
    "dense only, kl_div": ({"unified_finetuning": False, "kd_loss_type": "kl_div"}, TEACHER, 0),
    "dense only, m3_kd_loss": ({"unified_finetuning": False, "kd_loss_type": "m3_kd_loss"}, TEACHER, 0),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_terms_total_and_gradients_equal_flagembedding(case: str, dtype: torch.dtype) -> None:
    options, scores, step = CASES[case]
    model = reference(dtype, **options)
    model.step = step
    queries, passages = features(B, QUERY_TOKENS, 1), features(B * G, PASSAGE_TOKENS, 2)
    theirs = model(queries, passages, scores).loss
    settings = {**options, "knowledge_distillation": scores is not None}
    ids = queries["input_ids"], passages["input_ids"]
    output = ours(model, ids, targets_of(scores, step), settings)

    torch.testing.assert_close(output.loss, theirs, rtol=0, atol=1e-5)
    for name, term in zip(["dense", "sparse", "multi", "ensemble"], model.terms, strict=False):
        torch.testing.assert_close(output.metrics[name], term, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for name, (mine, other) in gradients(model, ids, output.loss, theirs).items():
        scale = max(1.0, other.abs().max().item())
        torch.testing.assert_close(mine / scale, other / scale, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def gradients(
    model: Recording, ids: tuple[Tensor, Tensor], mine: Tensor, theirs: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Of both losses, by every embedding and by every weight of the model."""
    wanted = {name: value for name, value in model.named_parameters() if value.requires_grad}
    for side, encoded in zip(["query", "passage"], model.encoded, strict=True):
        wanted |= {
            f"{side} {kind}": v for kind, v in zip(["dense", "sparse", "multi"], encoded, strict=True) if v is not None
        }
    names, values = list(wanted), list(wanted.values())
    found = [torch.autograd.grad(loss, values, retain_graph=True, allow_unused=True) for loss in (mine, theirs)]
    pairs = {}
    for name, a, b in zip(names, *found, strict=True):
        assert (a is None) == (b is None), name
        if a is None:
            continue
        if name.endswith("sparse"):
            # FlagEmbedding's vector is as wide as the vocabulary; only ids that occur lead back to the model.
            occurs = torch.zeros_like(b, dtype=torch.bool).scatter_(1, ids[name.startswith("passage")], True)
            occurs[:, list(SPECIAL.values())] = False
            assert occurs.any()
            a, b = a * occurs, b * occurs
        pairs[name] = a, b
    assert len(pairs) > 10
    return pairs


def test_the_cases_differ_from_each_other() -> None:
    """Otherwise an option could be ignored on both sides."""
    queries, passages = features(B, QUERY_TOKENS, 1), features(B * G, PASSAGE_TOKENS, 2)
    losses = {}
    for case, (options, scores, step) in CASES.items():
        model = reference(torch.float64, **options)
        model.step = step
        losses[case] = model(queries, passages, scores).loss.item()
    assert losses["plain unified"] == pytest.approx(losses.pop("self-distill before its start"))
    assert losses["self-distill"] == pytest.approx(losses.pop("self-distill after its start"))
    distinct = {round(value, 6) for value in losses.values()}
    assert len(distinct) == len(losses)
