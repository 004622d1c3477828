"""Values of single queries in a run directory, so that two models can be compared on the same queries later.

- OUT/queries/step-N.json: set -> query id -> value of one metric, of the evaluation after step N.
- OUT/queries/halves.json: the queries that choose the best model, and those that report the verdict.

Never imports torch.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.common.files import write_json
from data_prep.texts.tokenizer_rules import read_object
from trainer.config.sections import TRAIN_LOSS, WatchConfig

FOLDER = "queries"
FEW = 100  # queries below which all of them choose and report: a half would show too little
SALT = "embedfleet halves 1"  # the same set has the same halves in every run
UNEVEN = 1 / 3  # share of the queries that each half has at least, where groups are kept together

Values = dict[str, dict[str, float]]  # set -> query id -> value


@dataclass(frozen=True)
class Halves:
    """The queries of a set by their use."""

    choosing: tuple[str, ...]  # in the order of the set
    reporting: tuple[str, ...]
    grouped: bool = True  # queries that share a relevant document are in the same half

    @property
    def sides(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self.choosing, self.reporting

    @property
    def same(self) -> bool:
        """True if the same queries choose and report."""
        return self.choosing == self.reporting

    def note(self, name: str) -> str:
        """Returns a line about the set `name`."""
        if self.same:
            few = f"{name} has {len(self.choosing)} queries, fewer than {FEW}"
            return f"{few}: the same ones choose the best model and report on it, which flatters it"
        counts = f"{len(self.choosing)} queries of {name} choose the best model, {len(self.reporting)} others report"
        split = "" if self.grouped else "; the halves share documents, too many queries hang together"
        return f"{counts} on it{split}"


def watched(metric: str) -> tuple[str, str]:
    """Returns the (set, metric) on which a run's models are compared. metric: watch.metric; where it is train_loss, no
    set has it, and the default metric replaces it."""
    name = WatchConfig().metric if metric == TRAIN_LOSS else metric
    return tuple(name.rpartition("/")[::2])


def halves_of(queries: Sequence[str], qrels: Mapping[str, Mapping[str, int]]) -> Halves:
    """Divides queries by a salted hash of their ids; those that share a relevant document stay together if possible."""
    if len(queries) < FEW:
        return Halves(tuple(queries), tuple(queries))
    for groups, grouped in ((together(queries, qrels), True), ([[query] for query in queries], False)):
        chosen = _fill(groups, (len(queries) + 1) // 2)
        if not grouped or min(len(chosen), len(queries) - len(chosen)) >= UNEVEN * len(queries):
            break
    sides = [tuple(query for query in queries if (query in chosen) == choosing) for choosing in (True, False)]
    return Halves(*sides, grouped)


def held_out(queries: Sequence[str], qrels: Mapping[str, Mapping[str, int]], most: int) -> tuple[set[str], bool]:
    """Returns up to `most` queries, drawn by a salted hash of their ids, and True if no other query shares a relevant
    document with them; too many that hang together are taken apart."""
    chosen = _fill(together(queries, qrels), most)
    if len(chosen) >= UNEVEN * most:
        return chosen, True
    return _fill([[query] for query in queries], most), False


def _fill(groups: Iterable[list[str]], most: int) -> set[str]:
    """Takes groups in the order of their hashes, of each that still fits all queries, up to `most` in all."""
    chosen: set[str] = set()
    for group in sorted(groups, key=lambda group: hashlib.sha256(f"{SALT} {min(group)}".encode()).digest()):
        if len(chosen) + len(group) <= most:
            chosen.update(group)
    return chosen


def together(queries: Sequence[str], qrels: Mapping[str, Mapping[str, int]]) -> list[list[str]]:
    """Returns the connected groups of queries that share relevant documents."""
    parent = {query: query for query in queries}

    def root(query: str) -> str:
        while parent[query] != query:
            parent[query] = query = parent[parent[query]]
        return query

    first: dict[str, str] = {}  # document -> the first query it is relevant to
    for query in queries:
        for document, grade in qrels.get(query, {}).items():
            if grade > 0:
                parent[root(query)] = root(first.setdefault(document, query))
    groups: dict[str, list[str]] = {}
    for query in queries:
        groups.setdefault(root(query), []).append(query)
    return list(groups.values())


def mean_of(values: Mapping[str, float], queries: Sequence[str]) -> float:
    """Returns the mean, rounded once: the same numbers in another order have the same mean."""
    return math.fsum(values[query] for query in queries) / len(queries)


def write_values(run_dir: Path, step: int, values: Values) -> None:
    write_json(_path(run_dir, step), {"step": step, "values": values})


def read_values(run_dir: Path, step: int) -> Values:
    """Returns the values after a step; empty if they were not kept."""
    return read_object(_path(run_dir, step)).get("values", {})


def write_halves(run_dir: Path, halves: Halves) -> None:
    write_json(run_dir / FOLDER / "halves.json", {"choosing": halves.choosing, "reporting": halves.reporting})


def _path(run_dir: Path, step: int) -> Path:
    return run_dir / FOLDER / f"step-{step}.json"
