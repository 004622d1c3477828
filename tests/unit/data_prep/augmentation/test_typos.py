"""Typos: what each kind does to a word, on the keyboard of its script, and what is left alone."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.augmentation.keyboards import LAYOUTS, hangul_keys, hangul_text, neighbours
from data_prep.augmentation.phrases import Phrases, in_case_of, read_misspellings, read_synonyms
from data_prep.augmentation.rewriting import Changes, Writer
from data_prep.augmentation.typos import KINDS, Typist
from data_prep.common.errors import BadInput

syllables = st.text(st.characters(min_codepoint=ord("가"), max_codepoint=ord("힣")), min_size=2, max_size=6)
latin = st.text("abcdefghijklmnopqrstuvwxyz", min_size=4, max_size=10)
cyrillic = st.text("абвгдеёжзийклмнопрстуфхцчшщъыьэюя", min_size=4, max_size=10)
words = st.one_of(latin, latin.map(str.capitalize), latin.map(str.upper), cyrillic, syllables)
seeds = st.integers(0, 10_000).map(random.Random)


def only(kind, rate=1.0, listed=None):
    return Typist(rate, {kind: 1.0}, listed)


@given(syllables)
def test_korean_text_survives_its_keystrokes(text):
    assert hangul_text(hangul_keys(text)) == text


@pytest.mark.parametrize(
    "typed, shown",
    [("ㄷㅏㄹㄱㅣ", "달기"), ("ㄷㅏㄹㄱ", "닭"), ("ㅇㅗㅏ", "와"), ("ㄱㅏㄱㄱㅏ", "각가"), ("ㅇㅓㅂㅅㅇㅓ", "없어")]
    + [("ㄱㄱㅏ", "ㄱ가"), ("ㄱㅏㅏ", "가ㅏ")],
)
def test_keystrokes_become_what_a_korean_input_method_shows(typed, shown):
    assert hangul_text(typed) == shown


def test_neighbours_are_the_keys_that_touch():
    near = {key: set(others) for key, others in neighbours().items()}
    assert near["g"] == set("ftyhvb")
    assert near["q"] == set("wa")
    assert near["п"] == set("аренми")
    assert near["ㅎ"] == set("ㄹㅗㅅㅛㅍㅠ")
    plain = {key for key in near if key not in "ㅃㅉㄸㄲㅆㅒㅖ"}
    assert plain == {key for rows in LAYOUTS.values() for row in rows for key in row}
    for key in plain:
        assert all(key in near[other] for other in near[key])
    assert near["ㄲ"] == near["ㄱ"] | {"ㄱ"}


@given(words, st.sampled_from(["neighbour", "drop", "double", "swap"]), seeds)
def test_a_wrong_key_is_one_edit_of_its_kind_and_never_the_first(word, kind, draw):
    made, kinds = only(kind).type(word, draw)
    korean = hangul_keys(word) if "가" <= word[0] <= "힣" else ""
    keys, typed = list(korean or word), list(hangul_keys_of(made) if korean else made)
    if made == word:  # too few keys, or two equal letters to swap
        assert len(keys) < 4 or kind == "swap"
        return
    assert kinds == [kind]
    assert typed[0] == keys[0]
    if kind == "neighbour":
        ((old, new),) = [(a, b) for a, b in zip(keys, typed, strict=True) if a != b]
        assert new.lower() in neighbours()[old.lower()]
        assert new.isupper() == old.isupper()
    elif kind == "swap":
        first, second = [i for i, (a, b) in enumerate(zip(keys, typed, strict=True)) if a != b]
        assert (second, typed[first], typed[second]) == (first + 1, keys[second], keys[first])
    else:
        long, short = (keys, typed) if kind == "drop" else (typed, keys)
        assert len(long) == len(short) + 1
        places = [i for i in range(1, len(long)) if long[:i] + long[i + 1 :] == short]
        assert places
        if kind == "double":
            assert any(long[i] == long[i - 1] for i in places)


def hangul_keys_of(text):
    """Keystrokes of syllables and of letters that stand alone, which may be two keys themselves."""
    return "".join(hangul_keys(char) if "가" <= char <= "힣" else char for char in text)


@given(st.lists(words, min_size=2, max_size=4).map(" ".join), st.sampled_from(["split", "join"]), seeds)
def test_split_and_joined_words_differ_in_spaces_only(text, kind, draw):
    made, kinds = only(kind).type(text, draw)
    assert made.replace(" ", "") == text.replace(" ", "")
    spaces = made.count(" ") - text.count(" ")
    assert spaces == (len(kinds) if kind == "split" else -len(kinds))
    for part in made.split(" "):
        assert len(part) >= 2 or "가" <= part <= "힣"


def test_the_example_of_the_issue_is_among_the_splits():
    found = {only("split").type("дымоход", random.Random(seed))[0] for seed in range(200)}
    assert found == {"ды моход", "дым оход", "дымо ход", "дымох од"}


@pytest.mark.parametrize("text", ["v1.13 a4 iphone12", "кот дом", "東京の天気予報", "the pod", "!!! ...", "", "한"])
def test_numbers_short_words_and_unspaced_scripts_are_left(text):
    for kind in KINDS:
        assert only(kind).type(text, random.Random(1)) == (text, [])


def test_the_rate_is_the_share_of_words_and_weights_are_those_of_kinds():
    text = " ".join(["network"] * 20_000)
    made, kinds = Typist(0.25, {"drop": 3.0, "double": 1.0}).type(text, random.Random(0))
    counts = Counter(kinds)
    assert 0.24 < counts.total() / 20_000 < 0.26
    assert 0.73 < counts["drop"] / counts.total() < 0.77
    assert sum(word != "network" for word in made.split()) == counts.total()
    assert Typist(0.0, {"drop": 1.0}).type(text, random.Random(0)) == (text, [])


def test_a_listed_word_gets_a_listed_misspelling_in_its_own_case():
    listed = Phrases([("receive", "recieve"), ("Cape Town", "Capetown"), ("12th", "12st")])
    typist = only("drop", listed=listed)
    assert typist.type("Receive", random.Random(0)) == ("Recieve", ["listed"])
    assert typist.type("RECEIVE", random.Random(0)) == ("RECIEVE", ["listed"])
    assert typist.type("the cape  town 12th", random.Random(0)) == ("the Capetown 12st", ["listed", "listed"])
    assert typist.type("receives", random.Random(0))[1] == ["drop"]


@pytest.mark.parametrize(
    "model, made", [("word", "text"), ("Word", "Text"), ("WORD", "TEXT"), ("A", "Text"), ("1", "text")]
)
def test_a_replacement_takes_the_case_of_what_it_replaces(model, made):
    assert in_case_of(model, "text") == made


def test_synonyms_in_both_notations(tmp_path):
    path = tmp_path / "s.txt"
    path.write_text("# kitchen\nfridge, refrigerator\nchimney, flue => flue pipe, дымоход\n\n")
    alike = read_synonyms(path)

    def found(text):
        writer = Writer(Changes(typo_rate=0.0, synonym_rate=1.0), None, alike)
        return {writer.rewrite(text, random.Random(seed)) == (text, []) or writer.rewrite(text, random.Random(seed))[0]
                for seed in range(30)}  # fmt: skip

    assert found("a Fridge!") == {"a Refrigerator!"}
    assert found("REFRIGERATOR") == {"FRIDGE"}
    assert found("flue for a stove") == {"flue pipe for a stove", "дымоход for a stove"}
    assert found("дымоход") == {True}  # the arrow points one way
    assert found("fridges") == {True}


def test_case_punctuation_and_script():
    def found(text, **rates):
        writer = Writer(Changes(typo_rate=0.0, **rates), None, None)
        return {writer.rewrite(text, random.Random(seed))[0] for seed in range(60)}

    assert found("What is Mould", case_rate=1.0) == {"what is mould", "WHAT IS MOULD", "What is mould"}
    assert found("東京", case_rate=1.0) == {"東京"}
    assert found("e-mail, 2.5 kg?", punctuation_rate=1.0) == {
        "e mail 2.5 kg",
        "e-mail, 2.5 kg",
        "e mail, 2.5 kg?",
        "email, 2.5 kg?",
    }
    assert found("what", punctuation_rate=1.0) == {"what?", "what.", "what!"}
    assert found("?!", punctuation_rate=1.0) == {"?!"}
    russian = found("Дымоход ЮНА", transliteration_rate=1.0)
    assert russian == {"Dymokhod YUNA", "Dymohod IUNA", "Dymokhod IUNA"}
    both = found("смеситель Grohe", transliteration_rate=1.0)
    assert both == {"смеситель Грохе", "smesitel Grohe"}
    assert found("東京", transliteration_rate=1.0) == {"東京"}


@pytest.mark.parametrize(
    "read, content, parts",
    [
        (read_misspellings, "recieve receive\nteh\tthe\n", [":1: must be a misspelling, a tab"]),
        (
            read_misspellings,
            "a\tb\tc\n\tx\nSame\tsame\n",
            [":1: must", "(2 times; also line 2)", ":3: misspelling and"],
        ),
        (read_misspellings, "# nothing\n\n", ["has no line to use"]),
        (read_synonyms, "a, b\nalone\nx => y => z\na,,b\n", [":2: needs two different", ":3: must be", "also line 4)"]),
        (read_synonyms, "!, ?\n", [":1: must be texts"]),
        (read_synonyms, b"\xff\xfe", ["is not UTF-8"]),
        (read_synonyms, "x\n" * 60, ["(60 times; also line 2, line 3, line 4, 56 more)"]),
        (read_synonyms, None, ["No such file"]),
    ],
)
def test_bad_lists_name_every_line(tmp_path, read, content, parts):
    path = tmp_path / "list"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput) as error:
        read(path)
    for part in parts:
        assert part in str(error.value)
