"""Decontamination: train rows that hold a text of an evaluation set, found as they stream by.

What an evaluation set holds out are its queries and its relevant documents (those that some query judges relevant; a
document counts without its first line, the title, as well). A train row is contaminated when its query, its parent's
query if it is a variant, or one of its positives is one of these texts: the same after records.normalise, or, by
option, a near duplicate (near_duplicates.py).
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.common.console import say
from data_prep.common.errors import BadInput
from data_prep.reading.retrieval_sets import load_set
from data_prep.records import PARENT_QUERY, Record, is_variant, normalise, text_key
from data_prep.shards.folder import MANIFEST, open_shards
from data_prep.texts.near_duplicates import CANDIDATES, Bands, jaccard, shingles

BATCH_ROWS = 1000


class Held(NamedTuple):
    """A text that is held out: which set it is of, and whether it is a query or a document there."""

    text: str
    kind: str
    name: str


class Match(NamedTuple):
    """Why a row is contaminated. side: "query" or "positive" of the row. similarity: 1.0 for equal texts."""

    held: Held
    side: str
    similarity: float


class HeldOut:
    """The texts of evaluation sets, and which train rows hold one.

    near: Jaccard similarity (LOWEST to 1) from which a text counts as a near duplicate; None: equal texts only.
    keys: text_key of every held-out text -> the text. Memory: the texts, and with `near` 8 bytes per text and band.
    unsure: texts that were let pass although more held-out texts were proposed than are looked at (CANDIDATES).
    """

    def __init__(self, near: float | None = None):
        self.near = near
        self.keys: dict[int, Held] = {}
        self.counts: Counter[tuple[str, str]] = Counter()  # (set, kind of the held-out text) -> rows left out
        self.unsure = 0
        self._index: _Nearest | None = None

    def add(self, name: str, queries: Iterable[str], documents: Iterable[str]) -> None:
        """Takes the texts of one set."""
        for kind, texts in (("query", queries), ("document", documents)):
            for text in texts:
                for part in dict.fromkeys((text, text.partition("\n")[2] if kind == "document" else text)):
                    if part.strip():
                        self.keys.setdefault(text_key(part), Held(part, kind, name))
        self._index = None

    def matches(self, records: list[Record]) -> list[Match | None]:
        """For each row why it is contaminated, or None. Equal texts are found before near ones."""
        found = [self._equal(record) for record in records]
        if self.near is not None and self.keys:
            left = [place for place, match in enumerate(found) if match is None]
            texts = [(place, side, text) for place in left for side, text in _texts(records[place])]
            for (place, side, _), near in zip(texts, self._nearest([text for _, _, text in texts])):
                if near and not found[place]:
                    found[place] = Match(near[0], side, near[1])
        return found

    def without(self, records: Iterable[Record]) -> Iterator[Record]:
        """Streams the rows that hold nothing of the sets; the others are counted in `counts`."""
        rows = iter(records)
        while batch := list(islice(rows, BATCH_ROWS)):
            for record, match in zip(batch, self.matches(batch)):
                if match is None:
                    yield record
                else:
                    self.counts[match.held.name, match.held.kind] += 1

    def _equal(self, record: Record) -> Match | None:
        for side, text in _texts(record):
            if held := self.keys.get(text_key(text)):
                return Match(held, side, 1.0)
        return None

    def _nearest(self, texts: list[str]) -> list[tuple[Held, float] | None]:
        if self._index is None:
            self._index = _Nearest(list(self.keys.values()), self.near)
        found, unsure = self._index.of(texts)
        self.unsure += unsure
        return found


def _texts(record: Record) -> list[tuple[str, str]]:
    queries = [record.query, record.metadata[PARENT_QUERY]] if is_variant(record) else [record.query]
    return [*(("query", text) for text in queries), *(("positive", text) for text in record.positives)]


class _Nearest:
    """The held-out texts by band and key."""

    def __init__(self, held: list[Held], similarity: float):
        import numpy as np

        self.held, self.similarity = held, similarity
        self.bands = Bands(similarity, sides=1)
        keys, self.sizes = self.bands.keys([[[normalise(each.text)] for each in held]])
        self.order = np.argsort(keys, axis=0, kind="stable")  # (n, bands)
        self.keys = np.take_along_axis(keys, self.order, axis=0)
        self.shingles = lru_cache(100_000)(lambda place: shingles(normalise(held[place].text)))

    def of(self, texts: list[str]) -> tuple[list[tuple[Held, float] | None], int]:
        """For each text a held-out text at least as similar as stated, with its similarity; how many are unsure."""
        normal = [normalise(text) for text in texts]
        if not normal:
            return [], 0
        keys, sizes = self.bands.keys([[[text] for text in normal]])
        proposed = self._proposed(keys, sizes[:, 0])
        found, unsure = [], 0
        for place, text in enumerate(normal):
            some = proposed.get(place, ())
            own = shingles(text) if some else set()
            best = max(((jaccard(own, self.shingles(other)), -other) for other in some[:CANDIDATES]), default=(0, 0))
            found.append((self.held[-best[1]], best[0]) if best[0] >= self.similarity else None)
            unsure += found[-1] is None and len(some) > CANDIDATES
        return found, unsure

    def _proposed(self, keys: Any, sizes: Any) -> dict[int, list[int]]:
        """Place of a text -> held-out texts that share a band and may be as large, most common bands first, cut to one
        more than are looked at."""
        import numpy as np

        columns = [self.keys[:, band] for band in range(self.bands.count)]
        first, last = (
            np.stack([column.searchsorted(keys[:, band], side) for band, column in enumerate(columns)])
            for side in ("left", "right")
        )  # (bands, texts) each
        found = {}
        for place in np.flatnonzero((last > first).any(0)).tolist():
            spans = zip(first[:, place].tolist(), last[:, place].tolist())
            shared = [self.order[start:stop, band] for band, (start, stop) in enumerate(spans) if stop > start]
            some, bands = np.unique(np.concatenate(shared), return_counts=True)
            theirs, own = self.sizes[some, 0], sizes[place]
            fits = np.minimum(theirs, own) >= self.similarity * np.maximum(theirs, own)
            some, bands = some[fits], bands[fits]
            found[place] = some[np.lexsort((some, -bands))[: CANDIDATES + 1]].tolist()
        return found


def held_out(paths: Iterable[str | Path], near: float | None = None, where: str = "--exclude") -> HeldOut:
    """The texts of these sets: retrieval sets (see retrieval_sets.py) or shard folders, of which the eval split counts
    (all rows where there is none, said). Raises BadInput with the problems of all; `where` names the option."""
    made, problems = HeldOut(near), []
    for path in map(Path, paths):
        try:
            made.add(str(path), *_queries_and_documents(path))
        except BadInput as error:
            problems += [f"{where} {text}" for text in error.problems]
    if problems:
        raise BadInput(problems)
    return made


def _queries_and_documents(path: Path) -> tuple[list[str], list[str]]:
    if not (path / MANIFEST).is_file():
        data = load_set(path)
        relevant = {doc for query in data.query_ids for doc, grade in data.qrels[query].items() if grade > 0}
        return data.query_texts, [text for doc, text in zip(data.doc_ids, data.doc_texts) if doc in relevant]
    folder = open_shards(path)
    split = "eval" if "eval" in folder.splits else "train"
    if split == "train":
        say(f"note: {path}: has no eval split, so every row of it counts as held out")
    return texts_of(list(folder.split(split)))


def texts_of(records: list[Record]) -> tuple[list[str], list[str]]:
    """Queries and positives."""
    return [record.query for record in records], [text for record in records for text in record.positives]
