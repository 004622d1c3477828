"""A text as another person would have written it: typos, synonyms, case, punctuation, script."""

import random
import unicodedata
from dataclasses import dataclass, field

from data_prep.augmentation.phrases import WORD, Phrases, in_case_of
from data_prep.augmentation.transliteration import transliterate
from data_prep.augmentation.typos import KINDS, Typist
from data_prep.common.errors import nearest


@dataclass(frozen=True)
class Changes:
    """Rates of changes, each in 0..1."""

    typo_rate: float = 0.2  # share of the words that get a typo
    typo_kinds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 1.0))  # kind -> weight
    synonym_rate: float = 0.3  # share of the listed phrases that are replaced
    case_rate: float = 0.0  # share of the variants, as of the next two
    punctuation_rate: float = 0.0
    transliteration_rate: float = 0.0

    def problems(self) -> list[str]:
        """Returns the problems with these values, named by their flags."""
        rates = ("typo", "synonym", "case", "punctuation", "transliteration")
        values = {f"--{name}-rate": getattr(self, f"{name}_rate") for name in rates}
        problems = [f"{flag} {value:g}: must be in 0..1" for flag, value in values.items() if not 0 <= value <= 1]
        unknown = [kind for kind in self.typo_kinds if kind not in KINDS]
        known = ", ".join(KINDS)
        problems += [f"--typos {kind}: no kind; there are {known}.{nearest(kind, KINDS)}" for kind in unknown]
        weights = {kind: weight for kind, weight in self.typo_kinds.items() if not 0 < weight < float("inf")}
        problems += [f"--typos {kind}={weight:g}: a weight must be more than 0" for kind, weight in weights.items()]
        return problems


@dataclass(frozen=True)
class Writer:
    """Writes a text as another person would."""

    changes: Changes
    misspellings: Phrases | None
    synonyms: Phrases | None

    def rewrite(self, text: str, draw: random.Random) -> tuple[str, list[str]]:
        """Returns the changed text and the kind of each change, maybe none."""
        text, kinds = unicodedata.normalize("NFC", text), []
        rates = self.changes
        if self.synonyms:
            text, count = _with_synonyms(text, self.synonyms, rates.synonym_rate, draw)
            kinds += ["synonym"] * count
        text, typos = Typist(rates.typo_rate, rates.typo_kinds, self.misspellings).type(text, draw)
        kinds += typos
        for kind, rate, change in (
            ("transliteration", rates.transliteration_rate, transliterate),
            ("punctuation", rates.punctuation_rate, _with_other_signs),
            ("case", rates.case_rate, _in_other_case),
        ):
            if rate and draw.random() < rate:
                before, text = text, change(text, draw)
                kinds += [kind] if text != before else []
        return text, kinds


def _with_synonyms(text: str, synonyms: Phrases, rate: float, draw: random.Random) -> tuple[str, int]:
    """Returns the text with synonyms, and their number."""
    words = list(WORD.finditer(text))
    parts, end, first, count = [], 0, 0, 0
    while first < len(words):
        length, others = synonyms.at(text, words, first)
        stop = words[first + max(length, 1) - 1].end()
        phrase = text[words[first].start() : stop]
        if others and draw.random() < rate:
            phrase, count = in_case_of(phrase, draw.choice(others)), count + 1
        parts += [text[end : words[first].start()], phrase]
        first, end = first + max(length, 1), stop
    return "".join([*parts, text[end:]]), count


def _in_other_case(text: str, draw: random.Random) -> str:
    """Returns the text in small letters, in capitals, or with a first capital. A text without case stays."""
    ways = [way for way in (text.lower(), text.upper(), text[:1].upper() + text[1:].lower()) if way != text]
    return draw.choice(ways) if ways else text


def _with_other_signs(text: str, draw: random.Random) -> str:
    """Returns the text without punctuation, without that at the end, or with spaces or nothing for hyphens.
    A text without punctuation gets a mark at its end. Signs between digits (2.5, 10-12) stay."""
    marks = [i for i, char in enumerate(text) if unicodedata.category(char).startswith("P") and not _in_number(text, i)]
    if not marks:
        return text + draw.choice("?.!")
    hyphens = [i for i in marks if unicodedata.category(text[i]) == "Pd"]
    end = len(text)
    while end - 1 in marks:
        end -= 1
    ways = [_replaced(text, marks, " "), text[:end], _replaced(text, hyphens, " "), _replaced(text, hyphens, "")]
    ways = [way for way in dict.fromkeys(ways) if way != text and way.strip()]
    return draw.choice(ways) if ways else text


def _in_number(text: str, at: int) -> bool:
    return text[at - 1 : at].isdigit() and text[at + 1 : at + 2].isdigit()


def _replaced(text: str, positions: list[int], by: str) -> str:
    chosen = set(positions)
    return " ".join("".join(by if i in chosen else char for i, char in enumerate(text)).split())
