"""Quality filters of question-answer pairs, all off by default. What a filter drops is counted and kept aside."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from data_prep.mining.bm25 import TOKENS, Bm25
from data_prep.mining.candidates import Corpus
from data_prep.records import normalise
from data_prep.stores.base import Chunk
from data_prep.texts.languages import UNSURE, language
from data_prep.texts.near_duplicates import Bands, check_similarity, jaccard, shingles

if TYPE_CHECKING:
    import numpy as np

NO_LANGUAGE = (UNSURE, "zxx")  # zxx: numbers, markup


class Encoder(Protocol):
    """An embedding model, such as trainer.inference.text_encoder.TextEncoder; similarities are inner products."""

    def queries(self, texts: list[str]) -> "np.ndarray":
        """Returns (n, d) float32."""

    def passages(self, texts: list[str]) -> "np.ndarray": ...


@dataclass(frozen=True, slots=True)
class Pair:
    """One pair and the chunk that it was made from."""

    chunk: Chunk
    question: str
    answer: str


@dataclass(frozen=True)
class Filters:
    """The filters to run, in this order. None or False: off."""

    question_words: tuple[int, int] | None = None  # least, most
    answer_words: tuple[int, int] | None = None
    same_language: bool = False  # question and answer are in the chunk's language
    grounded: float | None = None  # least share (0..1) of the answer's runs of four characters that the chunk holds
    # The question finds its chunk among the k best of the collection (Promptagator, Dai et al. 2022, arXiv:2209.11755).
    round_trip: int | None = None
    near_duplicates: float | None = None  # from this Jaccard similarity on, only the first of two questions stays

    def problems(self) -> list[str]:
        problems = []
        for name in ("question_words", "answer_words"):
            least, most = getattr(self, name) or (0, 0)
            if not 0 <= least <= most:
                problems.append(f"--{name.replace('_', '-')} {least}-{most}: must be MIN-MAX, with 0 <= MIN <= MAX")
        if self.grounded is not None and not 0 < self.grounded <= 1:
            problems.append(f"--grounded {self.grounded:g}: must be a share above 0, at most 1")
        if self.round_trip is not None and self.round_trip < 1:
            problems.append(f"--round-trip {self.round_trip}: must be 1 or more")
        if self.near_duplicates is not None:
            problems += check_similarity(self.near_duplicates, "--near-duplicates")
        return problems

    def build(self, collection: Callable[[], Iterator[Chunk]], encoder: Encoder | None) -> list["Filter"]:
        """Returns the filters. collection: reads every chunk of the round trip, which holds their index in memory."""
        built: list[Filter] = []
        for name in ("question", "answer"):
            if limits := getattr(self, f"{name}_words"):
                built.append(_each(_words_within(name, *limits)))
        if self.same_language:
            built.append(_each(_SameLanguage()))
        if self.grounded is not None:
            built.append(_each(_grounded(self.grounded)))
        if self.round_trip is not None:
            built.append(_RoundTrip(self.round_trip, collection(), encoder))
        if self.near_duplicates is not None:
            built.append(_NearDuplicates(self.near_duplicates))
        return built


# Returns a reason per pair, or None to keep it. A reason starts with the filter's name and a colon.
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
    """Drops other languages. An uncertain language, as of many short questions, counts as the chunk's."""

    def __init__(self):
        self.last = ("", "")  # text and language of the last chunk, whose pairs are adjacent

    def __call__(self, pair: Pair) -> str | None:
        if self.last[0] != pair.chunk.text:
            self.last = (pair.chunk.text, language(pair.chunk.text))
        own = self.last[1]
        for name in ("question", "answer"):
            other = language(getattr(pair, name))
            if own not in NO_LANGUAGE and other not in (own, *NO_LANGUAGE):
                return f"language: the {name} is in {other!r}, the chunk in {own!r}"
        return None


def _grounded(least: float) -> Callable[[Pair], str | None]:
    """Drops answers in other words than the chunk's. Runs of characters tolerate other word endings."""

    def reason(pair: Pair) -> str | None:
        answer, chunk = normalise(pair.answer), normalise(pair.chunk.text)
        runs = shingles(answer)
        share = 1.0 if answer in chunk else len(runs & shingles(chunk)) / len(runs)
        return None if share >= least else f"not grounded: {share:.2f} of the answer is in the chunk"

    return reason


class _RoundTrip:
    """Ranks a question's own chunk among the distinct texts; a copy of the chunk counts as the chunk."""

    def __init__(self, k: int, chunks: Iterable[Chunk], encoder: Encoder | None):
        self.k, self.corpus = k, Corpus()
        for chunk in chunks:
            self.corpus.add(chunk.text, chunk.id, {})
        self.scores = _embedding_scores(self.corpus.texts, encoder) if encoder else _bm25_scores(self.corpus)

    def __call__(self, pairs: Sequence[Pair]) -> list[str | None]:
        return [self._reason(pair, row) for pair, row in zip(pairs, self.scores([pair.question for pair in pairs]))]

    def _reason(self, pair: Pair, scores: Any) -> str | None:
        """scores: (n,) of the question with each text. Ties do not lower the rank, except at 0: nothing in common."""
        (position,) = self.corpus.places([pair.chunk.text])
        own = scores[position]
        rank = int((scores > own).sum()) + 1 if own else len(scores)
        if rank <= self.k:
            return None
        return f"round-trip: the question finds its chunk at rank {rank:,}, wanted {self.k:,}"


def _bm25_scores(corpus: Corpus) -> Callable[[list[str]], Iterator[Any]]:
    import numpy as np

    index, everything = Bm25(corpus), np.arange(len(corpus.texts))
    return lambda questions: (index.scores([question], [everything])[0] for question in questions)


def _embedding_scores(texts: list[str], encoder: Encoder) -> Callable[[list[str]], Iterator[Any]]:
    import numpy as np

    documents = np.asarray(encoder.passages(texts), np.float32)  # (n, d)
    return lambda questions: iter(np.asarray(encoder.queries(questions), np.float32) @ documents.T)


class _NearDuplicates:
    """Compares questions exactly that share a band of their MinHash signatures (see near_duplicates.py)."""

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
