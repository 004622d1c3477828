"""Sentences of a text in the world's scripts, by Unicode's rules (UAX 29, Sentence_Break) and what they leave open.

- A sign that only ends sentences ends one anywhere: the danda, the ideographic, Arabic, Armenian or Ethiopic full stop.
- . ! ? end one where white space and no lower-case letter follows; . does not after an abbreviation or an initial.
- Before a lower-case letter they do so in a text that begins most of its sentences in lower case.
- Thai and Lao have no such sign: there a space between two letters ends a phrase.
"""

from collections.abc import Iterator

import regex

PHRASE = 20  # characters of a Thai or Lao phrase; shorter ones go with the next
_BLANK_LINE = regex.compile(r"(?:\r\n|[\r\n\x85])[^\S\r\n]*(?:\r\n|[\r\n\x85])|\u2029")
_INDIC = r"[\p{Devanagari}\p{Bengali}\p{Gurmukhi}\p{Gujarati}\p{Oriya}]"
_CANDIDATE = regex.compile(
    rf"(?P<blank>{_BLANK_LINE.pattern})"
    r"|(?P<sign>[\p{SB=STerm}\p{SB=ATerm}\u2026]+)(?P<close>[\p{SB=Close}\"'”’»]*)(?P<space>\s*)"
    r"|(?P<greek>(?<=\p{Greek})[;\u037e])(?P<close>[\"'”’»]*)(?P<space>\s+)"
    r"|(?P<shad>[\u0f0d-\u0f12]+)(?P<space>\s*)"
    rf"|(?P<pipe>(?<={_INDIC})\s?\|+)(?P<space>\s+)"
    r"|(?P<phrase>(?<=[\p{Thai}\p{Lao}])(?P<space>\s+)(?=[\p{Thai}\p{Lao}]))"
)
_NEXT = regex.compile(r"[\p{Ps}\p{Pi}\p{Pf}\"'`*_#¿¡–—-]*(?P<next>\S)")
_LOWER, _NUMBER = regex.compile(r"\p{SB=Lower}"), regex.compile(r"\p{Nd}")
_WORD_BEFORE = regex.compile(r"[\p{L}\p{M}.]+$")
_ASCII = frozenset(".!?\u2024\u2026")  # signs that stand inside of sentences, names and numbers too
_VOWEL = regex.compile(r"[aeiouyаеёиоуыэюяіїєαεηιουω]", regex.IGNORECASE)
_CASED = regex.compile(r"\p{Latin}|\p{Cyrillic}|\p{Greek}")
# Never last in a sentence; and never last before a lower-case letter, as are words with a point inside or no vowel.
_NEVER_LAST = regex.compile(r"dr|mrs?|ms|prof|st|sr|figs?|nr|vs|cf|approx|gen|rev|hon|ул|им|гл|डॉ|प्रो")
_ABBREVIATION = regex.compile(
    r"etc|al|ca|resp|incl|excl|vol|eds?|est|max|min|nos?|op|opt|refs?|sec|ch|chap|dept|inc|orig|usw|evtl|abb|inkl|exkl"
    r"|usf|art|ej|pág|av|env|тыс|млн|руб|см|др|пр|обл"
)


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Yields start and end of each sentence, without the white space after it. The end of a paragraph ends one too."""
    start = 0
    for end, following in _ends(text):
        if text[start:end].strip():
            yield start, end
        start = following


def _ends(text: str) -> Iterator[tuple[int, int]]:
    """Yields where a sentence ends and where the next begins."""
    candidates = [(found, _kind(found, text)) for found in _CANDIDATE.finditer(text)]
    kinds = [kind for _, kind in candidates] + [_start(text, 0)]
    lower = kinds.count("lower") >= max(1, kinds.count("upper"))
    start = 0
    for found, kind in candidates:
        if not (kind in ("end", "upper") or (kind == "lower" and lower)):
            continue
        end = found.start() if found["blank"] else found.start("space")
        if not found["blank"] and not any(letter.isalpha() for letter in text[start:end]):
            continue  # the number of a list
        if found["phrase"] and end - start < PHRASE:
            continue
        start = found.end()
        yield end, start
    yield len(text), len(text)


def _kind(found: regex.Match, text: str) -> str:
    """Returns "end": always one; "upper": before an upper-case letter, "lower": before a lower-case one; "": none."""
    if not found["sign"]:
        return "end"
    if _BLANK_LINE.search(found["space"]):
        return "end"
    sign, after = found["sign"], text[found.end() : found.end() + 1]
    if not set(sign) <= _ASCII:
        return "" if sign[-1] == "．" and (not after or _NUMBER.match(after)) else "end"
    if not found["space"]:
        return ""
    kind = _start(text, found.end())
    if _NUMBER.match(after) and "." in sign:
        return ""
    if kind == "lower" and (text[: found.start()][-1:].isspace() or "\u2026" in sign or len(sign) > 1):
        return "lower" if "!" in sign or "?" in sign else ""
    return "" if sign == "." and not found["close"] and _abbreviated(text, found.start(), kind) else kind


def _start(text: str, at: int) -> str:
    """Returns "lower" or "upper" by the letter that a sentence at this place begins with; scripts without case are
    upper. "": no letter."""
    first = _NEXT.match(text, at)
    if not first:
        return ""
    if _LOWER.match(first["next"]):
        return "lower"
    return "upper" if first["next"].isalpha() or _NUMBER.match(first["next"]) else ""


def _abbreviated(text: str, at: int, kind: str) -> bool:
    """Returns True if the point at this place belongs to an abbreviation or an initial."""
    word = _WORD_BEFORE.search(text[max(0, at - 20) : at])
    if not word:
        return False
    plain = word[0].casefold()
    if kind == "upper":
        return bool(_NEVER_LAST.fullmatch(plain)) or (len(word[0]) == 1 and word[0].isupper() and word[0] != "I")
    if len(plain) == 1 or "." in plain or _NEVER_LAST.fullmatch(plain) or _ABBREVIATION.fullmatch(plain):
        return True
    return bool(_CASED.match(plain)) and not _VOWEL.search(plain)
