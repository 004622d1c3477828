"""Training along the path of penalties: what can be learned is learned, what cannot leaves the identity."""

import pytest
import torch
from torch.nn.functional import normalize

from trainer.distributed.collectives import World
from trainer.query_side import fit
from trainer.query_side.collection_loss import Documents, Related
from trainer.query_side.fit import PENALTIES, Queries, batches, choose
from trainer.query_side.maps import KINDS, make_map

D, COUNT = 16, 240
CPU = torch.device("cpu")


def random(count: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(count, D, generator=torch.Generator().manual_seed(seed)), dim=1)


def queries(vectors: torch.Tensor, documents: torch.Tensor) -> Queries:
    related = Related(torch.arange(len(vectors)), documents, torch.ones(len(vectors), dtype=torch.bool))
    return Queries([f"q{n}" for n in range(len(vectors))], vectors, related)


def chosen(turned: bool, kind: str) -> list[fit.Point]:
    """Documents, and queries that are turned by one rotation (turned), or that belong to no document in particular."""
    documents = random(COUNT, 0)
    turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(1))).Q
    vectors = normalize(documents @ turn + 0.5 * documents, dim=1) if turned else random(COUNT, 2)
    everything = queries(vectors, torch.arange(COUNT))
    ids = everything.ids
    parts = everything.take(ids[::2]), everything.take(ids[1::2])
    return choose(World(), make_map(kind, D), *parts, Documents(documents, 0), CPU)


@pytest.mark.parametrize("kind", KINDS)
def test_a_turn_of_the_queries_is_learned_and_helps_queries_of_other_documents(kind, monkeypatch):
    monkeypatch.setattr(fit, "RATE", 3e-2)
    points = chosen(True, kind)
    before = next(point.score for point in points if point.penalty is None)
    assert len(points) == len(PENALTIES) + 1
    assert points[0].penalty is not None and points[0].score > before + 0.1


def test_the_points_of_the_path_differ_and_the_best_comes_first(monkeypatch):
    monkeypatch.setattr(fit, "RATE", 3e-2)
    points = chosen(True, "linear")
    assert [point.score for point in points] == sorted((point.score for point in points), reverse=True)
    by_penalty = {point.penalty: point.map.penalty().item() for point in points}
    assert by_penalty[None] == 0 and len(set(by_penalty.values())) == len(points)
    assert by_penalty[PENALTIES[0]] < by_penalty[PENALTIES[-1]], "a strong penalty stays nearer to the identity"


def test_of_equal_scores_the_identity_comes_first(monkeypatch):
    monkeypatch.setattr(fit, "measured", lambda *_: 0.5)
    assert [point.penalty for point in chosen(False, "linear")] == [None, *PENALTIES]


def test_batches_hold_every_query_once_and_follow_from_seed_and_step():
    for count in (1, 7, 100, 3000):
        rows = batches(count, 0, 5)
        assert sorted(torch.cat(rows).tolist()) == list(range(count))
        assert max(map(len, rows)) <= fit.BATCH
        assert all(map(torch.equal, rows, batches(count, 0, 5)))
    assert not torch.equal(batches(100, 0, 5)[0], batches(100, 0, 6)[0])


def test_pairs_of_a_batch_are_those_of_its_rows():
    positive = torch.tensor([True, False, True, True])
    related = Related(torch.tensor([0, 0, 1, 2]), torch.tensor([5, 6, 7, 8]), positive)
    part = related.of(torch.tensor([2, 0]), 3)
    assert part.queries.tolist() == [1, 1, 0] and part.documents.tolist() == [5, 6, 8]
    assert part.positive.tolist() == [True, False, True]
