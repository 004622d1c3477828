"""Rows with planted defects, for tests of near duplicates, decontamination and the gate. Every text is made up."""

import random

from data_prep.near_duplicates import jaccard, shingles
from data_prep.records import Record, normalise

ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz",
    "абвгдежзийклмнопрстуфхцчшщыэюя",
    "あいうえおかきくけこさしすせそたちつてと日本語学校時間問題世界",
)


def text(rng: random.Random, words: int, alphabet: str = ALPHABETS[0]) -> str:
    """Made-up words; without spaces for scripts that have none."""
    made = ["".join(rng.choices(alphabet, k=rng.randint(3, 9))) for _ in range(words)]
    return ("" if alphabet is ALPHABETS[2] else " ").join(made)


def rows(count: int, seed: int = 0, **more) -> list[Record]:
    """Rows whose texts share next to nothing, in three scripts by turns."""
    rng = random.Random(seed)
    made = []
    for i in range(count):
        alphabet = ALPHABETS[i % 3]
        made.append(Record(text(rng, 8, alphabet), [text(rng, 40, alphabet)], **more))
    return made


def altered(original: str, similarity: float, rng: random.Random) -> str:
    """The text with as many characters replaced as leave its Jaccard similarity at or just above `similarity`."""
    before, best = shingles(normalise(original)), original
    letters = list(normalise(original))
    for place in rng.sample(range(len(letters)), len(letters)):
        letters[place] = rng.choice("qxzwvjkypb0123456789")
        changed = "".join(letters)
        if normalise(changed) != changed or jaccard(before, shingles(changed)) < similarity:
            return best
        best = changed
    return best


def near(record: Record, similarity: float, rng: random.Random) -> Record:
    """A near duplicate: query and positive each at or just above the similarity."""
    return Record(altered(record.query, similarity, rng), [altered(record.positives[0], similarity, rng)])
