"""Training a map of query vectors along a path from strong to weak regularisation, and choosing on held-out queries.

- The strongest penalty comes first and begins at the identity; each weaker one begins where the one before ended.
- After each, the map is measured on the queries that choose. The identity is measured too and wins a tie.
- Every rank has all queries and its share of the documents; all train the same map.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.distributed.collectives import World
from trainer.evaluation.ranking_metrics import score_run
from trainer.query_side.collection_loss import Documents, Related, collection_loss
from trainer.query_side.maps import QueryMap
from trainer.ranking.keys import NOTHING, numbers_of, scores_of
from trainer.ranking.search import Share, search

PENALTIES = (1.0, 0.3, 0.1, 0.05, 0.02, 0.01)  # times the sum of squares of the map's parameters
EPOCHS = 4  # of each penalty
BATCH = 256  # queries
LEAST_STEPS = 12  # of an epoch, with smaller batches where there are few queries
RATE = 1e-3  # of Adam (Kingma and Ba 2015)
TEMPERATURE = 0.03
METRIC, DEPTH = "nDCG@10", 10


@dataclass(frozen=True)
class Queries:
    """Query vectors, and which documents answer them."""

    ids: list[str]
    vectors: Tensor  # (q, d) float32 of length 1, on the CPU
    related: Related  # rows of `vectors`

    def take(self, ids: Sequence[str]) -> "Queries":
        place = {query: row for row, query in enumerate(self.ids)}
        rows = torch.tensor([place[query] for query in ids], dtype=torch.int64)
        return Queries(list(ids), self.vectors[rows], self.related.of(rows, len(self.ids)))


@dataclass(frozen=True)
class Parts:
    """Queries by their use, and this rank's share of the documents that they search."""

    training: Queries
    choosing: Queries
    reporting: Queries
    documents: Documents
    device: torch.device  # of the scores


@dataclass(frozen=True)
class Point:
    """A map on the path, and its mean METRIC over the queries that choose."""

    penalty: float | None  # None: the identity
    map: QueryMap
    score: float


def path(
    world: World, model: QueryMap, training: Queries, documents: Documents, device: torch.device, seed: int = 0
) -> Iterator[tuple[float, QueryMap]]:
    """Yields the map after each penalty; it is trained in place. Collective."""
    model.to(device)
    steps = 0
    for penalty in PENALTIES:
        optimizer = torch.optim.Adam(model.parameters(), RATE)
        for _ in range(EPOCHS):
            for rows in batches(len(training.ids), seed, steps):
                loss = batch_loss(world, model, training, rows, documents, device) + penalty * model.penalty()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                steps += 1
        yield penalty, model


def batches(count: int, seed: int, step: int) -> list[Tensor]:
    """Returns the rows of an epoch's batches, in an order that follows from the seed and the first step."""
    size = min(BATCH, max(1, -(-count // LEAST_STEPS)))
    order = np.random.default_rng([seed, step]).permutation(count)
    return list(torch.from_numpy(order).split(size))


def batch_loss(
    world: World, model: QueryMap, training: Queries, rows: Tensor, documents: Documents, device: torch.device
) -> Tensor:
    """Returns the mean loss of some queries against the whole collection. Collective."""
    related = training.related.of(rows, len(training.ids))
    return collection_loss(world, model(training.vectors[rows].to(device)), documents, related, TEMPERATURE)


def choose(
    world: World, model: QueryMap, training: Queries, choosing: Queries, documents: Documents, device: torch.device
) -> list[Point]:
    """Trains, and returns the measured maps, best first. Collective; the same on every rank."""
    points = [Point(None, copy.deepcopy(model), measured(world, choosing.vectors, choosing, documents, device))]
    for penalty, trained in path(world, model, training, documents, device):
        with torch.no_grad():
            vectors = trained(choosing.vectors.to(device)).cpu()
        score = measured(world, vectors, choosing, documents, device)
        points.append(Point(penalty, copy.deepcopy(trained).cpu(), score))
    return sorted(points, key=lambda point: -point.score)  # stable: of equal ones the strongest penalty


def measured(world: World, vectors: Tensor, queries: Queries, documents: Documents, device: torch.device) -> float:
    """Returns the mean METRIC of an exact search with these vectors of the queries. Collective."""
    count = len(documents.vectors)
    share = Share(documents.vectors, torch.arange(documents.first, documents.first + count))
    run: dict[str, dict[str, float]] = {}
    for first, keys in search(world, vectors, share, DEPTH, device):
        for query, row in zip(queries.ids[first:], keys.cpu()):
            row = row[row != NOTHING]
            run[query] = {str(n): s for n, s in zip(numbers_of(row).tolist(), scores_of(row).tolist())}
    per_query = score_run(judgements(queries), run, (METRIC,))
    return float(np.mean([values[METRIC] for values in per_query.values()]))


def judgements(queries: Queries) -> dict[str, dict[str, int]]:
    """Returns query id -> number of a document, as text -> 1."""
    related, qrels = queries.related, {query: {} for query in queries.ids}
    for row, number in zip(related.queries[related.positive].tolist(), related.documents[related.positive].tolist()):
        qrels[queries.ids[row]][str(number)] = 1
    return qrels
