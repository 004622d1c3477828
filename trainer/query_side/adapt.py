"""A query adapter for a collection: trained, chosen and judged on queries that name its chunks.

- The documents' vectors are read from the store once and stay as they are. Nothing but queries is embedded.
- Of the queries some train; of those held out, which ask for other documents, one half chooses and one half reports.
- The report is the store's own search, before and after. Without a gain that it can show, the identity is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep.common.console import say
from data_prep.common.errors import BadInput
from data_prep.reading.retrieval_sets import judged_queries, looked_in
from data_prep.stores.base import Chunk, Collection, StoreConfig
from data_prep.stores.open import open_collection
from trainer.engine.start import Runtime
from trainer.evaluation.compare import PerQuery, compare
from trainer.evaluation.ranking_metrics import score_run
from trainer.inference.searching import PROBED, Encoder, mismatch
from trainer.inference.store_record import STATE, UNFINISHED
from trainer.query_side.adapter import QueryAdapter
from trainer.query_side.collection_loss import Related
from trainer.query_side.documents import Stored, read_vectors, share_of
from trainer.query_side.fit import METRIC, Queries, choose
from trainer.query_side.in_store import ranked
from trainer.query_side.maps import make_map
from trainer.run_dir.queries import Halves, halves_of, held_out

METRICS = (METRIC, "MRR@10", "recall@10", "recall@100")
FOUND = 100  # chunks that the store is asked for
HELD_OUT, LEAST = 0.2, 400  # of the queries; at least so many, where that is not more than half of them
BETTER, LEAVE = "better", "leave it as it is"


@dataclass(frozen=True)
class Source:
    """A collection, and the pairs that name its chunks."""

    config: StoreConfig
    where: dict[str, Any] | None
    pairs: Path


@dataclass(frozen=True)
class Shape:
    """The form of an adapter."""

    kind: str  # of maps.KINDS
    rank: int | None = None  # of a linear map


@dataclass(frozen=True)
class Recorded:
    """The facts of an open collection, for ranks that do not open it."""

    name: str
    size: int | None
    about: dict[str, Any]
    normalises: bool
    probed: list[Chunk]

    def chunks(self, page: int = PROBED, embeddings: bool = True):
        return iter(self.probed)


@dataclass(frozen=True)
class Task:
    """The facts of the queries and the collection that every rank has."""

    ids: list[str]  # of the queries
    texts: list[str]
    qrels: dict[str, dict[str, int]]
    related: Related
    training: list[str]
    halves: Halves  # of those held out
    count: int  # chunks
    dim: int
    sample: dict[str, int]  # Stored.sample


def adapt(source: Source, encoder: Encoder, runtime: Runtime, shape: Shape, file: Path) -> QueryAdapter:
    """Returns the adapter, with its result in `facts`. Collective.

    file: a path on a disk that all ranks share, for the vectors; it is deleted. Raises BadInput where the store's
    vectors are not the model's, or the pairs name none of its chunks.
    """
    world = runtime.world
    _check_model(encoder, world.on_first(lambda: _recorded(source)))
    try:
        task = world.on_first(lambda: _prepare(source, file))
        documents = share_of(file, task.count, task.dim, world.rank, world.size)
        vectors = torch.nn.functional.normalize(torch.from_numpy(encoder.queries(task.texts)), dim=1)
        queries = Queries(task.ids, vectors, task.related)
        training, choosing = queries.take(task.training), queries.take(task.halves.choosing)
        model = make_map(shape.kind, task.dim, shape.rank)
        device = torch.device("cpu") if runtime.device.type == "mps" else runtime.device  # which has no float64
        points = choose(world, model, training, choosing, documents, device)
    finally:
        if runtime.is_main:
            file.unlink(missing_ok=True)
    best = points[0]
    layers = [] if best.penalty is None else best.map.layers()
    facts = {
        "dim": task.dim,
        **encoder.identity,
        "query_prompt": encoder.query_prompt,
        "map": shape.kind,
        "rank": shape.rank,
        "penalty": best.penalty,
        "collection": source.config.collection,
        "chunks": task.count,
        "sample": task.sample,
        "queries": {"train": len(task.training), "choose": len(choosing.ids), "report": len(task.halves.reporting)},
        "same_queries": task.halves.same,
        "path": [{"penalty": point.penalty, METRIC: point.score} for point in points],
    }
    adapter = QueryAdapter(layers, facts)
    reporting = queries.take(task.halves.reporting)
    return world.on_first(lambda: judged(adapter, source, task, reporting))


def _check_model(encoder: Encoder, collection: Recorded) -> None:
    """Raises BadInput, on every rank, if the collection's vectors are not the model's. Collective."""
    reason = mismatch(encoder, collection)
    if collection.about.get(STATE) == UNFINISHED:
        reason = "is unfinished: reindex was stopped before its end; run it again"
    if reason:
        error = BadInput(f"--collection {collection.name}: {reason}")
        error.on_every_rank = True
        raise error


def _recorded(source: Source) -> Recorded:
    with open_collection(source.config) as collection:
        size = collection.size
        chunks = [] if size is None else list(islice(collection.chunks(page=PROBED, embeddings=True), PROBED))
        return Recorded(collection.name, size, dict(collection.about), collection.normalises, chunks)


def _prepare(source: Source, file: Path) -> Task:
    """Reads vectors and pairs, and divides the queries."""
    with open_collection(source.config) as collection:
        stored = read_vectors(collection, source.where, file)
    there = looked_in(source.config, source.where)
    texts, qrels, flaws = judged_queries(source.pairs, stored.number_of, there)
    for line in flaws:
        say(line)
    ids = list(texts)
    training, halves = divided(ids, qrels)
    say(halves.note(f"{source.pairs.name} (held out)"))
    facts = len(stored.keys), stored.dim, stored.sample()
    return Task(ids, [*texts.values()], qrels, related(ids, qrels, stored), training, halves, *facts)


def divided(ids: list[str], qrels: Mapping[str, Mapping[str, int]]) -> tuple[list[str], Halves]:
    """Returns the queries that train, and the halves of the others. Raises BadInput for fewer than two queries."""
    if len(ids) < 2:
        raise BadInput("--pairs: one query alone cannot be divided into queries that train and queries that report")
    count = min(max(int(HELD_OUT * len(ids)), LEAST), len(ids) // 2)
    held, grouped = held_out(ids, qrels, count)
    if not grouped:
        say("queries that are held out share documents with those that train: too many queries hang together")
    return [query for query in ids if query not in held], halves_of([q for q in ids if q in held], qrels)


def related(ids: list[str], qrels: Mapping[str, Mapping[str, int]], stored: Stored) -> Related:
    """Returns the pairs that are no negatives: of each query its chunks, and others of the same text."""
    positives = [[stored.number_of[chunk] for chunk in qrels[query] if chunk in stored.number_of] for query in ids]
    judged = np.unique(np.array([number for numbers in positives for number in numbers], dtype=np.int64))
    of_key: dict[int, list[int]] = {}
    for number in np.flatnonzero(np.isin(stored.keys, stored.keys[judged])).tolist():
        of_key.setdefault(int(stored.keys[number]), []).append(number)
    rows = []
    for row, numbers in enumerate(positives):
        same = {copy for number in numbers for copy in of_key[int(stored.keys[number])]}
        rows += [(row, number, number in numbers) for number in sorted(same)]
    askers, documents, positive = (torch.tensor(column) for column in zip(*rows))
    return Related(askers, documents, positive)


def judged(adapter: QueryAdapter, source: Source, task: Task, reporting: Queries) -> QueryAdapter:
    """Returns the adapter with the verdict of the store's own search; the identity where it shows no gain."""
    before = reporting.vectors.numpy()
    with open_collection(source.config) as collection:
        base = searched(collection, before, reporting.ids, task, source.where)
        tuned = (
            base if adapter.is_identity else searched(collection, adapter(before), reporting.ids, task, source.where)
        )
    compared = compare(base, tuned)
    better = compared[METRIC]["interval_95"][0] > 0
    facts = adapter.facts | {"verdict": BETTER if better else LEAVE, "metrics": compared}
    return QueryAdapter(adapter.layers if better else [], facts)


def searched(
    collection: Collection, vectors: np.ndarray, ids: list[str], task: Task, where: dict[str, Any] | None
) -> PerQuery:
    """Returns the metrics of the store's own search with these vectors of the queries."""
    run = ranked(collection, vectors, ids, min(FOUND, task.count), where)
    return score_run({query: task.qrels[query] for query in ids}, run, METRICS)
