"""Sentences of many scripts, of texts in lower case, and what only looks like the end of one."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.mining.bm25 import TOKENS
from data_prep.texts.sentences import sentences


@pytest.mark.parametrize(
    "text",
    [
        "यह पहला वाक्य है।|यह दूसरा वाक्य है।|और तीसरा है?",
        "এটি প্রথম বাক্য।|এটি দ্বিতীয় বাক্য।",
        "هذا هو الباب. |هل هو مفتوح؟ |نعم.",
        "یہ پہلا جملہ ہے۔|یہ دوسرا جملہ ہے۔",
        "Սա առաջինն է։ |Սա երկրորդն է։",
        "ይህ አንደኛ ነው። |ይህ ሁለተኛ ነው።",
        "ဒါက ပထမ စာကြောင်း။ |ဒါက ဒုတိယ။",
        "នេះជាប្រយោគទីមួយ។ |នេះជាប្រយោគទីពីរ។",
        "ཚིག་དང་པོ། |ཚིག་གཉིས་པ།",
        "これは最初の文です。|次の文！|最後．３．５です。",
        "「はい。」|彼は言った。",
        "ประโยคแรกของข้อความนี้ยาวพอ |ประโยคที่สองก็ยาวพอเช่นกัน",
        "Τι είναι αυτό; |Είναι μια πόρτα.",
        "ეს არის პირველი. |ეს არის მეორე.",
        "Está lista. |¿Cómo se abre? |¡Muy bien!",
        "Sie ist auf. »Wie?« |Так. |«Как?» |Вот.".replace("auf. »", "auf. |»"),
        "the handle is turned first. |then the frame is pulled. |fresh air comes in, e.g. from outside.",
        "iPhone sales rose. |iPad sales fell. |macOS stayed.",
        "это первое. |потом второе, т.е. третье. |и всё.",
        "is it open? |yes it is! |then go in.",
        "One line.\r\n\r\n|Another line\r\r|and a third\n \n|and more",
        "He saw approx. five men with Dr. Smith. |Then he left.",
        "Yahoo! has v1.5 of x.y. |Next comes J. Smith.",
        "1. Open the window. |Close it.",
        'It moves (if free.) |"It turns (slowly)." |“Air comes.” |Then it stops.',
    ],
)
def test_sentences_of_many_scripts(text):
    whole = text.replace("|", "")
    found = [whole[start:end].strip() for start, end in sentences(whole)]
    assert found == [part.strip() for part in text.split("|")]


def test_the_danda_that_is_typed_as_a_bar():
    text = "यह पहला वाक्य है | यह दूसरा वाक्य है |"
    assert [text[start:end] for start, end in sentences(text)] == ["यह पहला वाक्य है |", "यह दूसरा वाक्य है |"]


@pytest.mark.parametrize(
    "text, count",
    [
        ("यह पहला वाक्य है", 4),
        ("नमस्ते दुनिया", 2),
        ("தமிழ் மொழி", 2),
        ("שָׁלוֹם עוֹלָם", 2),
        ("مَرْحَبًا بِكُمْ", 2),
        ("cafe\u0301 cre\u0300me", 2),
        ("ครับ", 4),
        ("a bc d_e ❤\ufe0f", 2),
        ("日本 abc", 3),
    ],
)
def test_a_word_keeps_the_marks_on_its_letters(text, count):
    assert len(re.findall(TOKENS, text)) == count


@settings(deadline=None)
@given(st.text(st.sampled_from("aB1 .!?।。؟;…\n\r\"')(«»ก ं์|") | st.characters(), max_size=60))
def test_sentences_divide_any_text(text):
    end_before = 0
    for start, end in sentences(text):
        assert end_before <= start < end <= len(text)
        assert text[start:end].strip()
        assert not re.search(r"\w", text[end_before:start])
        end_before = end
    assert not text[end_before:].strip()
