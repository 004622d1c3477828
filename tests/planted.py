"""Rows with planted defects, for tests of near duplicates, decontamination and the gate. Every text is made up."""

import random

from data_prep.records import Record, normalise
from data_prep.texts.near_duplicates import jaccard, shingles

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


NOUNS = {
    "en": "garden window doctor river teacher engine winter bridge letter market castle bottle shadow farmer planet "
    "kitchen blanket journey lantern village hammer pocket thunder orchard captain mirror ladder feather harbour "
    "basket candle desert island meadow needle pillow saddle tunnel violin wagon",
    "fr": "jardin fenêtre médecin rivière professeur moteur hiver lettre marché château bouteille fermier planète "
    "cuisine couverture voyage lanterne village marteau poche tonnerre verger capitaine miroir échelle plume panier "
    "bougie désert île prairie aiguille oreiller selle tunnel violon chariot maison forêt montagne",
}
VERBS = {
    "en": "painted carried repaired measured borrowed delivered described finished followed gathered imagined noticed "
    "opened planted promised received remembered visited watched welcomed",
    "fr": "peint porté réparé mesuré emprunté livré décrit terminé suivi rassemblé imaginé remarqué ouvert planté "
    "promis reçu visité regardé accueilli trouvé",
}
QUESTION = {
    "en": "Why was the {} of the {} {} with the {} and the {} by their {}?",
    "fr": "Pourquoi est-ce que le {} de la {} a été {} avec les {} et une {} par leur {} ?",
}
ANSWER = {
    "en": "The {} has been {} because they were not sure which {} would have {} the old {} before the {}.",
    "fr": "Le {} a été {} parce qu'ils ne savaient pas quelle {} aurait {} le vieux {} avant la {}.",
}


class Prose:
    """Pairs of a question and an answer of about 18 words, all different, in English ("en") or French ("fr")."""

    def __init__(self, seed: int = 0):
        self.rng = random.Random(seed)
        self.seen: set[str] = set()

    def pair(self, language: str = "en") -> dict:
        while True:
            nouns, verbs = NOUNS[language].split(), VERBS[language].split()
            q, a = self.rng.sample(nouns, 5), self.rng.sample(nouns, 4)
            question = QUESTION[language].format(q[0], q[1], self.rng.choice(verbs), *q[2:])
            answer = ANSWER[language].format(a[0], self.rng.choice(verbs), a[1], self.rng.choice(verbs), *a[2:])
            if question not in self.seen and answer not in self.seen:
                self.seen |= {question, answer}
                return {"query": question, "positives": [answer]}


def defects(clean: int, seed: int = 0, times: int = 1) -> tuple[list[dict], list[Record], dict[str, int]]:
    """Rows with `times` the planted defects among `clean` good ones, shuffled; the rows of an evaluation set that some
    leak from; and how many of each defect there are, by the names of findings and counts of `inspect`."""
    prose, rng = Prose(seed), random.Random(seed)
    good = [prose.pair() for _ in range(clean)]
    held = [prose.pair() for _ in range(100 * times)]
    made = list(good)
    copies = rng.sample(good, 200 * times)
    made += [{"query": f" {row['query'].upper()}", "positives": row["positives"]} for row in copies]
    for row in held[: 20 * times]:
        made.append(prose.pair() | {"query": row["query"]})
    for row in held[20 * times : 50 * times]:
        made.append(prose.pair() | {"positives": row["positives"]})
    for _ in range(15 * times):
        row = prose.pair()
        made.append(row | {"negatives": [prose.pair()["positives"][0], row["positives"][0]]})
        one, other = prose.pair(), prose.pair()  # of the same query: what the one finds, the other must not
        made += [one, {"query": one["query"], "positives": other["positives"], "negatives": one["positives"]}]
    made += [{"query": row["query"], "positives": [row["query"]]} for row in (prose.pair() for _ in range(10 * times))]
    made += [prose.pair("fr") for _ in range(40 * times)]
    made += [{"query": prose.pair()["query"], "positives": [" ".join(prose.pair()["positives"][0] for _ in range(4))]}
             for _ in range(25 * times)]  # fmt: skip
    made += [row | {"query": f"query: {row['query']}"} for row in (prose.pair() for _ in range(12 * times))]
    made += [prose.pair() | {"source": "few"} for _ in range(5)]
    made += [prose.pair() | {"query": "  "} for _ in range(4 * times)]
    made += [prose.pair() | {"positives": [""]} for _ in range(4 * times)]
    rng.shuffle(made)
    counts = {
        "exact_duplicates": 200 * times,
        "leakage": 50 * times,
        "positives_as_negatives": 30 * times,
        "query_equals_positive": 10 * times,
        "languages": 40 * times,
        "truncation": 25 * times,
        "prompts": 12 * times,
        "source_imbalance": 1,
        "empty_texts": 8 * times,
    }
    return made, [Record(row["query"], row["positives"]) for row in held], counts
