"""InfoNCE against its closed form; masked documents get exactly no gradient; a target is never masked."""

import math

import pytest
import torch
import torch.nn.functional as F

from trainer.losses import duplicate_mask, info_nce


def unit(rows: int, size: int = 8, seed: int = 0) -> torch.Tensor:
    return F.normalize(
        torch.randn(rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1
    )


def rows_of(excluded: torch.Tensor):
    return lambda start, stop: excluded[start:stop].clone()


@pytest.mark.parametrize("rows_per_tile", [1, 2, 100])
def test_tiles_pass_gradcheck_and_give_the_dense_gradient(monkeypatch, rows_per_tile):
    monkeypatch.setattr("trainer.losses.TILE_ELEMENTS", rows_per_tile * 7)
    queries, documents = unit(5).requires_grad_(), unit(7, seed=1).requires_grad_()
    target, excluded = torch.tensor([0, 1, 2, 3, 6]), torch.rand(5, 7, generator=torch.manual_seed(0)) < 0.2
    assert torch.autograd.gradcheck(
        lambda q, d: info_nce(q, d, target, rows_of(excluded), 0.1).loss, (queries, documents)
    )
    logits = (queries @ documents.T / 0.1).masked_fill(excluded.scatter(1, target[:, None], False), float("-inf"))
    dense = torch.autograd.grad(F.cross_entropy(logits, target, reduction="sum"), [queries, documents])
    tiled = torch.autograd.grad(info_nce(queries, documents, target, rows_of(excluded), 0.1).loss, [queries, documents])
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(dense, tiled))


@pytest.mark.parametrize("temperature", [1.0, 0.05, 0.005])
def test_equals_the_formula(temperature):
    queries, documents = unit(3), unit(5, seed=1)
    target = torch.tensor([0, 1, 4])
    got = info_nce(queries, documents, target, None, temperature).loss.item()
    expected = 0.0
    for i, t in enumerate(target.tolist()):
        scores = [float(queries[i] @ d) / temperature for d in documents]
        top = max(scores)
        expected += top + math.log(sum(math.exp(s - top) for s in scores)) - scores[t]
    assert got == pytest.approx(expected, rel=1e-5)


def test_equals_sentence_transformers():
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    queries, positives, negatives = unit(6).float(), unit(6, seed=1).float(), unit(6, seed=2).float()
    theirs = MultipleNegativesRankingLoss(model=None, scale=20.0)
    expected = theirs.compute_loss_from_embeddings([queries, positives, negatives], None).item()
    ours = info_nce(queries, torch.cat([positives, negatives]), torch.arange(6), None, 0.05).loss.item() / 6
    assert ours == pytest.approx(expected, abs=1e-6)


def test_a_masked_document_gets_exactly_no_gradient_and_an_unmasked_duplicate_does():
    queries, documents = unit(2), unit(3, seed=1).requires_grad_()
    target = torch.tensor([0, 1])
    excluded = torch.zeros(2, 3, dtype=torch.bool)
    excluded[:, 2] = True
    (masked,) = torch.autograd.grad(info_nce(queries, documents, target, rows_of(excluded), 0.1).loss, documents)
    (plain,) = torch.autograd.grad(info_nce(queries, documents, target, None, 0.1).loss, documents)
    assert masked[2].abs().max() == 0
    assert plain[2].abs().max() > 0


def test_a_positive_is_never_masked():
    queries, documents = unit(2), unit(2, seed=1)
    target = torch.tensor([0, 1])
    everything = torch.ones(2, 2, dtype=torch.bool)
    assert info_nce(queries, documents, target, rows_of(everything), 0.1).loss.item() == 0.0  # only the target is left


def test_statistics_count_negatives_and_masked():
    excluded = torch.tensor([[True, False, True], [False, False, False]])
    stats = info_nce(unit(2), unit(3, seed=1), torch.tensor([0, 1]), rows_of(excluded), 0.1).stats
    assert stats[2] == 3  # 6 pairs, 2 targets, 1 masked (the other mark is on a target)
    assert stats[3] == 1


def test_duplicates_are_found_by_text_by_document_id_and_by_query():
    #              text  doc  query        row 0 has positives with text keys 1 and 9 and document key 50
    doc_keys = torch.tensor([[1, 50, 100], [2, 60, 200], [9, -1, -1], [7, 50, -1], [8, -1, 100], [5, -1, -1]])
    row_keys = torch.tensor([[1, 9, 50], [2, 60, -2]])
    mask = duplicate_mask(row_keys, torch.tensor([100, 200]), doc_keys)
    assert mask.tolist() == [[True, False, True, True, True, False], [False, True, False, False, False, False]]
