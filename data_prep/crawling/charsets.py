"""Bytes of a page to text, by byte order mark, HTTP header and `meta`, each validated against the bytes."""

import codecs
import re
from dataclasses import dataclass

UTF8_SURE = 4  # valid UTF-8 sequences of several bytes: so many are no accident
# By how much a declared charset may be worse than the likeliest one (charset_normalizer's measures, both 0..1):
MESS_MARGIN = 0.08  # share of unlikely characters
LANGUAGE_MARGIN = 0.3  # likeness of the letters' frequencies to those of a language
SAMPLE = 20_000  # bytes of words beyond ASCII to measure
NO_CHARSET = "windows-1252"  # what browsers take for a page that names none, and that is no UTF-8

_SEVERAL = re.compile(rb"[\xc2-\xf4][\x80-\xbf]+")
_TAGS = re.compile(rb"<[^<>]*>")
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be")) + (
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A page's text."""

    text: str
    charset: str  # that the text was read in
    note: str = ""  # for people, on a charset that was contradicted or guessed, and on lost bytes


def decode(body: bytes, content_type: str = "") -> Decoded:
    """Returns the text of a page.

    A declared charset that the bytes contradict is not used, and the note says so. Bytes that the charset lacks become
    U+FFFD, and the note counts them.
    """
    declared, notes = _declared(body, content_type)
    for mark, charset in _MARKS:
        if body.startswith(mark):
            others = [other for other in declared if not _same(other[1], charset)]
            notes += [f"{origin} says {name}, the byte order mark {charset}" for origin, name in others]
            return Decoded(body[len(mark) :].decode(charset, "replace"), charset, "; ".join(notes))
    charset, why = _choose(body, declared)
    text = body.decode(charset, "replace")
    lost = text.count("\ufffd") - (body.count("\ufffd".encode()) if charset == "utf-8" else 0)
    notes += [why] if why else []
    notes += [f"{lost:,} places are no {charset} and became U+FFFD"] if lost else []
    return Decoded(text, charset, "; ".join(notes))


def _declared(body: bytes, content_type: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Returns [(origin, charset)], the HTTP header first as it outweighs the page, and notes on unknown charsets."""
    from w3lib.encoding import html_body_declared_encoding, http_content_type_encoding

    header, page = http_content_type_encoding(content_type), html_body_declared_encoding(body)
    label = content_type.partition("charset=")[2].strip("\"' ;")
    notes = [f"the HTTP header names an unknown charset, {label!r}"] if label and not header else []
    return [(origin, name) for origin, name in ((f"HTTP header ({label})", header), ("page", page)) if name], notes


def _same(one: str, other: str) -> bool:
    return one == other or (one == "utf-16" and other.startswith("utf-16"))


def _choose(body: bytes, declared: list[tuple[str, str]]) -> tuple[str, str]:
    """Returns the charset of a page without byte order mark, and why it is not the declared one ("": it is)."""
    names = [name for _, name in declared]
    if body.isascii():  # then the charset makes no difference, but for those that switch by ASCII sequences
        return _switching(body, names)
    if b"\0" not in body:  # a page that calls itself UTF-16 in ASCII letters is not
        declared = [(origin, name) for origin, name in declared if not name.startswith(("utf-16", "utf-32"))]
    several = len(_SEVERAL.findall(body))
    if _decodes(body, "utf-8") and (several >= UTF8_SURE or names[:1] in ([], ["utf-8"])):
        return "utf-8", _contradicted(declared[:1], "the bytes are UTF-8") if names[:1] not in ([], ["utf-8"]) else ""
    sample = b" ".join(word for word in _TAGS.sub(b" ", body).split() if not word.isascii())[:SAMPLE]
    guess, best = _guess(sample)
    contradicted = []
    for origin, name in declared:
        if _decodes(body, name) and _as_good(_fit(sample, name), best):
            others = contradicted or [other for other in declared if other[1] != name]
            return name, _contradicted(others, f"read as {name}, as the {origin} says") if others else ""
        contradicted.append((origin, name))
    if "utf-8" in names and several > 9 * len(re.findall("\ufffd", body.decode("utf-8", "replace"))):
        return "utf-8", ""  # some broken bytes in a page that is UTF-8
    if _decodes(body, NO_CHARSET) and _as_good(_fit(sample, NO_CHARSET), best, MESS_MARGIN / 8):
        guess = NO_CHARSET
    return guess, _contradicted(contradicted, f"read as {guess} (guessed)")


def _switching(body: bytes, names: list[str]) -> tuple[str, str]:
    """Returns the charset of an ASCII page, one that switches by escape sequences or UTF-8, and why."""
    declared = next((name for name in names if name.startswith(("iso2022", "hz"))), None)
    if not declared and b"\x1b$" in body and _decodes(body, "iso2022_jp"):
        return "iso2022_jp", "the bytes are ISO-2022-JP"
    return declared or "utf-8", ""


def _contradicted(declared: list[tuple[str, str]], conclusion: str) -> str:
    declarations = " and ".join(f"{origin} says {name}" for origin, name in declared)
    return f"{declarations or 'no charset is declared'}; {conclusion}"


def _decodes(body: bytes, charset: str) -> bool:
    try:
        body.decode(charset)
    except UnicodeDecodeError:
        return False
    return True


def _guess(sample: bytes) -> tuple[str, tuple[float, float]]:
    """Returns the most likely charset of these words, with its fit."""
    from charset_normalizer import from_bytes

    best = from_bytes(sample).best()
    return (best.encoding, (best.chaos, best.coherence)) if best else (NO_CHARSET, (1.0, 0.0))


def _fit(sample: bytes, charset: str) -> tuple[float, float]:
    """Returns (share of unlikely characters, likeness to a language) of these words in this charset, each in 0..1."""
    from charset_normalizer import from_bytes

    # in steps that cover the whole sample; the threshold drops nothing
    read = from_bytes(sample, steps=20, chunk_size=1024, threshold=100.0, cp_isolation=[charset]).best()
    return (read.chaos, read.coherence) if read else (1.0, 0.0)


def _as_good(fit: tuple[float, float], best: tuple[float, float], margin: float = MESS_MARGIN) -> bool:
    return fit[0] <= best[0] + margin and fit[1] >= best[1] - LANGUAGE_MARGIN
