"""Texts ranked by the words they share with a query."""

import unicodedata

import numpy as np

from data_prep.mining.candidates import Corpus
from data_prep.mining.ranker import Ranked, best

# Scripts without spaces are matched by character, everything else by words of two characters or more. Python's \w
# lacks the marks that stand on or beside a letter: the vowel signs of Hindi, the points of Hebrew and Arabic.
_MARKED = range(0x300, 0x20000)
_MARKS = "".join(char for char in map(chr, _MARKED) if unicodedata.category(char) in ("Mn", "Mc"))
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17d3\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
TOKENS = rf"(?u)[{_UNSPACED}]|(?![{_UNSPACED}])\w(?:(?![{_UNSPACED}])[\w{_MARKS}])+"


class Bm25:
    """BM25 of the texts of a corpus (bm25s, method "lucene", k1 1.5, b 0.75; Robertson and Zaragoza 2009). The index
    is in memory: about 8 bytes for each distinct word of each text."""

    name = "BM25"

    def __init__(self, corpus: Corpus):
        import bm25s

        self.candidates, self.size = corpus.candidates, len(corpus.texts)
        words = _words(corpus.texts, return_ids=True)  # as numbers: a tenth of the memory
        self.index = bm25s.BM25() if words.vocab else None
        if self.index:
            self.index.index(words, show_progress=False)

    def rank(self, queries: list[str], banned: list[np.ndarray], stop: int) -> list[Ranked]:
        """Returns the best candidates (see Ranker.rank); a text that shares no word with the query is none."""
        ranked = []
        for scores, numbers in zip(self._scores(queries), banned):
            scores = scores[: self.candidates]
            numbers = numbers[numbers < self.candidates]
            banned_scores = scores[numbers]
            scores[numbers] = 0.0
            sharing = np.flatnonzero(scores)
            top = sharing[best(scores[sharing], stop)]
            last = scores[top[-1]] if len(top) == stop else 0.0
            ranked.append(Ranked(top, int((banned_scores > last).sum())))
        return ranked

    def scores(self, queries: list[str], places: list[np.ndarray]) -> list[np.ndarray]:
        return [row[some] for row, some in zip(self._scores(queries), places)]

    def cut(self) -> dict[str, int]:
        return {}

    def _scores(self, queries: list[str]):
        for words in _words(queries, return_ids=False):
            known = [word for word in words if self.index and word in self.index.vocab_dict]
            yield self.index.get_scores(known) if known else np.zeros(self.size, np.float32)


def _words(texts: list[str], return_ids: bool):
    import bm25s

    return bm25s.tokenize(texts, token_pattern=TOKENS, stopwords=None, return_ids=return_ids, show_progress=False)
