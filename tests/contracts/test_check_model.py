"""`check_model` passes an honest model and catches each broken promise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from embed_core.testing import check_model, encode
from embed_core.types import Embeddings, Encoded, MultiVectors, ScoreWeights, SparseVectors

torch.set_num_threads(1)
ITEMS = ["a", "a long text about badgers", "b b", "a"]


class Letters(nn.Module):
    """Mean of letter vectors (dense), a weight per letter (sparse), the letter vectors (multi)."""

    scores: Mapping[str, ScoreWeights] = {"dense": {"dense": 1.0}, "all": {"dense": 1.0, "sparse": 0.3, "multi": 1.0}}

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.table = nn.Embedding(128, 8)

    def tokenize(self, items: Sequence[str], role: str, prompts: Sequence[str | None]) -> list[Encoded]:
        ids = [[ord(letter) % 128 for letter in text] for text in items]
        return [Encoded(key=bytes(row), length=len(row), data={"ids": row}) for row in ids]

    def collate(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        longest = max(one.length for one in encoded)
        return {"ids_NL": torch.tensor([one.data["ids"] + [0] * (longest - one.length) for one in encoded])}

    def forward(self, ids_NL: Tensor) -> Embeddings:
        mask_NL = ids_NL > 0
        hidden_NLD = self.table(ids_NL)
        lengths_N = mask_NL.sum(1)
        offsets_N1 = torch.cat([torch.zeros(1, dtype=torch.int64), lengths_N.cumsum(0)])
        dense_ND = (hidden_NLD * mask_NL[..., None]).sum(1) / lengths_N[:, None]
        return Embeddings(dense_ND, self.lexical(ids_NL, hidden_NLD), MultiVectors(hidden_NLD[mask_NL], offsets_N1))

    def lexical(self, ids_NL: Tensor, hidden_NLD: Tensor) -> SparseVectors:
        ids, weights, counts = [], [], [0]
        for ids_L, hidden_LD in zip(ids_NL, hidden_NLD, strict=True):
            unique = sorted({int(letter) for letter in ids_L if letter > 0})
            ids.extend(unique)
            weights.extend(hidden_LD[ids_L == letter].sum(-1).relu().amax() for letter in unique)
            counts.append(counts[-1] + len(unique))
        return SparseVectors(torch.stack(weights), torch.tensor(ids), torch.tensor(counts))


def test_honest_model_passes_and_keeps_its_mode() -> None:
    model = Letters()
    model.eval()
    check_model(model, ITEMS)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_encode_restores_the_mode() -> None:
    model = Letters()
    assert encode(model, ITEMS).count == 4
    assert model.training


class PaddingLeaks(Letters):
    def forward(self, ids_NL: Tensor) -> Embeddings:
        return super().forward(ids_NL)._replace(dense_ND=self.table(ids_NL).mean(1))


class NeighboursLeak(Letters):
    def forward(self, ids_NL: Tensor) -> Embeddings:
        found = super().forward(ids_NL)
        assert found.dense_ND is not None
        return found._replace(dense_ND=found.dense_ND - found.dense_ND.mean(0))


class OneRow(Letters):
    def forward(self, ids_NL: Tensor) -> Embeddings:
        found = super().forward(ids_NL)
        assert found.dense_ND is not None
        return found._replace(dense_ND=found.dense_ND[:1])


class NoMulti(Letters):
    def forward(self, ids_NL: Tensor) -> Embeddings:
        return super().forward(ids_NL)._replace(multi=None)


class IdTwice(Letters):
    def lexical(self, ids_NL: Tensor, hidden_NLD: Tensor) -> SparseVectors:
        found = super().lexical(ids_NL, hidden_NLD)
        ids_K = found.ids_K.clone()
        ids_K[2] = ids_K[1]
        return found._replace(ids_K=ids_K)


class ShortOffsets(Letters):
    def lexical(self, ids_NL: Tensor, hidden_NLD: Tensor) -> SparseVectors:
        found = super().lexical(ids_NL, hidden_NLD)
        return found._replace(offsets_N1=found.offsets_N1[:-1])


class OffsetsMissTheEnd(Letters):
    def lexical(self, ids_NL: Tensor, hidden_NLD: Tensor) -> SparseVectors:
        found = super().lexical(ids_NL, hidden_NLD)
        offsets_N1 = found.offsets_N1.clone()
        offsets_N1[-1] -= 1
        return found._replace(offsets_N1=offsets_N1)


class NotFinite(Letters):
    def forward(self, ids_NL: Tensor) -> Embeddings:
        found = super().forward(ids_NL)
        assert found.dense_ND is not None
        return found._replace(dense_ND=found.dense_ND / 0)


class NoGradient(Letters):
    def forward(self, ids_NL: Tensor) -> Embeddings:
        return Embeddings(*(_detached(part) for part in super().forward(ids_NL)))


def _detached(part: Any) -> Any:
    detached = part.detach().requires_grad_() if isinstance(part, Tensor) and part.is_floating_point() else part
    return type(part)(*map(_detached, part)) if isinstance(part, tuple) else detached


class Frozen(Letters):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class BareTensor(Letters):
    def forward(self, ids_NL: Tensor) -> Any:
        return super().forward(ids_NL).dense_ND


class LosesAText(Letters):
    def tokenize(self, items: Sequence[str], role: str, prompts: Sequence[str | None]) -> list[Encoded]:
        return super().tokenize(items, role, prompts)[:3]


class PadsInTokenize(Letters):
    def tokenize(self, items: Sequence[str], role: str, prompts: Sequence[str | None]) -> list[Encoded]:
        longest = max(map(len, items))
        return super().tokenize([text.ljust(longest) for text in items], role, prompts)


class CountsNothing(Letters):
    def tokenize(self, items: Sequence[str], role: str, prompts: Sequence[str | None]) -> list[Encoded]:
        return [Encoded(one.key, 0, one.data) for one in super().tokenize(items, role, prompts)]


class OneKeyForAll(Letters):
    def tokenize(self, items: Sequence[str], role: str, prompts: Sequence[str | None]) -> list[Encoded]:
        return [Encoded(b"key", one.length, one.data) for one in super().tokenize(items, role, prompts)]


class TextKey(Letters):
    def tokenize(self, items: Sequence[str], role: str, prompts: Sequence[str | None]) -> list[Encoded]:
        texts = super().tokenize(items, role, prompts)
        return [Encoded(item, one.length, one.data) for item, one in zip(items, texts, strict=True)]  # type: ignore[arg-type]


class CollatesLists(Letters):
    def collate(self, encoded: Sequence[Encoded]) -> dict[str, Any]:
        return {"ids_NL": super().collate(encoded)["ids_NL"].tolist()}


class NoWayToScore(Letters):
    scores: Mapping[str, ScoreWeights] = {}


class UnknownPart(Letters):
    scores: Mapping[str, Any] = {"lexical": {"lexical": 1.0}}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (PaddingLeaks, "item 0, encoded with others and alone: dense differs by"),
        (NeighboursLeak, "encoded with others and alone: dense differs"),
        (OneRow, "dense has 1 rows for 4 texts"),
        (NoMulti, r"scores name \['multi'\], which forward does not return"),
        (IdTwice, "text 1 has a lexical id twice"),
        (ShortOffsets, "sparse: 4 offsets for 4 texts, not 5"),
        (OffsetsMissTheEnd, "sparse: the offsets must run from 0 to"),
        (NotFinite, "text 0: dense is not finite"),
        (NoGradient, "reaches no parameter"),
        (Frozen, r"no parameter requires a gradient"),
        (BareTensor, "must return Embeddings, not Tensor"),
        (LosesAText, "tokenize gave 3 texts for 4 items"),
        (PadsInTokenize, "item 0: the key depends on the other items"),
        (CountsNothing, "item 0 has length 0"),
        (OneKeyForAll, "items 0 and 1 share a key but not their data"),
        (TextKey, "key must be bytes, not str"),
        (CollatesLists, "ids_NL is list, not a tensor"),
        (NoWayToScore, "at least one way to rank"),
        (UnknownPart, r"weighs \['lexical'\]"),
    ],
)
def test_broken_promise_is_named(broken: type[Letters], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_model(broken(), ITEMS)


def test_what_is_no_module_is_named() -> None:
    with pytest.raises(AssertionError, match=r"must be an nn.Module, str is none"):
        check_model("model", ITEMS)  # type: ignore[arg-type]
