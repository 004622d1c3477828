"""loss.negatives: own: InfoNCE over the row's own documents is its formula, whatever else the batch holds."""

import math

import pytest
import torch
from torch.autograd import grad, gradcheck

from data_prep.records import text_key
from tests.unit.trainer.loss.test_info_nce import DOC_ROW, TARGET, M, N, unit
from tests.unit.trainer.loss.test_objective import (
    DOCUMENTS,
    NEGATIVE_ROW,
    ROWS,
    TAU,
    apply,
    make_batch,
    make_embeddings,
)
from trainer.config.sections import LossConfig
from trainer.distributed.collectives import World
from trainer.loss.info_nce import STATS, info_nce
from trainer.loss.masks import own_duplicates
from trainer.loss.objective import Objective
from trainer.loss.own_negatives import own_info_nce

NEGATIVE_INDEX = torch.tensor([i for i in range(N) if i not in TARGET.tolist()])
HARD = (TARGET, DOC_ROW[NEGATIVE_INDEX], NEGATIVE_INDEX)


def excluding_others(more: torch.Tensor | None = None):
    """info_nce's mask of all documents of other rows, and of the hard negatives `more`."""
    excluded = DOC_ROW[None] != torch.arange(M)[:, None]
    if more is not None:
        excluded[:, NEGATIVE_INDEX[more]] = True
    return lambda start, stop: (excluded[start:stop].clone(), None)


@pytest.mark.parametrize(
    "options", [{}, {"margin": 0.3}, {"margin": -0.2}, {"ratio": 0.9}, {"margin": -0.1, "ratio": 1.2}]
)
@pytest.mark.parametrize("marked", [[], [0, 3]])
def test_it_is_info_nce_with_the_documents_of_other_rows_masked(options, marked):
    leaves = [unit(M).requires_grad_(), unit(N, seed=1).requires_grad_()]
    leaves.append(torch.tensor(0.2, dtype=torch.float64, requires_grad=True))
    queries, documents, temperature = leaves
    excluded = torch.zeros(len(NEGATIVE_INDEX), dtype=torch.bool)
    excluded[marked] = True
    ours = own_info_nce(queries, documents, *HARD, temperature, excluded=excluded, **options)
    mask = excluding_others(torch.tensor(marked, dtype=torch.int64))
    whole = info_nce(queries, documents, torch.arange(M), TARGET, temperature, mask=mask, **options)
    assert ours.loss.item() == pytest.approx(whole.loss.item(), abs=1e-12)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(grad(ours.loss, leaves), grad(whole.loss, leaves)))
    same = [name in ("positive_similarity", "negative_similarity", "negatives", "correct") for name in STATS]
    assert torch.allclose(ours.stats[same], whole.stats[same])
    assert ours.stats[STATS.index("negatives")] + ours.stats[STATS.index("masked_negatives")] == len(NEGATIVE_INDEX)
    assert gradcheck(
        lambda *x: own_info_nce(*x[:2], *HARD, x[2], excluded=excluded, **options).loss, leaves, fast_mode=True
    )


def test_masked_ones_get_exactly_no_gradient_and_others_some():
    queries, documents = unit(M), unit(N, seed=1).requires_grad_()
    excluded = torch.tensor([True] + [False] * (len(NEGATIVE_INDEX) - 1))
    (masked,) = grad(own_info_nce(queries, documents, *HARD, 0.1, excluded=excluded).loss, documents)
    (plain,) = grad(own_info_nce(queries, documents, *HARD, 0.1).loss, documents)
    assert masked[NEGATIVE_INDEX[0]].abs().max() == 0 and plain[NEGATIVE_INDEX[0]].abs().max() > 0
    assert masked[NEGATIVE_INDEX[-1]].abs().max() > 0


