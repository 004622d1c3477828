"""Decontamination: finds train rows that hold a text of an evaluation set, as they stream by.

- The held-out texts of a set are its queries and its relevant documents, also without their first line, the title.
- A train row is contaminated if its query, its parent's query (of a variant) or a positive is a held-out text: equal
  after records.normalise or, by option, a near duplicate (near_duplicates.py).
"""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.common.console import say
from data_prep.common.errors import BadInput
from data_prep.reading.retrieval_sets import RetrievalSet, load_evaluation
from data_prep.reading.scored_pairs import ScoredPairs
from data_prep.records import PARENT_QUERY, Record, is_variant, normalise, text_key
from data_prep.remote.copies import local
from data_prep.shards.folder import MANIFEST, open_shards
from data_prep.texts.near_duplicates import CANDIDATES, Bands, jaccard, shingles


class Held(NamedTuple):
    """A held-out text."""

    text: str
    kind: str  # "query" or "document"
    name: str  # of the evaluation set


class Match(NamedTuple):
    """The reason that a row is contaminated."""

    held: Held
    side: str  # of the row: "query" or "positive"
    similarity: float  # 1.0 for equal texts


class HeldOut:
    """The held-out texts of evaluation sets.

    near: least Jaccard similarity (LOWEST to 1) of a near duplicate; None: equal texts only. keys: text_key of every
    held-out text -> the text. unsure: texts that passed although more than CANDIDATES held-out texts were proposed.
    Memory: the texts, and with `near` 8 bytes per text and band.
    """

    def __init__(self, near: float | None = None):
        self.near = near
        self.keys: dict[int, Held] = {}
        self.unsure = 0
        self._index: _Nearest | None = None

    def add(self, name: str, queries: Iterable[str], documents: Iterable[str]) -> None:
        """Adds the texts of one set."""
        for kind, texts in (("query", queries), ("document", documents)):
            for text in texts:
                for part in dict.fromkeys((text, text.partition("\n")[2] if kind == "document" else text)):
                    if part.strip():
                        self.keys.setdefault(text_key(part), Held(part, kind, name))
        self._index = None

    def matches(self, records: list[Record]) -> list[Match | None]:
        """Returns a Match or None for each row. Equal texts take precedence over near ones."""
        matches = [self._equal(record) for record in records]
        if self.near is not None and self.keys:
            self._index = self._index or _Nearest(list(self.keys.values()), self.near)
            unmatched = [row for row, match in enumerate(matches) if match is None]
            texts = [(row, side, text) for row in unmatched for side, text in _texts(records[row])]
            nearest, unsure = self._index.of([text for _, _, text in texts])
            self.unsure += unsure
            for (row, side, _), near in zip(texts, nearest):
                if near and not matches[row]:
                    matches[row] = Match(near[0], side, near[1])
        return matches

    def _equal(self, record: Record) -> Match | None:
        for side, text in _texts(record):
            if held := self.keys.get(text_key(text)):
                return Match(held, side, 1.0)
        return None


def _texts(record: Record) -> list[tuple[str, str]]:
    queries = [record.query, record.metadata[PARENT_QUERY]] if is_variant(record) else [record.query]
    return [*(("query", text) for text in queries), *(("positive", text) for text in record.positives)]


