"""What may become a negative of a row: the texts to choose from, and those that are forbidden."""

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING

from data_prep.common.errors import BadInput, nearest
from data_prep.records import Record, normalise, query_key, text_key

if TYPE_CHECKING:  # numpy is loaded where it is needed only: `data_prep --help` answers at once
    import numpy as np


class Corpus:
    """The distinct texts that may become negatives, and which of them may not be one of a row.

    Texts are named by their place in `texts`. Those below `candidates` may be chosen; those after are positives of rows
    that stand in no corpus of their own: they are scored, never chosen. Fill it with add() and add_row(), then seal().
    same_document: a metadata field; texts whose value of it is the row's are of its document, as those of its doc_ids.
    """

    def __init__(self, same_document: str | None = None):
        self.same_document = same_document
        self.texts: list[str] = []
        self.candidates = 0
        self._place: dict[int, int] = {}  # text key -> place
        self._of_query, self._of_document = _Groups(), _Groups()
        self._fields: dict[str, None] = {}
        self._with_field = 0

    def add(self, text: str, document: str, metadata: dict) -> int:
        """A text that may be chosen, of this document; its place (that of an equal text, where there is one)."""
        place = self._add(text)
        self.candidates = len(self.texts)
        for key in self._documents([document], metadata):
            self._of_document.add(key, place)
        return place

    def add_row(self, record: Record, choose: bool) -> None:
        """A row's positives. choose: whether they may become negatives of other rows."""
        places = [self._add(text) for text in record.positives]
        if choose:
            self.candidates = len(self.texts)
        query = query_key(record)
        for i, place in enumerate(places):
            self._of_query.add(query, place)
            for key in self._documents(record.doc_ids[i : i + 1], record.metadata):
                self._of_document.add(key, place)

    def _add(self, text: str) -> int:
        place = self._place.setdefault(text_key(text), len(self.texts))
        if place == len(self.texts):
            self.texts.append(text)
        return place

    def _documents(self, ids: Iterable[str], metadata: dict) -> list[int]:
        """A key for each document that a text is of."""
        keys = [text_key(f"id:{one}") for one in ids if one]
        if self.same_document:
            self._fields.update(dict.fromkeys(metadata))
            value = metadata.get(self.same_document)
            if value is not None:
                self._with_field += 1
                keys.append(text_key(f"field:{value}"))
        return keys

    def seal(self) -> None:
        """Makes it ready for forbidden(). BadInput: no text has the field that same_document names."""
        if self.same_document and not self._with_field:
            known = ", ".join(self._fields) or "none"
            hint = nearest(self.same_document, self._fields)
            raise BadInput(f"--same-document {self.same_document}: no text has this field (fields: {known}).{hint}")
        self._of_query.seal()
        self._of_document.seal()

    def places(self, texts: Iterable[str]) -> list[int]:
        """The places of those of these texts that are in the corpus."""
        found = (self._place.get(text_key(text)) for text in texts)
        return [place for place in found if place is not None]

    def forbidden(self, record: Record) -> "np.ndarray":
        """Places of a row's own positives, of positives of an equal query (for a variant: of its parent's), of texts of
        the same documents, of the negatives it has, and of the query itself; sorted, each once."""
        import numpy as np

        own = self.places([record.query, *record.positives, *record.negatives])
        documents = self._documents(record.doc_ids, record.metadata)
        groups = [self._of_query.of(query_key(record)), *(self._of_document.of(key) for key in documents)]
        return np.unique(np.concatenate([np.array(own, np.int64), *groups]))


class _Groups:
    """Places by key, 16 bytes each."""

    def __init__(self):
        self.pairs = array("q")

    def add(self, key: int, place: int) -> None:
        self.pairs.extend((key, place))

    def seal(self) -> None:
        import numpy as np

        pairs = np.frombuffer(self.pairs, np.int64).reshape(-1, 2)
        pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
        self.keys, self.places = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
        del self.pairs

    def of(self, key: int) -> "np.ndarray":
        first, last = self.keys.searchsorted(key, "left"), self.keys.searchsorted(key, "right")
        return self.places[first:last]


def same_answer(text: str, positives: list[str]) -> bool:
    """Whether the text holds a positive or is part of one: it then answers the query as well (not for a few words)."""
    candidate = normalise(text)
    for positive in map(normalise, positives):
        shorter, longer = sorted((candidate, positive), key=len)
        if shorter.count(" ") >= 3 and shorter in longer:
            return True
    return False
