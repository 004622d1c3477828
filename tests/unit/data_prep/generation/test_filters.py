"""Filters of pairs: what each leaves out among planted pairs, and that it leaves the rest."""

import codecs

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.generation.filters import Filters, Pair
from data_prep.records import normalise
from data_prep.stores.base import Chunk
from data_prep.texts.near_duplicates import jaccard, shingles

TEXTS = {
    "valve": "The safety valve opens at three bar and lets steam out until the pressure falls below two bar.",
    "boiler": "The boiler heats forty litres of water within ten minutes and switches itself off afterwards.",
    "chimney": "Der Schornstein wird zweimal im Jahr gereinigt, im Frühling vor der Heizpause und im Herbst danach.",
    "garden": "Tomatoes want sun and much water; cut side shoots every week from June to the end of August.",
}
CHUNKS = {name: Chunk(name, text) for name, text in TEXTS.items()}


def verdicts(filters: Filters, *pairs: tuple[str, str, str], encoder=None) -> list[str | None]:
    (built,) = filters.build(lambda: iter(CHUNKS.values()), encoder)
    return built([Pair(CHUNKS[name], question, answer) for name, question, answer in pairs])


def test_nothing_is_filtered_unless_asked_for():
    assert Filters().build(lambda: iter(()), None) == []


def test_length_in_words():
    pairs = [("valve", "When?", "At three bar."), ("valve", "When does the valve open?", "At.")]
    assert verdicts(Filters(question_words=(2, 6)), *pairs) == ["question length: 1 words, wanted 2 to 6", None]
    assert verdicts(Filters(answer_words=(2, 3)), *pairs) == [None, "answer length: 1 words, wanted 2 to 3"]
    assert verdicts(Filters(question_words=(1, 4)), *pairs) == [None, "question length: 5 words, wanted 1 to 4"]


def test_language_of_question_and_answer():
    german = "Wie oft wird der Schornstein im Jahr gereinigt?"
    english = "How often is the chimney cleaned during the year?"
    assert verdicts(
        Filters(same_language=True),
        ("chimney", german, "Zweimal im Jahr, im Frühling und im Herbst."),
        ("chimney", english, "Zweimal im Jahr, im Frühling und im Herbst."),
        ("chimney", german, "Twice a year, before and after the heating season."),
        ("valve", german, "It opens at three bar of pressure."),
        ("valve", "3 bar?", "3 bar"),  # too short to tell
    ) == [
        None,
        "language: the question is in 'en', the chunk in 'de'",
        "language: the answer is in 'en', the chunk in 'de'",
        "language: the question is in 'de', the chunk in 'en'",
        None,
    ]


def test_answers_that_the_chunk_does_not_hold():
    copied, turned, foreign, short = verdicts(
        Filters(grounded=0.5),
        ("valve", "When?", "It opens at three bar."),
        ("valve", "When?", "At three bar the safety valves are opening."),
        ("valve", "When?", "Nobody knows, as Mount Everest is a mountain in Asia."),
        ("valve", "When?", "bar"),
    )
    assert (copied, turned, short) == (None, None, None)
    assert foreign.startswith("not grounded: 0.")


def test_round_trip_by_bm25():
    found = verdicts(
        Filters(round_trip=1),
        ("valve", "At what pressure does the safety valve open?", "At three bar."),
        ("valve", "How many litres of water does the boiler heat?", "Forty."),
        ("garden", "Xylophone?", "No."),
    )
    assert found == [
        None,
        "round-trip: the question finds its chunk at rank 3, wanted 1",
        "round-trip: the question finds its chunk at rank 4, wanted 1",
    ]
    assert verdicts(Filters(round_trip=3), ("valve", "How many litres of water does the boiler heat?", "F.")) == [None]


def test_a_copy_of_a_chunk_does_not_push_it_down():
    chunks = [*CHUNKS.values(), Chunk("copy", TEXTS["valve"].upper()), Chunk("copy 2", TEXTS["valve"])]
    (built,) = Filters(round_trip=1).build(lambda: iter(chunks), None)
    assert (
        built([Pair(chunk, "When does the safety valve open?", "x") for chunk in (chunks[0], *chunks[4:])])
        == [None] * 3
    )


class Letters:
    """Counts of letters: finds texts that are written alike. It reads queries in another way than passages."""

    def passages(self, texts):
        return np.array([[text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])

    def queries(self, texts):
        return self.passages([codecs.decode(text, "rot13") for text in texts])


def test_round_trip_by_an_encoder():
    asked = (("valve", TEXTS["valve"]), ("boiler", TEXTS["chimney"] * 3))
    pairs = [(name, codecs.encode(text, "rot13"), "x") for name, text in asked]
    found = verdicts(Filters(round_trip=1), *pairs, encoder=Letters())
    assert found[0] is None
    assert found[1].startswith("round-trip: the question finds its chunk at rank ")


def test_near_duplicate_questions():
    pairs = [
        ("valve", "At what pressure does the safety valve open?", "x"),
        ("valve", "At what pressure does the safety valve open up?", "x"),
        ("boiler", "At what pressure does the safety valve OPEN ?", "x"),
        ("boiler", "At what pressure does the boiler burst?", "x"),
    ]
    assert verdicts(Filters(near_duplicates=0.8), *pairs) == [
        None,
        "near-duplicate: the same question as 'at what pressure does the safety valve open?'",
        "near-duplicate: the same question as 'at what pressure does the safety valve open?'",
        None,
    ]


words = st.sampled_from(["when", "does", "the", "safety", "valve", "open", "close", "up", "again", "boiler", "why"])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(words, min_size=1, max_size=9).map(" ".join), min_size=1, max_size=12))
def test_only_near_duplicates_of_what_stays_are_left_out(questions):
    found = verdicts(Filters(near_duplicates=0.8), *(("valve", question, "x") for question in questions))
    for place, verdict in enumerate(found):
        if verdict:
            other = verdict.removeprefix("near-duplicate: the same question as ").strip("'")
            assert other in [normalise(q) for q, v in zip(questions[:place], found) if v is None]
            assert jaccard(shingles(other), shingles(normalise(questions[place]))) >= 0.8
    kept = [normalise(question) for question, verdict in zip(questions, found) if verdict is None]
    assert len(set(kept)) == len(kept)  # an equal question is always found


@pytest.mark.parametrize(
    "filters, reason",
    [
        (Filters(question_words=(5, 3)), "--question-words 5-3"),
        (Filters(answer_words=(-1, 3)), "--answer-words -1-3"),
        (Filters(grounded=0.0), "--grounded 0:"),
        (Filters(round_trip=0), "--round-trip 0:"),
        (Filters(near_duplicates=1.1), "--near-duplicates 1.1"),
    ],
)
def test_settings_without_meaning(filters, reason):
    (found,) = filters.problems()
    assert found.startswith(reason)