class _Nearest:
    """The held-out texts by band and key."""

    def __init__(self, held: list[Held], similarity: float):
        self.held, self.similarity = held, similarity
        self.bands = Bands(similarity, sides=1)
        keys, self.sizes = self.bands.keys([[[normalise(each.text)] for each in held]])
        self.order = np.argsort(keys, axis=0, kind="stable")  # (n, bands)
        self.keys = np.take_along_axis(keys, self.order, axis=0)
        self.shingles = lru_cache(100_000)(lambda number: shingles(normalise(held[number].text)))

    def of(self, texts: list[str]) -> tuple[list[tuple[Held, float] | None], int]:
        """Returns for each text the nearest held-out text that is similar enough, or None; and how many are unsure."""
        normal = [normalise(text) for text in texts]
        if not normal:
            return [], 0
        keys, sizes = self.bands.keys([[[text] for text in normal]])
        proposed = self._proposed(keys, sizes[:, 0])
        nearest, unsure = [], 0
        for row, text in enumerate(normal):
            candidates = proposed.get(row, ())
            own_shingles = shingles(text) if candidates else set()
            pairs = ((jaccard(own_shingles, self.shingles(other)), -other) for other in candidates[:CANDIDATES])
            similarity, number = max(pairs, default=(0, 0))
            nearest.append((self.held[-number], similarity) if similarity >= self.similarity else None)
            unsure += nearest[-1] is None and len(candidates) > CANDIDATES
        return nearest, unsure

    def _proposed(self, keys: Any, sizes: Any) -> dict[int, list[int]]:
        """Returns for each text the held-out ones of a common band and a fitting size, most common bands first."""
        columns = [self.keys[:, band] for band in range(self.bands.count)]
        first, last = (
            np.stack([column.searchsorted(keys[:, band], side) for band, column in enumerate(columns)])
            for side in ("left", "right")
        )  # (bands, texts) each
        proposed = {}
        for row in np.flatnonzero((last > first).any(0)).tolist():
            spans = zip(first[:, row].tolist(), last[:, row].tolist())
            shared = [self.order[start:stop, band] for band, (start, stop) in enumerate(spans) if stop > start]
            numbers, bands = np.unique(np.concatenate(shared), return_counts=True)
            their_sizes, own_size = self.sizes[numbers, 0], sizes[row]
            fits = np.minimum(their_sizes, own_size) >= self.similarity * np.maximum(their_sizes, own_size)
            numbers, bands = numbers[fits], bands[fits]
            proposed[row] = numbers[np.lexsort((numbers, -bands))[: CANDIDATES + 1]].tolist()
        return proposed


def held_out(
    paths: Iterable[str | Path],
    where: str = "--exclude",
    sets: dict[str, RetrievalSet | ScoredPairs] | None = None,
) -> HeldOut:
    """Reads the held-out texts of retrieval sets (see retrieval_sets.py), shard folders and files of scored pairs.

    Of a shard folder the eval split counts, or all rows, with a message, if it has none. Raises BadInput with the
    problems of all sets; `where` names the option. sets: those that are read already, by path.
    """
    texts, problems = HeldOut(), []
    for path in paths:
        try:
            texts.add(str(path), *_queries_and_documents(local(path), (sets or {}).get(str(path))))
        except BadInput as error:
            problems += [f"{where} {text}" for text in error.problems]
    if problems:
        raise BadInput(problems)
    return texts


def _queries_and_documents(path: Path, data: RetrievalSet | ScoredPairs | None) -> tuple[list[str], list[str]]:
    folder = data.shards if data else open_shards(path) if (path / MANIFEST).is_file() else None
    if folder is None:
        if data is None:
            data = load_evaluation(path)
            for note in data.flaws if isinstance(data, RetrievalSet) else ():
                say(f"note: {note}")
        if isinstance(data, ScoredPairs):
            return data.query_texts, data.doc_texts
        relevant = {doc for query in data.query_ids for doc, grade in data.qrels[query].items() if grade > 0}
        return data.query_texts, [text for doc, text in zip(data.doc_ids, data.doc_texts) if doc in relevant]
    split = "eval" if "eval" in folder.splits else "train"
    if split == "train":
        say(f"note: {path}: has no eval split, so every row of it counts as held out")
    return texts_of(folder.split(split))


def texts_of(records: Iterable[Record]) -> tuple[list[str], list[str]]:
    """Returns all queries, and all positives."""
    queries, positives = [], []
    for record in records:
        queries.append(record.query)
        positives += record.positives
    return queries, positives
