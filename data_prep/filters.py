"""Filters of question-answer pairs by quality, all off by default; what one leaves out is kept aside and counted."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_prep.bm25 import TOKENS
from data_prep.languages import UNSURE, language
from data_prep.near_duplicates import Bands, check_similarity, jaccard, shingles
from data_prep.records import normalise, text_key
from data_prep.stores import Chunk

if TYPE_CHECKING:
    import numpy as np

# Texts -> (n, d) float, such as SentenceTransformer.encode; similarity is the dot product.
Encoder = Callable[[list[str]], "np.ndarray"]
NO_LANGUAGE = (UNSURE, "zxx")  # zxx: numbers, markup


@dataclass(frozen=True, slots=True)
class Pair:
    """One pair and the chunk that it was made from."""

    chunk: Chunk
    question: str
    answer: str


@dataclass(frozen=True)
class Filters:
    """Which filters run, in this order; None or False: off.

    question_words, answer_words: least and most words. same_language: question and answer are in the chunk's language.
    grounded: least share (0..1) of the answer's runs of four characters that stand in the chunk. round_trip: the
    question finds its own chunk among the k best of the collection (Promptagator, arXiv:2209.11755, section 3.2).
    near_duplicates: Jaccard similarity of two questions from which on only the first stays.
    """

    question_words: tuple[int, int] | None = None
    answer_words: tuple[int, int] | None = None
    same_language: bool = False
    grounded: float | None = None
    round_trip: int | None = None
    near_duplicates: float | None = None

    def problems(self) -> list[str]:
        found = []
        for name in ("question_words", "answer_words"):
            least, most = getattr(self, name) or (0, 0)
            if not 0 <= least <= most:
                found.append(f"--{name.replace('_', '-')} {least}-{most}: must be MIN-MAX, with 0 <= MIN <= MAX")
        if self.grounded is not None and not 0 < self.grounded <= 1:
            found.append(f"--grounded {self.grounded:g}: must be a share above 0, at most 1")
        if self.round_trip is not None and self.round_trip < 1:
            found.append(f"--round-trip {self.round_trip}: must be 1 or more")
        if self.near_duplicates is not None:
            found += check_similarity(self.near_duplicates, "--near-duplicates")
        return found

    def build(self, collection: Callable[[], Iterator[Chunk]], encoder: Encoder | None) -> list["Filter"]:
        """The filters, ready. collection: reads every chunk among which a question must find its own; called for
        round_trip only, which holds their index (BM25, or the encoder's embeddings) in memory."""
        built: list[Filter] = []
        for name in ("question", "answer"):
            if limits := getattr(self, f"{name}_words"):
                built.append(_each(_words_within(name, *limits)))
        if self.same_language:
            built.append(_each(_SameLanguage()))
        if self.grounded is not None:
            built.append(_each(_grounded(self.grounded)))
        if self.round_trip is not None:
            texts = _Distinct(collection())
            score = _embedding_scores(texts.texts, encoder) if encoder else _bm25_scores(texts.texts)
            built.append(_RoundTrip(self.round_trip, texts, score))
        if self.near_duplicates is not None:
            built.append(_NearDuplicates(self.near_duplicates))
        return built


# Reasons for some pairs, in order: None keeps a pair. A reason starts with the filter's name and a colon.
Filter = Callable[[Sequence[Pair]], list[str | None]]


def _each(reason: Callable[[Pair], str | None]) -> Filter:
    return lambda pairs: [reason(pair) for pair in pairs]


def _words_within(name: str, least: int, most: int) -> Callable[[Pair], str | None]:
    words = re.compile(TOKENS)

    def reason(pair: Pair) -> str | None:
        count = len(words.findall(getattr(pair, name)))
        return None if least <= count <= most else f"{name} length: {count:,} words, wanted {least:,} to {most:,}"

    return reason


class _SameLanguage:
    """A text whose language is uncertain, as that of many short questions, counts as the chunk's."""

    def __init__(self):
        self.last = ("", "")  # text and language of the last chunk: its pairs follow each other

    def __call__(self, pair: Pair) -> str | None:
        if self.last[0] != pair.chunk.text:
            self.last = (pair.chunk.text, language(pair.chunk.text))
        own = self.last[1]
        for name in ("question", "answer"):
            found = language(getattr(pair, name))
            if own not in NO_LANGUAGE and found not in (own, *NO_LANGUAGE):
                return f"language: the {name} is in {found!r}, the chunk in {own!r}"
        return None


def _grounded(least: float) -> Callable[[Pair], str | None]:
    """Lexical: an answer in other words than the chunk's is left out too. Runs of characters forgive endings."""

    def reason(pair: Pair) -> str | None:
        answer, chunk = normalise(pair.answer), normalise(pair.chunk.text)
        runs = shingles(answer)
        share = 1.0 if answer in chunk else len(runs & shingles(chunk)) / len(runs)
        return None if share >= least else f"not grounded: {share:.2f} of the answer stands in the chunk"

    return reason


class _Distinct:
    """The distinct texts of a collection: a copy of a chunk is as good as the chunk."""

    def __init__(self, chunks: Iterable[Chunk]):
        self.texts: list[str] = []
        self.at: dict[int, int] = {}
        for chunk in chunks:
            if self.at.setdefault(text_key(chunk.text), len(self.texts)) == len(self.texts):
                self.texts.append(chunk.text)


class _RoundTrip:
    def __init__(self, k: int, texts: _Distinct, scores: Callable[[list[str]], Iterable[Any]]):
        self.k, self.texts, self.scores = k, texts, scores

    def __call__(self, pairs: Sequence[Pair]) -> list[str | None]:
        return [self._reason(pair, row) for pair, row in zip(pairs, self.scores([pair.question for pair in pairs]))]

    def _reason(self, pair: Pair, scores: Any) -> str | None:
        """scores: (n,) of the question with each text. Texts with the same score do not push the own one down, unless
        the score is 0: nothing in common."""
        at = self.texts.at.get(text_key(pair.chunk.text))
        if at is None:
            return "round-trip: its chunk came into the collection only now; run again"
        own = scores[at]
        rank = int((scores > own).sum()) + 1 if own else len(scores)
        return (
            None if rank <= self.k else f"round-trip: the question finds its chunk at rank {rank:,}, wanted {self.k:,}"
        )


def _bm25_scores(texts: list[str]) -> Callable[[list[str]], Iterator[Any]]:
    """BM25 (bm25s, method "lucene", k1 1.5, b 0.75; Robertson and Zaragoza 2009)."""
    import bm25s
    import numpy as np

    def tokens(some: list[str]) -> list[list[str]]:
        return bm25s.tokenize(some, token_pattern=TOKENS, stopwords=None, return_ids=False, show_progress=False)

    index = bm25s.BM25()
    split = tokens(texts)
    if any(split):
        index.index(split, show_progress=False)
    known = index.vocab_dict if any(split) else {}

    def scores(questions: list[str]) -> Iterator[Any]:
        for words in tokens(questions):
            words = [word for word in words if word in known]
            yield index.get_scores(words) if words else np.zeros(len(texts))

    return scores


def _embedding_scores(texts: list[str], encoder: Encoder) -> Callable[[list[str]], Iterator[Any]]:
    import numpy as np

    documents = np.asarray(encoder(texts), np.float32)  # (n, d)
    return lambda questions: iter(np.asarray(encoder(questions), np.float32) @ documents.T)


class _NearDuplicates:
    """The questions that stay, by the bands of their MinHash signatures (see data_prep.near_duplicates); what shares a
    band is compared exactly."""

    def __init__(self, similarity: float):
        self.similarity, self.bands = similarity, Bands(similarity, sides=1)
        self.kept: dict[tuple[int, int], list[str]] = defaultdict(list)

    def __call__(self, pairs: Sequence[Pair]) -> list[str | None]:
        questions = [normalise(pair.question) for pair in pairs]
        keys, _ = self.bands.keys([[[question] for question in questions]])
        return [self._reason(question, list(enumerate(row))) for question, row in zip(questions, keys.tolist())]

    def _reason(self, question: str, keys: list[tuple[int, int]]) -> str | None:
        own = shingles(question)
        for other in dict.fromkeys(other for key in keys for other in self.kept.get(key, ())):
            if jaccard(own, shingles(other)) >= self.similarity:
                return f"near-duplicate: the same question as {other!r}"
        for key in keys:
            self.kept[key].append(question)
        return None
