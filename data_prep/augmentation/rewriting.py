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
    """What may be changed, and how often, 0..1. typos: share of the words that get one. synonym_rate: share of the
    listed phrases that are replaced. case, punctuation, transliteration: share of the variants."""

    typo_rate: float = 0.2
    typo_kinds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 1.0))
    synonym_rate: float = 0.3
    case_rate: float = 0.0
    punctuation_rate: float = 0.0
    transliteration_rate: float = 0.0

    def problems(self) -> list[str]:
        """What is wrong with these values, in the words of their flags."""
        rates = ("typo", "synonym", "case", "punctuation", "transliteration")
        values = {f"--{name}-rate": getattr(self, f"{name}_rate") for name in rates}
        found = [f"{flag} {value:g}: must be in 0..1" for flag, value in values.items() if not 0 <= value <= 1]
        unknown = [kind for kind in self.typo_kinds if kind not in KINDS]
        found += [f"--typos {kind}: no kind; there are {', '.join(KINDS)}.{nearest(kind, KINDS)}" for kind in unknown]
        found += [
            f"--typos {kind}={weight:g}: a weight must be more than 0"
            for kind, weight in self.typo_kinds.items()
            if not 0 < weight < float("inf")
        ]
        return found


@dataclass(frozen=True)
class Writer:
    """Writes a text as another person would. listed: misspellings; alike: synonyms."""

    changes: Changes
    listed: Phrases | None
    alike: Phrases | None

    def rewrite(self, text: str, draw: random.Random) -> tuple[str, list[str]]:
        """The changed text and the kinds of changes; they may be none."""
        text, done = unicodedata.normalize("NFC", text), []
        rates = self.changes
        if self.alike:
            text, count = _with_synonyms(text, self.alike, rates.synonym_rate, draw)
            done += ["synonym"] * count
        text, typos = Typist(rates.typo_rate, rates.typo_kinds, self.listed).type(text, draw)
        done += typos
        for kind, rate, change in (
            ("transliteration", rates.transliteration_rate, transliterate),
            ("punctuation", rates.punctuation_rate, _with_other_signs),
            ("case", rates.case_rate, _in_other_case),
        ):
            if rate and draw.random() < rate:
                before, text = text, change(text, draw)
                done += [kind] if text != before else []
        return text, done


def _with_synonyms(text: str, alike: Phrases, rate: float, draw: random.Random) -> tuple[str, int]:
    words = list(WORD.finditer(text))
    parts, end, at, count = [], 0, 0, 0
    while at < len(words):
        taken, others = alike.at(text, words, at)
        stop = words[at + max(taken, 1) - 1].end()
        written = text[words[at].start() : stop]
        if others and draw.random() < rate:
            written, count = in_case_of(written, draw.choice(others)), count + 1
        parts += [text[end : words[at].start()], written]
        at, end = at + max(taken, 1), stop
    return "".join([*parts, text[end:]]), count


def _in_other_case(text: str, draw: random.Random) -> str:
    """All small, all capitals, or a first capital; nothing where the text has no case."""
    ways = [way for way in (text.lower(), text.upper(), text[:1].upper() + text[1:].lower()) if way != text]
    return draw.choice(ways) if ways else text


def _with_other_signs(text: str, draw: random.Random) -> str:
    """Without punctuation, without that at the end, with spaces or nothing for hyphens; where there is none, with a
    mark at the end. Signs between digits (2.5, 10-12) stay."""
    marks = [i for i, char in enumerate(text) if unicodedata.category(char).startswith("P") and not _in_number(text, i)]
    if not marks:
        return text + draw.choice("?.!")
    hyphens = [i for i in marks if unicodedata.category(text[i]) == "Pd"]
    ways = [
        _replaced(text, marks, " "),
        text[: len(text) - _trailing(text, marks)],
        _replaced(text, hyphens, " "),
        _replaced(text, hyphens, ""),
    ]
    ways = [way for way in dict.fromkeys(ways) if way != text and way.strip()]
    return draw.choice(ways) if ways else text


def _in_number(text: str, at: int) -> bool:
    return text[at - 1 : at].isdigit() and text[at + 1 : at + 2].isdigit()


def _replaced(text: str, places: list[int], by: str) -> str:
    chosen = set(places)
    return " ".join("".join(by if i in chosen else char for i, char in enumerate(text)).split())


def _trailing(text: str, marks: list[int]) -> int:
    count = 0
    while len(text) - count - 1 in marks:
        count += 1
    return count
