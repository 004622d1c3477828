"""Keywords: the words that distinguish a text in its collection, as people type them into a search box."""

import math
import re
from collections import Counter
from collections.abc import Iterable

from data_prep.mining.bm25 import TOKENS
from data_prep.records import normalise

_WORDS = re.compile(TOKENS)


class Keywords:
    """Term frequency times inverse document frequency (Salton and Buckley 1988: tf log(N / n), the raw count as tf).

    texts: the whole collection. Memory: its vocabulary.
    """

    def __init__(self, texts: Iterable[str]):
        self.texts = 0
        self.texts_with: Counter[str] = Counter()
        for text in texts:
            self.texts += 1
            self.texts_with.update({normalise(word) for word in _WORDS.findall(text)})

    def of(self, text: str, most: int) -> list[str]:
        """Returns up to `most` words of highest weight, in the text's order and spelling; words of every text never."""
        spelled: dict[str, str] = {}
        counts: Counter[str] = Counter()
        for word in _WORDS.findall(text):
            spelled.setdefault(normalise(word), word)
            counts[normalise(word)] += 1
        weights = {word: count * math.log(self.texts / self.texts_with[word]) for word, count in counts.items()}
        telling = sorted((word for word in spelled if weights[word] > 0), key=lambda word: -weights[word])[:most]
        return [spelled[word] for word in spelled if word in telling]
