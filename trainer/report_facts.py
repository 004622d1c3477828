"""What a report tells of a run, as plain values: log, data, and the model before and after on held-out queries."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.model_folder import read_object
from data_prep.problems import BadInput
from data_prep.progress import say
from data_prep.retrieval_sets import RetrievalSet, load_set
from trainer.config import ModelConfig, RunConfig, parse_config
from trainer.evaluate import compare
from trainer.export import model_of_run
from trainer.inference import TextEncoder
from trainer.preflight import eval_paths
from trainer.retrieval import rank_documents, score_run
from trainer.runlog import read_events

BINS, SHOWN_QUERIES, SHOWN_HITS = 50, 5, 3
METRIC = "nDCG@10"  # by which queries have gained or lost


@dataclass(frozen=True)
class Shown:
    """A document that a model found. similarity: cosine; right: it is relevant."""

    text: str
    similarity: float
    right: bool


@dataclass(frozen=True)
class Query:
    """A query whose ranking changed. found: side (base, tuned) -> its best documents."""

    text: str
    base: float
    tuned: float
    found: dict[str, list[Shown]]


@dataclass
class Comparison:
    """The model before and after on one set. table: see evaluate.compare. edges: of the bins; shares: side -> relevant
    or other -> share of its pairs in each bin. changed: gained or lost -> queries, the largest change first.
    """

    name: str
    queries: int
    documents: int
    table: dict[str, dict]
    edges: list[float] = field(default_factory=list)
    shares: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    changed: dict[str, list[Query]] = field(default_factory=dict)


@dataclass
class Facts:
    """missing: lines that say what could not be shown, and why."""

    run: Path
    record: dict
    config: RunConfig
    events: dict[str, list[dict]]
    manifest: dict
    comparison: Comparison | None = None
    missing: list[str] = field(default_factory=list)

    def series(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of the steps that logged one."""
        return [(event["step"], event[key]) for event in self.events["step"] if event.get(key) is not None]


def read_facts(
    run: Path, baseline: str | None, data: str | None, device: str, trust_remote_code: bool = False
) -> Facts:
    """baseline, data: in place of the run's own model before training and evaluation set, where they were moved.
    trust_remote_code: the models' own code may run; who asks for the page says so, not the run, which may be another's.

    Raises BadInput where there is no run, or what was named by a flag is not there.
    """
    if not (run / "run.json").is_file():
        raise BadInput(f"{run}: no run (it has no run.json); name a run's output_dir")
    record = read_object(run / "run.json")
    config = parse_config(record["config"], str(run / "run.json"))
    events: dict[str, list[dict]] = {"step": [], "evaluation": [], "epoch": [], "start": [], "end": []}
    logged, unread = read_events(run)
    for event in logged:
        events.setdefault(event["event"], []).append(event)
    if not events["step"]:
        raise BadInput(f"{run}: {unread[0] if unread else 'has made no step yet'}")
    facts = Facts(run, record, config, events, read_object(Path(config.data.train) / "manifest.json"))
    facts.missing += unread
    if not facts.manifest:
        facts.missing.append(f"data: {config.data.train} is not here, so only what the run recorded of it is shown")
    try:
        facts.comparison = _compare(facts, baseline, data, device, trust_remote_code)
    except BadInput as error:
        if baseline or data:
            raise
        facts.missing += [f"before and after: {problem}" for problem in error.problems]
    for line in facts.missing:
        say(f"left out: {line}")
    return facts


