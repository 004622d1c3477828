"""A user's lists of misspellings and synonyms: phrases and their alternatives, found in a text."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.reading.row_problems import Problem, Problems
from data_prep.records import normalise

# A run of letters and digits, with an apostrophe inside: don't, д'Артаньян.
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


class Phrases:
    """Alternatives of words and phrases. Lookups ignore case and inner white space."""

    def __init__(self, pairs: Iterable[tuple[str, str]]):
        """pairs: (phrase, an alternative)."""
        self._of: dict[str, list[str]] = defaultdict(list)
        for phrase, other in pairs:
            known = self._of[normalise(phrase)]
            if normalise(other) != normalise(phrase) and other not in known:
                known.append(other)
        self._longest = max((len(WORD.findall(phrase)) for phrase in self._of), default=0)

    def at(self, text: str, words: list[re.Match], first: int) -> tuple[int, list[str]]:
        """Returns (length in words, alternatives) of the longest listed phrase from the word `first` on, or (0, [])."""
        for count in range(min(self._longest, len(words) - first), 0, -1):
            others = self._of.get(normalise(text[words[first].start() : words[first + count - 1].end()]))
            if others:
                return count, others
        return 0, []


def in_case_of(model: str, text: str) -> str:
    """Returns the text in capitals, or with a first capital, where the model is."""
    letters = [char for char in model if char.isalpha()]
    if len(letters) > 1 and all(char.isupper() for char in letters):
        return text.upper()
    if letters and letters[0].isupper():
        return text[:1].upper() + text[1:]
    return text


def read_misspellings(path: Path) -> Phrases:
    """Reads a TSV of misspelling, tab, correction into phrases from the correction to its misspellings.

    Empty lines and comments (#) are skipped. Raises BadInput with every bad line.
    """
    pairs = []
    problems = Problems()
    for number, line in _lines(path):
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) != 2 or not all(cells):
            problems.row(Problem(str(path), number, "must be a misspelling, a tab, and its correction"))
        elif normalise(cells[0]) == normalise(cells[1]):
            problems.row(Problem(str(path), number, f"misspelling and correction are the same word, {cells[0]!r}"))
        else:
            pairs.append((cells[1], cells[0]))
    return _checked(path, pairs, problems)


def read_synonyms(path: Path) -> Phrases:
    """Reads the synonym format of Solr and Elasticsearch.

    In `a, b, c` each may replace another; in `a, b => c` only c may replace a and b. Empty lines and comments (#) are
    skipped. Raises BadInput with every bad line.
    """
    pairs = []
    problems = Problems()
    for number, line in _lines(path):
        sides = [[phrase.strip() for phrase in side.split(",")] for side in line.split("=>")]
        if len(sides) > 2 or not all(phrase and WORD.search(phrase) for side in sides for phrase in side):
            problems.row(Problem(str(path), number, "must be texts with commas between them, or texts => texts"))
        elif len({normalise(phrase) for side in sides for phrase in side}) < 2:
            problems.row(Problem(str(path), number, f"needs two different texts, not only {sides[0][0]!r}"))
        else:
            pairs += [(one, other) for one in sides[0] for other in sides[-1]]
    return _checked(path, pairs, problems)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number, line) without comments and empty lines. Raises BadInput."""
    try:
        with open(path, encoding="utf-8-sig") as handle:
            for number, line in enumerate(handle, 1):
                if line.strip() and not line.startswith("#"):
                    yield number, line.rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'is not UTF-8'}") from None


def _checked(path: Path, pairs: list[tuple[str, str]], problems: Problems) -> Phrases:
    if not pairs and not problems.count:
        problems.file(f"{path}: has no line to use")
    problems.check()
    return Phrases(pairs)
