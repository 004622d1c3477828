"""Typos as people make them: at the level of keys, few in a word's beginning, on the keyboard of the word's own script.

Adults mostly drop, add, double or swap a letter or hit the key beside it, one such error in a word, and rarely in its
first letter (Damerau 1964, doi:10.1145/363958.363994; Yannakoudakis and Fawthrop 1983, "The rules of spelling errors").
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from data_prep.augmentation.keyboards import hangul_keys, hangul_text, neighbours
from data_prep.augmentation.phrases import WORD, Phrases, in_case_of

LISTED = "listed"  # the kind of a misspelling from the user's list
MIN_KEYS = 4  # shorter words stay: one wrong key makes another word of them
MIN_PART = 2  # letters on each side of a wrong space; of Korean syllables one
HANGUL = re.compile("[가-힣]+")
# A wrong digit is another product or version; Chinese and Japanese are not typed key by letter.
UNTYPED = re.compile(r"[\d\u3040-\u30ff\u3400-\u9fff]")


def _neighbour(keys: list[str], at: int, draw: random.Random) -> list[str] | None:
    near = neighbours().get(keys[at].lower())
    if not near:
        return None
    hit = draw.choice(near)
    return [*keys[:at], hit.upper() if keys[at].isupper() else hit, *keys[at + 1 :]]


def _drop(keys: list[str], at: int, _: random.Random) -> list[str] | None:
    return keys[:at] + keys[at + 1 :]


def _double(keys: list[str], at: int, _: random.Random) -> list[str] | None:
    return keys[: at + 1] + keys[at:]


def _swap(keys: list[str], at: int, _: random.Random) -> list[str] | None:
    if at + 1 == len(keys) or keys[at] == keys[at + 1]:
        return None
    return [*keys[:at], keys[at + 1], keys[at], *keys[at + 2 :]]


KEY_EDITS: dict[str, Callable[[list[str], int, random.Random], list[str] | None]] = {
    "neighbour": _neighbour,
    "drop": _drop,
    "double": _double,
    "swap": _swap,
}
KINDS = (*KEY_EDITS, "split", "join")


@dataclass(frozen=True)
class Typist:
    """Makes typos."""

    rate: float  # share of the words that get a typo, 0..1
    kinds: dict[str, float]  # kind, of KINDS -> weight, > 0
    listed: Phrases | None = None  # the user's misspellings; a drawn word or phrase with some gets one of them

    def type(self, text: str, draw: random.Random) -> tuple[str, list[str]]:
        """Returns the text with typos, and the kind of each.

        Words of fewer than MIN_KEYS keys, with digits, or in Chinese or Japanese only get listed misspellings.
        """
        words = list(WORD.finditer(text))
        parts: list[str] = []  # of the new text
        kinds: list[str] = []
        following = end = 0  # the next word; where the last one ended
        while following < len(words):
            parts.append(text[end : words[following].start()])
            count, listed = self.listed.at(text, words, following) if self.listed else (0, [])
            count = count or 1
            phrase = text[words[following].start() : words[following + count - 1].end()]
            end = words[following + count - 1].end()
            following += count
            gap = text[end : words[following].start()] if following < len(words) else ""
            kind = ""
            if draw.random() < self.rate:
                if listed:
                    kind, phrase = LISTED, in_case_of(phrase, draw.choice(listed))
                else:
                    kind, phrase = self._mistype(phrase, gap.isspace(), draw)
            parts.append(phrase)
            if kind == "join":
                end = words[following].start()
            if kind:
                kinds.append(kind)
        return "".join([*parts, text[end:]]), kinds

    def _mistype(self, word: str, space_follows: bool, draw: random.Random) -> tuple[str, str]:
        """Returns (kind, the word with one typo of it), or ("", word) where no kind fits."""
        keys = hangul_keys(word) if HANGUL.fullmatch(word) else word
        if len(keys) < MIN_KEYS or UNTYPED.search(word):
            return "", word
        for kind in _in_random_order(self.kinds, draw):
            if kind == "join" and space_follows:
                return kind, word
            least = MIN_PART if keys is word else 1
            if kind == "split" and len(word) >= 2 * least:
                cut = draw.randint(least, len(word) - least)
                return kind, f"{word[:cut]} {word[cut:]}"
            if kind in KEY_EDITS:
                typed = KEY_EDITS[kind](list(keys), draw.randrange(1, len(keys)), draw)
                if typed:
                    return kind, hangul_text("".join(typed)) if keys is not word else "".join(typed)
        return "", word


def _in_random_order(kinds: dict[str, float], draw: random.Random) -> list[str]:
    """Returns the kinds in an order drawn by weight (Efraimidis and Spirakis 2006: the largest u ** (1 / w) first)."""
    return sorted(kinds, key=lambda kind: draw.random() ** (1 / kinds[kind]), reverse=True)
