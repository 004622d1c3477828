"""A model's answers to pairs: every form that models write, cut anywhere, and nothing that was cut off."""

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_prep.generation.answer_parser import Parsed, parse
from data_prep.records import normalise
from tests.language_model import FORMS, content, expected

PAIR = '{"question": "Why?", "answer": "So."}'


@pytest.mark.parametrize("form", [form for form in FORMS if form != "refusal"])
def test_every_form_gives_the_pairs_that_are_whole(form):
    assert parse(content("c7", form)).pairs == expected("c7", form)


@pytest.mark.parametrize(
    "text, pairs",
    [
        (PAIR, [("Why?", "So.")]),
        (f"[{PAIR}]", [("Why?", "So.")]),
        (f'{{"qa": {{"items": [{PAIR}]}}}}', [("Why?", "So.")]),
        (f'{{"1": {PAIR}, "2": {{"Question": "Who?", " ANSWER": "Me."}}}}', [("Why?", "So."), ("Who?", "Me.")]),
        ("{'question': 'Why?', 'answer': 'It\\'s so.'}", [("Why?", "It's so.")]),
        ('[{"question": "Who said "hi"?", "answer": "Bob."}]', [('Who said "hi"?', "Bob.")]),
        ('{"question": "Why?", "answer": "One\nTwo"}', [("Why?", "One\nTwo")]),
        (f"<think>{PAIR}", []),
        (f"see [the note {PAIR}", [("Why?", "So.")]),
    ],
)
def test_pairs_are_found_wherever_they_stand(text, pairs):
    assert parse(text).pairs == pairs


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "empty answer"),
        ("<think>Hm.</think> ", "empty answer"),
        ("I cannot help with that.", "no JSON in the answer"),
        ("[]", "an empty list: the model found no question"),
        ('{"pairs": []}', "an empty list: the model found no question"),
        ('["Why?", "Who?"]', 'no object with "question" and "answer" in the JSON'),
        ('{"q": "Why?", "a": "So."}', 'no object with "question" and "answer" in the JSON'),
        ('{"question": "Why?"}', "without answer: no text under this key"),
        ('{"question": " ", "answer": "So."}', "without question: only white space"),
        ('{"question": "Why?", "answer": 42}', "answer is no text: a number (42)"),
        ('{"question": ["Why?"], "answer": "So."}', "question is no text: a list"),
        ('{"question": "Why?", "answer": "WHY? "}', "the answer repeats the question"),
        (
            '{"question": "Why \\ud83d?", "answer": "So."}',
            "question is no text: holds half of a surrogate pair (a cut emoji)",
        ),
        ('{"question": "Why?", "answer": "Because of', "cut off: the answer ends inside a pair"),
        ('[{"question": "Why?", "answer": "It is \\u00', "cut off: the answer ends inside a pair"),
        ("[" * 100_000, "a heap of brackets that open no JSON"),
        ('[{"question": "Why' * 1000, "a heap of brackets that open no JSON"),
    ],
)
def test_an_answer_without_a_pair_says_why(text, reason):
    found = parse(text)
    assert (found.pairs, found.misfits) == ([], [reason])


def test_the_last_pair_of_a_malformed_answer_that_was_cut_is_left_out():
    text = "[{'question': 'Why?', 'answer': 'So.'}, {'question': 'Who?', 'answer': 'It was the"
    assert parse(text, cut=True) == Parsed([("Why?", "So.")], ["cut off: the answer ends inside a pair"])


def test_what_fits_stays_beside_what_does_not():
    found = parse(f'[{PAIR}, "text", null, {{"question": "Who?"}}, {PAIR}]')
    assert found.pairs == [("Why?", "So.")]
    assert found.misfits == [
        "not an object: a text ('text')",
        "not an object: null",
        "without answer: no text under this key",
        "the question stands twice in one answer",
    ]


texts = st.text(
    st.sampled_from("ab?.,:;'\"[]{}\\/\n\t é日") | st.characters(codec="utf-8", exclude_categories=("Cc",)),
    min_size=1,
    max_size=30,
)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=3), st.floats(0, 1), st.booleans())
def test_a_cut_answer_gives_every_pair_before_the_cut_and_no_half_one(some, share, wrapped):
    some = [(question.strip(), answer.strip()) for question, answer in some]
    assume(all(question and answer and normalise(question) != normalise(answer) for question, answer in some))
    assume(len({normalise(question) for question, _ in some}) == len(some))
    written = [json.dumps({"question": question, "answer": answer}, ensure_ascii=False) for question, answer in some]
    head, tail = ('{"pairs": [', "]}") if wrapped else ("[", "]")
    text = head + ", ".join(written) + tail
    end = int(share * len(text))
    ends = [len(head + ", ".join(written[:n])) for n in range(1, len(some) + 1)]
    found = parse(text[:end]).pairs
    assert found == some[: len(found)]
    assert len(found) >= sum(place <= end for place in ends)


@settings(deadline=None)
@given(st.text())
def test_no_text_is_too_odd(text):
    found = parse(text)
    assert found.pairs or found.misfits
