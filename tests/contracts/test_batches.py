"""The synthetic batches are what :class:`embed_core.types.Targets` says a batch is."""

import pytest
import torch

from embed_core.testing.batches import leaves, permuted, random_batch

torch.set_num_threads(1)


def test_shapes_and_groups() -> None:
    batch, targets = random_batch(6, parts=("dense", "sparse", "multi"), negatives=(2, 0, 1, 3), scores=True)
    assert targets.groups_B1.tolist() == [0, 3, 4, 6, 10, 13, 14]
    assert batch.query.count == 6
    assert batch.passage.count == 14
    for embeddings in batch:
        assert embeddings.sparse is not None
        assert embeddings.multi is not None
        for offsets_N1 in (embeddings.sparse.offsets_N1, embeddings.multi.offsets_N1):
            assert len(offsets_N1) == embeddings.count + 1
    assert all(value.requires_grad and value.is_leaf for value in leaves(batch).values())


def test_repeated_positive_has_one_text_and_one_embedding() -> None:
    batch, targets = random_batch(4, negatives=(1,))
    first, second = targets.positive_columns_B[:2].tolist()
    assert targets.passage_ids_P[first] == targets.passage_ids_P[second]
    assert batch.passage.dense_ND is not None
    assert torch.equal(batch.passage.dense_ND[first], batch.passage.dense_ND[second])
    assert len(set(targets.passage_ids_P.tolist())) == len(targets.passage_ids_P) - 1


def test_without_repeats_every_passage_is_its_own_text() -> None:
    _, targets = random_batch(4, repeats=False)
    assert len(set(targets.passage_ids_P.tolist())) == len(targets.passage_ids_P)


def test_teacher_scores_are_missing_by_whole_rows() -> None:
    _, targets = random_batch(6, negatives=(2,), scores=True)
    assert targets.scores_P is not None
    missing_B3 = targets.scores_P.view(6, 3).isnan()
    assert missing_B3.all(dim=1).tolist() == [False, False, True, False, False, True]
    assert missing_B3.any(dim=1).tolist() == missing_B3.all(dim=1).tolist()


@pytest.mark.parametrize("seed", [0, 1])
def test_permuting_there_and_back_changes_nothing(seed: int) -> None:
    batch, targets = random_batch(5, parts=("dense", "sparse", "multi"), scores=True, seed=seed)
    order = [3, 0, 4, 1, 2]
    back = [order.index(row) for row in range(5)]
    moved, moved_targets = permuted(batch, targets, order)
    again, again_targets = permuted(moved, moved_targets, back)
    for name, value in leaves(batch).items():
        assert torch.equal(value, leaves(again)[name])
    for before, after in zip(targets, again_targets, strict=True):
        if isinstance(before, torch.Tensor):
            assert torch.equal(torch.nan_to_num(before), torch.nan_to_num(after))
    # Row 3 came first, and its group with it.
    assert moved_targets.row_ids_B.tolist() == order
    start, end = targets.groups_B1[3:5].tolist()
    assert moved_targets.passage_ids_P[: end - start].tolist() == targets.passage_ids_P[start:end].tolist()
    assert moved.passage.sparse is not None
    assert batch.passage.sparse is not None
    first = slice(*batch.passage.sparse.offsets_N1[start : start + 2].tolist())
    assert moved.passage.sparse.ids_K[: first.stop - first.start].tolist() == batch.passage.sparse.ids_K[first].tolist()


def test_same_seed_same_batch() -> None:
    first, second, other = random_batch(seed=3)[0], random_batch(seed=3)[0], random_batch(seed=4)[0]
    assert torch.equal(leaves(first)["query.dense"], leaves(second)["query.dense"])
    assert not torch.equal(leaves(first)["query.dense"], leaves(other)["query.dense"])
