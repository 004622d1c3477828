"""Scored pairs: a query and a document each, with how similar they are, in 0..1. Labels are scores of 0 and 1."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.reading.categories import Categories, FieldValues, metadata_of_record
from data_prep.reading.formats import read_records
from data_prep.records import Record
from data_prep.shards.folder import ShardFolder


@dataclass
class ScoredPairs:
    """Scored pairs in memory. A pair is the numbers of its two texts, so every text is stored and embedded once."""

    name: str
    query_texts: list[str]
    doc_texts: list[str]
    pairs: list[tuple[int, int]]  # (number in query_texts, number in doc_texts)
    scores: list[float]  # in the order of pairs, in 0..1
    shards: ShardFolder | None = field(default=None, compare=False, repr=False)  # whose eval split it is
    categories: Categories | None = field(default=None, repr=False)
    fields: list[str] = field(
        default_factory=list, repr=False
    )  # names of the metadata, where categories were asked for

    @property
    def binary(self) -> bool:
        """True if the scores are labels, 0 and 1."""
        return {*self.scores} == {0.0, 1.0}

    @property
    def notes(self) -> list[str]:
        """Lines to print once."""
        return []

    @property
    def parts(self) -> "list[ScoredPairs]":
        """The sets that are evaluated one by one."""
        return [self]


def read_scored_pairs(path: Path, by: str | None = None) -> ScoredPairs:
    """Reads a file of scored pairs, in any format of rows that has scores. by: a field of the rows' metadata, for
    categories. Raises BadInput: bad rows, rows without a score, one score for all."""
    records = list(read_records(path, positive="answer"))
    unscored = sum(record.score is None for record in records)
    if unscored:
        need = '[query, item, score] or {"query", "item", "score"}; a retrieval set is a folder'
        raise BadInput(f"{path}: {unscored:,} of {len(records):,} rows have no score; scored pairs are {need}")
    if not differ(records):
        raise BadInput(f"{path}: every pair has the score {records[0].score:g}: there is nothing to compare")
    return pairs_of(path.name, records, by)


def differ(records: Iterable[Record]) -> bool:
    """Returns True if two of the records have scores that differ; reads no more of them than it needs."""
    scores = (record.score for record in records if record.score is not None)
    first = next(scores, None)
    return any(score != first for score in scores)


def pairs_of(name: str, records: Iterable[Record], by: str | None, shards: ShardFolder | None = None) -> ScoredPairs:
    """Makes scored pairs of records with scores; the score is that of the first positive."""
    queries: dict[str, int] = {}
    docs: dict[str, int] = {}
    pairs, scores, values = [], [], FieldValues(by or "")
    for number, record in enumerate(records):
        query = queries.setdefault(record.query, len(queries))
        pairs.append((query, docs.setdefault(record.positives[0], len(docs))))
        scores.append(record.score)
        if by is not None:
            values.see_query(number, metadata_of_record(record))
    grouped = values.of_pairs(len(pairs)) if by is not None else None
    return ScoredPairs(name, [*queries], [*docs], pairs, scores, shards, grouped, [*values.known])
