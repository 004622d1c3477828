"""The corpus of mining: the texts that may become negatives, and those that a row must not have."""

from array import array
from collections.abc import Iterable

import numpy as np

from data_prep.common.errors import BadInput, nearest
from data_prep.records import Record, id_key, normalise, query_key, text_key


class Corpus:
    """The distinct texts of a corpus, numbered by their position in `texts`.

    Numbers below `candidates` may be chosen. The others are positives of rows, missing in the corpus: they are scored,
    never chosen. Fill it with add() and add_row(), then seal(). same_document: a metadata field; texts with the row's
    value belong to its document, like the texts of its doc_ids.
    """

    def __init__(self, same_document: str | None = None):
        self.same_document = same_document
        self.texts: list[str] = []
        self.candidates = 0
        self._number: dict[int, int] = {}  # text key -> number
        self._of_query, self._of_document = _Groups(), _Groups()
        self._fields: dict[str, None] = {}
        self._with_field = 0

    def add(self, text: str, document: str, metadata: dict) -> int:
        """Adds a text of a document that may be chosen; returns its number, which equal texts share."""
        number = self._add(text)
        self.candidates = len(self.texts)
        for key in self._document_keys([document], metadata):
            self._of_document.add(key, number)
        return number

    def add_row(self, record: Record, choose: bool) -> None:
        """Adds a row's positives. choose: they may become negatives of other rows."""
        numbers = [self._add(text) for text in record.positives]
        if choose:
            self.candidates = len(self.texts)
        query = query_key(record)
        for i, number in enumerate(numbers):
            self._of_query.add(query, number)
            for key in self._document_keys(record.doc_ids[i : i + 1], record.metadata):
                self._of_document.add(key, number)

    def _add(self, text: str) -> int:
        number = self._number.setdefault(text_key(text), len(self.texts))
        if number == len(self.texts):
            self.texts.append(text)
        return number

    def _document_keys(self, ids: Iterable[str], metadata: dict) -> list[int]:
        keys = [id_key(f"id:{one}") for one in ids if one]
        if self.same_document:
            self._fields.update(dict.fromkeys(metadata))
            value = metadata.get(self.same_document)
            if value is not None:
                self._with_field += 1
                keys.append(id_key(f"field:{value}"))
        return keys

    def seal(self) -> None:
        """Prepares forbidden(). BadInput: no text has the field that same_document names."""
        if self.same_document and not self._with_field:
            known = ", ".join(self._fields) or "none"
            hint = nearest(self.same_document, self._fields)
            raise BadInput(f"--same-document {self.same_document}: no text has this field (fields: {known}).{hint}")
        self._of_query.seal()
        self._of_document.seal()

    def places(self, texts: Iterable[str]) -> list[int]:
        """Numbers of the given texts; texts outside the corpus are skipped."""
        numbers = (self._number.get(text_key(text)) for text in texts)
        return [number for number in numbers if number is not None]

    def forbidden(self, record: Record) -> np.ndarray:
        """Texts that must not become negatives of a row: sorted, distinct numbers.

        They are its query, positives and negatives, the positives of an equal query (of a variant: of its parent's
        query), and the texts of the same documents.
        """
        own = self.places([record.query, *record.positives, *record.negatives])
        documents = self._document_keys(record.doc_ids, record.metadata)
        groups = [self._of_query.get(query_key(record)), *(self._of_document.get(key) for key in documents)]
        return np.unique(np.concatenate([np.array(own, np.int64), *groups]))


class _Groups:
    """Numbers of texts by key, 16 bytes each."""

    def __init__(self):
        self.pairs = array("q")

    def add(self, key: int, number: int) -> None:
        self.pairs.extend((key, number))

    def seal(self) -> None:
        pairs = np.frombuffer(self.pairs, np.int64).reshape(-1, 2)
        pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
        self.keys, self.numbers = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
        del self.pairs

    def get(self, key: int) -> np.ndarray:
        first, last = self.keys.searchsorted(key, "left"), self.keys.searchsorted(key, "right")
        return self.numbers[first:last]


def same_answer(text: str, positives: list[str]) -> bool:
    """Returns True if the text contains a positive or is part of one; texts of fewer than four words do not count."""
    candidate = normalise(text)
    for positive in map(normalise, positives):
        shorter, longer = sorted((candidate, positive), key=len)
        if shorter.count(" ") >= 3 and shorter in longer:
            return True
    return False
