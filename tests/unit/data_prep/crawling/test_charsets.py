"""Bytes to text: every place where a charset may stand, and what happens when it is wrong."""

import pytest

pytest.importorskip("w3lib")
from data_prep.crawling.charsets import decode

RUSSIAN = (
    "<p>Дымоход: канал, по которому дым уходит из печи в трубу. Задвижка закрывает его, когда печь протоплена. "
    "Если закрыть её рано, угарный газ останется в доме. "
    "Поддувало пропускает воздух под решётку, на которой горят дрова.</p>"
)
GREEK = (
    "<p>Καμινάδα: ο αγωγός από τον οποίο ο καπνός φεύγει από το τζάκι. Η στάχτη πέφτει κάτω από τη σχάρα, όπου μπαίνει "
    "και ο αέρας για τη φωτιά. Όταν τα ξύλα έχουν καεί, ο αγωγός κλείνει για να μείνει η ζέστη στο σπίτι.</p>"
)
GERMAN = "<p>Maßstab für größere Öfen: Rauchzüge müssen für die Wärme übersichtlich geführt werden.</p>"
JAPANESE = "<p>用語集は、ある分野の用語を集めて、その意味を説明したものである。</p>"
TEXTS = {"windows-1251": RUSSIAN, "koi8-r": RUSSIAN, "iso-8859-7": GREEK, "windows-1252": GERMAN}
TEXTS |= dict.fromkeys(("shift_jis", "euc-jp", "iso-2022-jp"), JAPANESE)


@pytest.mark.parametrize("place", ["header", "meta"])
@pytest.mark.parametrize("charset", [*TEXTS, "utf-8", "utf-16"])
def test_a_declared_charset_is_used_without_a_word(charset, place):
    text = TEXTS.get(charset, RUSSIAN)
    if place == "meta" and charset != "utf-16":  # which no page can say of itself in ASCII
        text = f'<head><meta charset="{charset}"></head>{text}'
    found = decode(text.encode(charset), "text/html" if "<head>" in text else f"text/html; charset={charset}")
    assert (found.text, found.note) == (text, "")


@pytest.mark.parametrize("charset", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_outweighs_the_header_which_is_reported(charset):
    found = decode(RUSSIAN.encode(charset), "text/html; charset=koi8-r")
    assert found.text == RUSSIAN
    assert found.note.startswith("HTTP header (koi8-r) says koi8-r, the byte order mark utf-")


SAID = ("utf-8", "iso-8859-1", "windows-1251", "koi8-r", "shift_jis", "iso-8859-7", "utf-16")
WRONG = [(charset, said) for charset in TEXTS for said in SAID if said != charset]
WRONG.remove(("windows-1252", "iso-8859-1"))  # the same, as browsers read it


@pytest.mark.parametrize(("charset", "said"), WRONG)
def test_a_wrong_charset_is_not_used_and_reported(charset, said):
    found = decode(TEXTS[charset].encode(charset), f"text/html; charset={said}")
    assert found.text == TEXTS[charset] and found.note
    if charset != "iso-2022-jp" and said != "utf-16":
        assert f"HTTP header ({said}) says" in found.note


@pytest.mark.parametrize("said", ["iso-8859-1", "windows-1251", "shift_jis", "us-ascii"])
def test_utf8_is_recognised_whatever_is_declared(said):
    found = decode(RUSSIAN.encode(), f"text/html; charset={said}")
    assert (found.text, found.charset) == (RUSSIAN, "utf-8") and "the bytes are UTF-8" in found.note


def test_header_and_page_that_disagree():
    """The header counts (RFC 9110), unless the bytes contradict it."""
    page = f'<meta charset="koi8-r">{RUSSIAN}'
    header = "HTTP header (windows-1251) says"
    found = decode(page.encode("cp1251"), "text/html; charset=windows-1251")
    assert (found.text, found.note) == (page, f"page says koi8-r; read as cp1251, as the {header}")
    found = decode(page.encode("koi8-r"), "text/html; charset=windows-1251")
    assert found.text == page and found.note.startswith(f"{header} cp1251; read as koi8-r")


def test_without_any_declaration_utf8_is_certain_and_the_rest_is_a_guess_that_is_said():
    assert decode(RUSSIAN.encode()).note == ""
    found = decode(RUSSIAN.encode("koi8-r"))
    assert found.text == RUSSIAN and found.note == "no charset is declared; read as koi8_r (guessed)"
    assert decode(GERMAN.encode("cp1252")).text == GERMAN
    assert decode(b"plain").note == ""


def test_unknown_names_and_broken_bytes_are_reported():
    found = decode(RUSSIAN.encode(), "text/html; charset=cp-none")
    assert (found.text, found.note) == (RUSSIAN, "the HTTP header names an unknown charset, 'cp-none'")
    broken = RUSSIAN.encode()[:-5] + b"\xff\xfe\xff</p>"
    found = decode(broken, "text/html; charset=utf-8")
    assert found.charset == "utf-8" and found.text.count("\ufffd") == 3
    assert found.note == "3 places are no utf-8 and became U+FFFD"


def test_right_declarations_of_real_pages_raise_no_alarm_and_wrong_ones_are_found(real_data):
    """Pages of six languages in the charsets of their time: no right declaration is doubted, and every wrong one is
    reported, but for the Latin charsets among each other, which share most letters (those are not tried here)."""
    own = {"de": "cp1252", "el": "cp1253", "he": "cp1255", "ja": "euc_jp", "ro": "cp1250", "ru": "koi8_r"}
    latin, wrong, silent = {"cp1250", "cp1252", "cp1257"}, 0, 0
    for language, charset in own.items():
        path = real_data / "glossary_pages" / "okfn_opendatahandbook" / language / "glossary.html"
        body = path.read_text(encoding="utf-8").replace("charset=utf-8", "").encode(charset, "xmlcharrefreplace")
        assert decode(body, f"text/html; charset={charset}").note == "", language
        for said in {"utf-8", "cp1251", *own.values()} - {charset} - (latin if charset in latin else set()):
            wrong += 1
            silent += decode(body, f"text/html; charset={said}").note == ""
    assert (wrong, silent) == (40, 0)
