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
from trainer.inference.text_encoder import TextEncoder
from trainer.query_side.adapter import QUERY_ENCODER, Layer, QueryAdapter
from trainer.query_side.collection_loss import Related
from trainer.query_side.documents import Stored, read_vectors, share_of
from trainer.query_side.exports.folder import QUERY
from trainer.query_side.fit import METRIC, Parts, Queries, choose
from trainer.query_side.in_store import ranked
from trainer.query_side.lora.query_encoder import QueryEncoder
from trainer.query_side.lora.training import LORA, train_encoder
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

    kind: str  # of maps.KINDS, or LORA
    rank: int | None = None  # of a linear map, or of LoRA's matrices; None: full, or LoRA's default


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


@dataclass(frozen=True)
class Learned:
    """The outcome of training: a map of query vectors, or a query encoder."""

    facts: dict[str, Any]  # how it was chosen
    layers: list[Layer]  # of the map
    encoder: QueryEncoder | None  # None: the model itself
    vectors: np.ndarray | None  # (reporting, d) of the queries that report, as they search now; None: as before


def adapt(
    source: Source, encoder: Encoder, runtime: Runtime, shape: Shape, file: Path
) -> tuple[QueryAdapter, QueryEncoder | None]:
    """Returns the adapter, with its result in `facts`, and the trained encoder where LoRA gains. Collective.

    file: a path on a disk that all ranks share, for the vectors; the caller removes it. Raises BadInput where the
    store's vectors are not the model's, or the pairs name none of its chunks.
    """
    _check_model(encoder, runtime.world.on_first(lambda: _recorded(source)))
    task = runtime.world.on_first(lambda: _prepare(source, file))
    return learn(source, encoder, runtime, shape, task, file)


def learn(
    source: Source, encoder: Encoder, runtime: Runtime, shape: Shape, task: Task, file: Path
) -> tuple[QueryAdapter, QueryEncoder | None]:
    """Trains, chooses, and lets the store judge; see adapt(). file: of read_vectors."""
    world = runtime.world
    documents = share_of(file, task.count, task.dim, world.rank, world.size)
    vectors = torch.nn.functional.normalize(torch.from_numpy(encoder.queries(task.texts)), dim=1)
    queries = Queries(task.ids, vectors, task.related)
    device = torch.device("cpu") if runtime.device.type == "mps" else runtime.device  # which has no float64
    uses = task.training, task.halves.choosing, task.halves.reporting
    parts = Parts(*map(queries.take, uses), documents, device)
    by = _by_lora if shape.kind == LORA else _by_map
    learned = by(encoder, runtime, shape, task, parts)
    facts = {
        "dim": task.dim,
        **encoder.identity,
        "query_prompt": encoder.query_prompt,
        "map": shape.kind,
        "rank": shape.rank,
        "collection": source.config.collection,
        "chunks": task.count,
        "sample": task.sample,
        "queries": dict(zip(("train", "choose", "report"), map(len, uses))),
        "same_queries": task.halves.same,
        **learned.facts,
    }
    adapter = QueryAdapter(learned.layers, facts)
    adapter = world.on_first(lambda: judged(adapter, source, task, parts.reporting, learned.vectors))
    return adapter, learned.encoder if adapter.query_encoder else None


def _by_map(encoder: Encoder, runtime: Runtime, shape: Shape, task: Task, parts: Parts) -> Learned:
    """Learns a map of the queries' vectors. Collective."""
    model = make_map(shape.kind, task.dim, shape.rank)
    points = choose(runtime.world, model, parts.training, parts.choosing, parts.documents, parts.device)
    best = points[0]
    facts = {
        "penalty": best.penalty,
        "path": [{"penalty": point.penalty, METRIC: point.score} for point in points],
    }
    layers = [] if best.penalty is None else best.map.layers()
    vectors = QueryAdapter(layers, {"dim": task.dim})(parts.reporting.vectors.numpy()) if layers else None
    return Learned(facts, layers, None, vectors)


def _by_lora(encoder: TextEncoder, runtime: Runtime, shape: Shape, task: Task, parts: Parts) -> Learned:
    """Learns the encoder of the queries. Collective."""
    texts = dict(zip(task.ids, task.texts))
    learner, points = train_encoder(encoder, runtime, shape.rank, texts, parts)
    best = points[0]
    facts: dict[str, Any] = {
        "rank": learner.rank,
        "epochs": best.epochs,
        "path": [{"epochs": point.epochs, METRIC: point.score} for point in points],
    }
    if not best.epochs:
        return Learned(facts, [], None, None)
    vectors = learner.vectors([texts[query] for query in parts.reporting.ids]).numpy()
    return Learned(facts | {QUERY_ENCODER: QUERY}, [], learner, vectors)


def _check_model(encoder: Encoder, collection: Recorded) -> None:
    """Raises BadInput, on every rank, if the collection's vectors are not the model's. Collective."""
    reason = mismatch(encoder, collection)
    if reason and isinstance(encoder, TextEncoder):
        reason += "; embed it with this model first: python -m trainer.reindex --target NEW"
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


def judged(
    adapter: QueryAdapter, source: Source, task: Task, reporting: Queries, after: np.ndarray | None
) -> QueryAdapter:
    """Returns the adapter with the verdict of the store's own search; the identity where it shows no gain.

    after: (reporting, d) vectors of the same queries, adapted. None: they are the same.
    """
    with open_collection(source.config) as collection:
        base = searched(collection, reporting.vectors.numpy(), reporting.ids, task, source.where)
        tuned = base if after is None else searched(collection, after, reporting.ids, task, source.where)
    compared = compare(base, tuned)
    better = compared[METRIC]["interval_95"][0] > 0
    facts = adapter.facts | {"verdict": BETTER if better else LEAVE, "metrics": compared}
    if not better:
        facts.pop(QUERY_ENCODER, None)
    return QueryAdapter(adapter.layers if better else [], facts)


def searched(
    collection: Collection, vectors: np.ndarray, ids: list[str], task: Task, where: dict[str, Any] | None
) -> PerQuery:
    """Returns the metrics of the store's own search with these vectors of the queries."""
    run = ranked(collection, vectors, ids, min(FOUND, task.count), where)
    return score_run({query: task.qrels[query] for query in ids}, run, METRICS)
