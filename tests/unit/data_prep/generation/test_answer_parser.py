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
        ('draft {"question":"Q","answer":"wrong"} </think> {"question":"Q","answer":"right"}', [("Q", "right")]),
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
        ('{"pairs": ' + "9" * 5000 + "}", "no JSON in the answer"),
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


WRONG, RIGHT = ('{"question": "Q", "answer": "wrong"}', '{"question": "Q", "answer": "right"}')
# Begin and end of a thought, as models and the templates of servers write them.
NOTATIONS = [
    ("<think>", "</think>"),
    ("<THINK>", "</Think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<thoughts>", "</thoughts>"),
    ("<reasoning>", "</reasoning>"),
    ("<reason type='draft'>", "</reason>"),
    ("<analysis>", "</analysis>"),
    ("<reflection>", "</reflection>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<chain_of_thought>", "</chain_of_thought>"),
    ("<inner_monologue>", "</inner_monologue>"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<ant:thinking>", "</ant:thinking>"),
    ("&lt;think&gt;", "&lt;/think&gt;"),
    ("< think >", "</ think >"),
    ("[THINK]", "[/THINK]"),
    ("[reasoning]", "[/reasoning]"),
    ("◁think▷", "◁/think▷"),
    ("＜think＞", "＜/think＞"),
    ("<|think|>", "<|/think|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>\n<|begin_of_solution|>"),
    ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
    ("<|thought_begin|>", "<|thought_end|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<unused94>thought", "<unused95>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel|>analysis", "<|channel|>final"),
    ("<|channel|>commentary<|message|>", "<|channel|>final <|constrain|>json<|message|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|think|>", "<|end|><|begin|>assistant<|content|>"),
    ("assistantanalysis", "assistantfinal"),
    ("Here is my thought process:", "Here is my response:"),
    ("\nThinking...\n", "...done thinking."),
]


@pytest.mark.parametrize("around", ["{}", "```json\n{}\n```", "Sure: {} Done."])
@pytest.mark.parametrize("start, end", NOTATIONS)
def test_only_what_follows_the_last_thought_counts(start, end, around):
    wrong, right = around.format(WRONG), around.format(RIGHT)
    for text in (
        f"{start}draft {wrong} {end} {right}",
        f"draft {wrong} {end} {right}",
        f"{start}{wrong}{end}{wrong}{start}{start} again {wrong}{end}{right}",
        f"{wrong}{start} {{[ {end}{right}",
        f"{start} the mark {start} and {WRONG[:-3]} {end}{right}",
    ):
        assert parse(text) == Parsed([("Q", "right")]), text


@pytest.mark.parametrize("start, end", NOTATIONS)
def test_a_thought_that_does_not_end_gives_nothing(start, end):
    for text in (f"{start} {WRONG}", f"{WRONG} {start} hm", f"{start}{end} {WRONG} {start} {WRONG}"):
        assert parse(text) == Parsed([], ["no answer: it ends inside a thought of the model"]), text
    assert parse(f"{WRONG} {end}").pairs == []


def test_an_answer_between_marks_of_its_own():
    assert parse(f"draft {WRONG} <answer>{RIGHT}</answer>").pairs == [("Q", "right")]
    assert parse(f"<think>an <answer>{WRONG}</answer>").pairs == []
    assert parse(f"analysisWe need {WRONG}assistantfinal{RIGHT}").pairs == [("Q", "right")]
    assert parse(f"analysisWe need {WRONG}").pairs == []
    assert parse(f"<details type='reasoning'>{WRONG}</details>{RIGHT}").pairs == [("Q", "right")]


def test_another_notation_does_not_end_a_thought():
    assert parse(f"<think> not </reasoning> {WRONG}").pairs == []
    assert parse(f"<think> <reasoning> x </reasoning> {WRONG} </details> {WRONG}").pairs == []
    assert parse(f"<think> <reasoning> {WRONG} </think> {RIGHT}").pairs == [("Q", "right")]


@pytest.mark.parametrize(
    "text",
    [
        f"<details><summary>JSON</summary>{RIGHT}</details>",
        f"{RIGHT}<|end|>",
        f"The analysis of the text (see [analysis](x)): {RIGHT}",
        f"<think/>{RIGHT}",
        f"[think about the valve] {RIGHT}",
        f"(reasoning) {RIGHT}",
        f"I think [1] that this thinking fits: {RIGHT} <|return|>",
        f"analysis of the text: {RIGHT}",
        f"The assistant finally writes: {RIGHT}",
    ],
)
def test_what_only_looks_like_a_thought_hides_nothing(text):
    assert parse(text).pairs == [("Q", "right")]


@pytest.mark.parametrize("mark", [mark for pair in NOTATIONS for mark in pair])
def test_a_mark_inside_a_pair_is_a_word_of_it(mark):
    some = [(f"What is {mark}?", f"A mark: {mark} it is."), ("Q", "right")]
    text = json.dumps([{"question": question, "answer": answer} for question, answer in some])
    assert parse(text).pairs == some
    assert parse(f"<think> {WRONG} </think> {text}").pairs == some


@pytest.mark.parametrize("key", ["thinking", "Reasoning", "reasoning_content", "analysis", "thought_process", "draft"])
def test_a_thought_under_a_key_is_none_of_the_pairs(key):
    text = f'{{"{key}": [{WRONG}], "pairs": [{RIGHT}]}}'
    assert parse(text) == Parsed([("Q", "right")])
    assert parse(f'{{"{key}": "why", "question": "Q", "answer": "right"}}') == Parsed([("Q", "right")])


words_between = st.text(st.sampled_from("ab \n[]{}\"',:`<>/|#*é"), max_size=12)
drafts = st.sampled_from(["", WRONG, f"[{WRONG}]", f"```json\n{WRONG}\n```", WRONG[:20], '{"pairs": [', '"', "```"])


@st.composite
def thoughts(draw):
    """A thought with drafts in it; the mark that begins it may be missing."""
    start, end = draw(st.sampled_from(NOTATIONS))
    inside = "".join(draw(st.lists(st.one_of(words_between, drafts), max_size=4)))
    return f"{draw(st.sampled_from([start, start, '']))}{inside}{end}"


@settings(deadline=None, max_examples=400)
@given(
    st.lists(st.one_of(thoughts(), words_between, drafts), max_size=5),
    thoughts(),
    st.sampled_from(["", "Sure:", "```json\n", "Here [as JSON]:\n"]),
    st.booleans(),
)
def test_no_pair_comes_from_inside_a_thought(before, last, chatter, answered):
    found = parse("".join(before) + last + chatter + (RIGHT if answered else "Nothing fits."))
    assert ("Q", "wrong") not in found.pairs
    assert found.pairs or found.misfits
    assert found.pairs in ([], [("Q", "right")])


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.sampled_from(NOTATIONS), st.booleans(), drafts), min_size=1, max_size=4),
    st.sampled_from(["{}", "```json\n{}\n```", "Sure: {}"]),
)
def test_the_answer_after_thoughts_that_end_is_found(some, around):
    text = "".join(f"{start if begun else ''} {inside} {end}\n" for (start, end), begun, inside in some)
    assert parse(text + around.format(RIGHT)).pairs == [("Q", "right")]