def _compare(facts: Facts, baseline: str | None, data: str | None, device: str, trust_remote_code: bool) -> Comparison:
    tuned = model_of_run(facts.run)
    place = data or eval_paths(facts.config).get("")
    if place is None:
        raise BadInput("the run has no evaluation set; --data SET names one")
    held_out = load_set(place)
    if facts.config.model.lora.start:
        facts.missing.append(f"{facts.config.model.lora.start}, where training began: before is its base")
    lengths = {key: getattr(facts.config.model, key) for key in ("query_max_len", "passage_max_len")}
    code = {"trust_remote_code": trust_remote_code}
    before = facts.config.model.model_dump() | {"path": baseline or facts.config.model.path} | WHOLE | code
    models = {"base": ModelConfig(**before), "tuned": ModelConfig(path=str(tuned), **lengths, **code)}
    sides = {side: _Side(config, held_out, device) for side, config in models.items()}
    base, after = (side.per_query for side in sides.values())
    made = Comparison(held_out.name, len(after), len(held_out.doc_ids), compare(base, after))
    _add_similarities(made, sides, held_out)
    _add_queries(made, sides, held_out)
    return made


# The model before training, read as the run read it, without the adapter that was trained.
WHOLE = {"finetune": "full", "lora": {}, "quantization_bits": None, "freeze": {}}


class _Side:
    """A model's embeddings of a set, and what it finds there."""

    def __init__(self, config: ModelConfig, data: RetrievalSet, device: str):
        say(f"embedding {data.name} with {config.path}")
        encoder = TextEncoder(config, device)
        queries, documents = encoder.queries(data.query_texts), encoder.passages(data.doc_texts)
        self.per_query = score_run(data.qrels, rank_documents(queries, documents, data))
        self.queries, self.documents = _unit(queries), _unit(documents)

    def best(self, query: int) -> list[tuple[int, float]]:
        """(document, cosine), SHOWN_HITS of them."""
        row = self.documents @ self.queries[query]
        return [(int(i), float(row[i])) for i in np.argsort(-row, kind="stable")[:SHOWN_HITS]]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)


def _add_similarities(made: Comparison, sides: dict[str, _Side], data: RetrievalSet) -> None:
    """Cosines of every query with its relevant documents, and with all others."""
    place = {doc: i for i, doc in enumerate(data.doc_ids)}
    edges = np.linspace(-1.0, 1.0, 2 * BINS + 1)
    counts = {side: {"relevant": np.zeros(2 * BINS), "other": np.zeros(2 * BINS)} for side in sides}
    for number, query in enumerate(data.query_ids):
        right = [place[doc] for doc, grade in data.qrels[query].items() if grade > 0 and doc in place]
        for side, model in sides.items():
            row = (model.documents @ model.queries[number]).clip(-1, 1)
            counts[side]["relevant"] += np.histogram(row[right], edges)[0]
            counts[side]["other"] += np.histogram(np.delete(row, right), edges)[0]
    used = np.flatnonzero(sum(kind for of in counts.values() for kind in of.values()))
    first, last = used[0], used[-1] + 1
    made.edges = [float(edge) for edge in edges[first : last + 1]]
    made.shares = {
        side: {name: (kind / max(kind.sum(), 1))[first:last].tolist() for name, kind in of.items()}
        for side, of in counts.items()
    }


def _add_queries(made: Comparison, sides: dict[str, _Side], data: RetrievalSet) -> None:
    scores = [
        (sides["tuned"].per_query[query][METRIC] - sides["base"].per_query[query][METRIC], number)
        for number, query in enumerate(data.query_ids)
    ]
    ordered = sorted(scores, key=lambda entry: (-entry[0], entry[1]))
    chosen = {
        "gained": [number for change, number in ordered[:SHOWN_QUERIES] if change > 0],
        "lost": [number for change, number in reversed(ordered[-SHOWN_QUERIES:]) if change < 0],
    }
    for kind, numbers in chosen.items():
        made.changed[kind] = [_query(number, sides, data) for number in numbers]


def _query(number: int, sides: dict[str, _Side], data: RetrievalSet) -> Query:
    query = data.query_ids[number]
    found = {
        side: [
            Shown(data.doc_texts[i], cosine, data.qrels[query].get(data.doc_ids[i], 0) > 0)
            for i, cosine in model.best(number)
        ]
        for side, model in sides.items()
    }
    base, tuned = (sides[side].per_query[query][METRIC] for side in ("base", "tuned"))
    return Query(data.query_texts[number], base, tuned, found)
