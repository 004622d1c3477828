"""Misspelt names. No torch.

- A respelling differs in case, hyphens and underscores only: batchSize, batch-size.
- A misspelling has the same words, each with at most a slip of the fingers: temprature, batch_sise.
- Everything else is another word, and is never guessed: eval_steps is not max_steps, zero4 is not zero3.
"""

import re
from collections.abc import Iterable
from functools import cache


def squashed(name: object) -> str:
    """Returns a name's letters and digits in lower case: equal for every respelling of it."""
    return re.sub(r"[\W_]", "", str(name).casefold())


def respelt(word: object, known: Iterable) -> list:
    """Returns the known names that `word` respells."""
    return [name for name in known if squashed(name) == squashed(word)]


def misspelt(word: object, known: Iterable[str]) -> list[str]:
    """Returns the known names that `word` misspells, those with the fewest slips; [] where it is another word."""
    counted = [(slips, name) for name in known if (slips := _slips(str(word), str(name))) is not None]
    fewest = min((slips for slips, _ in counted), default=0)
    return [name for slips, name in counted if slips == fewest]


def _slips(one: str, other: str) -> int | None:
    """Returns the number of slips between two spellings of a name; None: they are different names."""
    if re.findall(r"\d+", one) != re.findall(r"\d+", other):
        return None
    words, others = _words(one), _words(other)
    if len(words) == len(others):
        slips = [_of_a_word(*pair) for pair in zip(words, others)]
        return None if None in slips else sum(slips)
    together, others_together = "".join(words), "".join(others)  # an underscore is missing or too many
    return _of_a_word(together, others_together, most=1) if min(len(together), len(others_together)) > 4 else None


@cache
def _words(name: str) -> list[str]:
    """Returns the words of snake_case, kebab-case, dotted or camelCase, in lower case, digits apart."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])", "_", name)
    return [word for word in re.split(r"[\W_]+", apart.casefold()) if word]


def _of_a_word(one: str, other: str, most: int = 2) -> int | None:
    """Returns the slips between two words, None where there are more than their length excuses. The first letter is
    right (lora is not dora), and a short word has no other letter in place of one (min is not max, dim is not dir)."""
    if one == other:
        return 0
    exchanged, shorter = sorted(one) == sorted(other), min(len(one), len(other))
    changed_short = shorter < 4 and len(one) == len(other) and not exchanged
    if abs(len(one) - len(other)) > most or len(other) == 1 or changed_short or (one[0] != other[0] and not exchanged):
        return None
    slips = _distance(one, other)
    return slips if slips <= min(most, 1 if shorter < 7 else 2) else None


def _distance(one: str, other: str) -> int:
    """Letters changed, added, left out, or exchanged with a neighbour (Damerau 1964, optimal string alignment)."""
    before, last = [], list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        row = [i]
        for j, there in enumerate(other, 1):
            row.append(min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter != there)))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == there:
                row[j] = min(row[j], before[j - 2] + 1)
        before, last = last, row
    return last[-1]
