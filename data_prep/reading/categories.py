"""Categories of an evaluation set's queries or pairs, by one field of their metadata."""

import json
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from data_prep.records import Record

NOT_METADATA = ("_id", "id", "text", "title", "metadata")  # of a row of corpus.jsonl or queries.jsonl


@dataclass(frozen=True)
class Categories:
    """The categories of queries (by id) or pairs (by number); one of several categories counts in each."""

    field: str
    owner: str  # of the field: "queries", "documents" or "pairs"
    members: dict[str, list]  # category -> its queries or pairs; the largest category first
    without: int  # queries or pairs that have none


@dataclass
class FieldValues:
    """Collects the values of one metadata field while a set is read."""

    name: str
    queries: dict[Hashable, list[str]] = field(default_factory=dict)  # id of a query, or number of a pair
    documents: dict[Hashable, list[str]] = field(default_factory=dict)  # id of a document
    known: dict[str, None] = field(default_factory=dict)  # names of every field, in the order of the rows

    def see_query(self, key: Hashable, metadata: Mapping[str, Any]) -> None:
        self._see(self.queries, key, metadata)

    def see_document(self, key: Hashable, metadata: Mapping[str, Any]) -> None:
        self._see(self.documents, key, metadata)

    def _see(self, side: dict, key: Hashable, metadata: Mapping[str, Any]) -> None:
        self.known.update(dict.fromkeys(metadata))
        values = side.setdefault(key, [])
        values += [text for text in _texts(metadata.get(self.name)) if text not in values]

    def of_pairs(self, count: int) -> Categories | None:
        """Returns the categories of `count` pairs, or None if no pair has the field."""
        return self._grouped("pairs", {number: self.queries.get(number, []) for number in range(count)})

    def of_queries(self, query_ids: Iterable[str], qrels: dict[str, dict[str, int]]) -> Categories | None:
        """Returns the categories of queries: by their own field, or where no query has it by that of their relevant
        documents. None if neither has it."""
        ids = list(query_ids)
        own = self._grouped("queries", {query: self.queries.get(query, []) for query in ids})
        if own:
            return own
        relevant = {query: [doc for doc, grade in qrels[query].items() if grade > 0] for query in ids}
        values = {
            query: [*dict.fromkeys(text for doc in docs for text in self.documents.get(doc, []))]
            for query, docs in relevant.items()
        }
        return self._grouped("documents", values)

    def _grouped(self, owner: str, values: dict[Hashable, list[str]]) -> Categories | None:
        members: dict[str, list] = {}
        for key, texts in values.items():
            for text in texts:
                members.setdefault(text, []).append(key)
        if not members:
            return None
        largest_first = dict(sorted(members.items(), key=lambda one: (-len(one[1]), one[0])))
        return Categories(self.name, owner, largest_first, sum(not texts for texts in values.values()))


def metadata_of_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metadata of a row of corpus.jsonl or queries.jsonl: its object `metadata`, and all other keys."""
    own = row.get("metadata")
    other = {key: value for key, value in row.items() if key not in NOT_METADATA}
    return other | (own if isinstance(own, dict) else {})


def metadata_of_record(record: Record) -> dict[str, Any]:
    """Returns a record's metadata, and its source."""
    return {"source": record.source} | record.metadata


def _texts(value: Any) -> list[str]:
    """Returns the categories that a value names; an object is written as JSON."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, list):
        return [text for one in value for text in _texts(one)]
    return [value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)]