def test_the_objective_is_the_mean_over_rows_and_asks_no_other_rank():
    leaf = make_embeddings().requires_grad_()
    queries, positives, negatives = leaf.split([ROWS, ROWS, len(NEGATIVE_ROW)])
    expected = 0.0
    for row in range(ROWS):
        own = [positives[row], *(negatives[k] for k, owner in enumerate(NEGATIVE_ROW) if owner == row)]
        logits = torch.stack(own) @ queries[row] / TAU
        expected = expected + (logits.logsumexp(0) - logits[0]) / ROWS
    (by_autograd,) = grad(expected, leaf)
    objective = Objective(LossConfig(temperature=TAU, negatives="own"), True)
    gradient, logged = apply(objective, leaf.detach(), make_batch())
    assert logged["loss"] == pytest.approx(expected.item(), rel=1e-9)
    assert torch.allclose(gradient, by_autograd, atol=1e-10)
    assert logged["negatives"] == len(NEGATIVE_ROW)
    half = make_batch(global_rows=2 * ROWS)  # any collective would fail: there is no process group
    gradient, sums = objective(leaf.detach(), half, [[ROWS, DOCUMENTS]] * 2, World(rank=1, size=2))
    assert torch.allclose(gradient, by_autograd / 2, atol=1e-10)
    assert sums[0].item() == pytest.approx(expected.item() / 2) and objective.collectives == 0


def test_beside_a_loss_of_the_whole_batch_only_that_one_sees_other_rows():
    alone = [apply(Objective(LossConfig(temperature=TAU, **loss), True), make_embeddings(), make_batch())[0]
             for loss in ({"negatives": "own"}, {"name": "cosent"})]  # fmt: skip
    mixed = Objective(LossConfig(name={"infonce": 2.0, "cosent": 3.0}, temperature=TAU, negatives="own"), True)
    assert mixed.collectives == 4
    assert torch.allclose(apply(mixed, make_embeddings(), make_batch())[0], 2 * alone[0] + 3 * alone[1], atol=1e-9)


@pytest.mark.parametrize("mask", [True, False])
def test_a_rows_positive_among_its_negatives_is_masked(mask):
    batch = make_batch()
    batch.documents.text[ROWS + 3] = batch.row_keys[NEGATIVE_ROW[3], 0]
    batch.documents.text[ROWS + 0] = batch.row_keys[4, 0]  # of another row: a negative of this one
    objective = Objective(LossConfig(temperature=TAU, negatives="own", mask_duplicates=mask), True)
    gradient, logged = apply(objective, make_embeddings(), batch)
    assert logged["masked_negatives"] == mask
    assert (gradient[2 * ROWS + 3].abs().max() == 0) == mask and gradient[2 * ROWS].abs().max() > 0


def test_own_duplicates_compare_with_every_positive_of_the_own_row():
    keys = torch.tensor([[text_key("a"), text_key("b")], [text_key("c"), -2]])
    rows = torch.tensor([0, 0, 1, 1, 1])
    texts = torch.tensor([text_key(t) for t in ("b", "c", "c", "a", "d")])
    assert own_duplicates(keys, rows, texts).tolist() == [True, False, True, False, False]


@pytest.mark.parametrize("masked", [False, True])
def test_rows_without_negatives_teach_nothing(masked):
    queries, documents = unit(M).requires_grad_(), unit(N, seed=1).requires_grad_()
    nothing = torch.zeros(0, dtype=torch.int64)
    hard = HARD if masked else (TARGET, nothing, nothing)
    out = own_info_nce(queries, documents, *hard, 0.1, margin=3.0)
    assert out.loss == 0 and all(x.abs().max() == 0 for x in grad(out.loss, [queries, documents]))
    assert out.stats[STATS.index("correct")] == M


def test_it_is_finite_at_a_low_temperature_in_single_precision():
    queries, documents = unit(M).float().requires_grad_(), unit(N, seed=1).float().requires_grad_()
    loss = own_info_nce(queries, -documents, *HARD, 0.001).loss
    assert math.isfinite(loss.item()) and all(torch.isfinite(x).all() for x in grad(loss, [queries, documents]))