HEADINGS = [
    ("Thinking:", "Answer:"),
    ("## Reasoning", "## Final answer"),
    ("**Thought process**", "**Answer:**"),
    ("**Analysis:**", "**Output**"),
    ("THOUGHTS", "RESULT"),
    ("Let's think:", "Final Answer:"),
    ("> Chain of thought:", "The answer:"),
    ("Step-by-step:", "JSON:"),
]


@pytest.mark.parametrize("around", ["{}", "```json\n{}\n```", "Sure: {}"])
@pytest.mark.parametrize("thought, answer", HEADINGS)
def test_headings_part_a_thought_from_the_answer(thought, answer, around):
    wrong, right = around.format(WRONG), around.format(RIGHT)
    for text in (
        f"{thought}\nmaybe {wrong}\n\n{answer}\n{right}",
        f"{thought} maybe {wrong}\n{answer} {right}"
        if thought.endswith((":", "*"))
        else f"{thought}\n{wrong}\n{answer}\n{right}",
        f"{thought}\n{wrong}\n{answer}\n{wrong}\nNo.\n{answer}\n{right}",
    ):
        assert parse(text) == Parsed([("Q", "right")]), text


@pytest.mark.parametrize(
    "text",
    [
        f"Thinking:\n{RIGHT}",
        f"Thinking:\n{RIGHT}\nAnswer: as above",
        f"{RIGHT}\nThinking: it fits\nAnswer: yes",
        f"Question: one\nAnswer: {RIGHT}",
        f"The analysis shows this.\nThe answer is {RIGHT}",
    ],
)
def test_a_heading_alone_hides_nothing(text):
    assert parse(text).pairs == [("Q", "right")]


def test_a_heading_inside_a_pair_is_a_word_of_it():
    some = [("Why?\nThinking:\nyes", "Answer:\n[1]"), ("Q", "right")]
    text = "[" + ", ".join(f'{{"question": "{q}", "answer": "{a}"}}' for q, a in some) + "]"
    assert parse(text).pairs == some
