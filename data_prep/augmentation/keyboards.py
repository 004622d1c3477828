"""Keyboard layouts, their neighbouring keys, and the text of Korean keystrokes."""

import re
from functools import cache
from math import hypot

# The letter rows from top to bottom; a row's first key lies so many key widths to the right of the letter Q's.
STAGGER = (-0.5, 0.0, 0.25, 0.75)
LAYOUTS = {
    "qwerty": ("", "qwertyuiop", "asdfghjkl", "zxcvbnm"),
    "йцукен": ("ё", "йцукенгшщзхъ", "фывапролджэ", "ячсмитьбю"),
    "2-set": ("", "ㅂㅈㄷㄱㅅㅛㅕㅑㅐㅔ", "ㅁㄴㅇㄹㅎㅗㅓㅏㅣ", "ㅋㅌㅊㅍㅠㅜㅡ"),
}
SHIFTED = dict(zip("ㅃㅉㄸㄲㅆㅒㅖ", "ㅂㅈㄷㄱㅅㅐㅔ"))  # the same key with shift, 2-set
# Keys are neighbours where their centres are nearer than REACH key widths: left and right, two above and two below.
# Rows count as 0.7 apart, because the diagonal slip is as short as the one to the side.
REACH, ROW_HEIGHT = 1.05, 0.7


@cache
def neighbours() -> dict[str, str]:
    """Returns key -> the keys beside it on its own keyboard, over all layouts. A letter without a key is absent."""
    beside = {}
    for rows in LAYOUTS.values():
        centres = {key: (STAGGER[y] + x, y) for y, row in enumerate(rows) for x, key in enumerate(row)}
        for key, (x, y) in centres.items():
            near = [other for other, (u, v) in centres.items() if hypot(u - x, (v - y) * ROW_HEIGHT) < REACH]
            beside[key] = "".join(other for other in near if other != key)
    return beside | {shifted: plain + beside[plain] for shifted, plain in SHIFTED.items()}


LEADS = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
VOWELS = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
TAILS = " ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"  # the first stands for none
TWO_KEYS = {
    **{"ㅘ": "ㅗㅏ", "ㅙ": "ㅗㅐ", "ㅚ": "ㅗㅣ", "ㅝ": "ㅜㅓ", "ㅞ": "ㅜㅔ", "ㅟ": "ㅜㅣ", "ㅢ": "ㅡㅣ"},
    **{"ㄳ": "ㄱㅅ", "ㄵ": "ㄴㅈ", "ㄶ": "ㄴㅎ", "ㄺ": "ㄹㄱ", "ㄻ": "ㄹㅁ", "ㄼ": "ㄹㅂ", "ㄽ": "ㄹㅅ", "ㄾ": "ㄹㅌ"},
    **{"ㄿ": "ㄹㅍ", "ㅀ": "ㄹㅎ", "ㅄ": "ㅂㅅ"},
}
ONE_LETTER = {keys: letter for letter, keys in TWO_KEYS.items()}
FIRST, LAST = "가", "힣"  # the block of composed syllables: (lead * 21 + vowel) * 28 + tail


def _syllable_of_keys() -> re.Pattern:
    """Matches lead, vowel, and a tail that no vowel follows: a consonant before a vowel begins the next syllable."""

    def any_of(letters: str) -> str:
        return "|".join(sorted((TWO_KEYS.get(letter, letter) for letter in letters), key=len, reverse=True))

    vowel = any_of(VOWELS)
    return re.compile(f"({any_of(LEADS)})({vowel})((?:{any_of(TAILS.strip())})(?!{vowel}))?")


_SYLLABLE = _syllable_of_keys()


def hangul_keys(syllables: str) -> str:
    """Returns the keystrokes of composed syllables (가 to 힣 only) on the 2-set keyboard, as compatibility jamo."""
    keys = []
    for syllable in syllables:
        rest, tail = divmod(ord(syllable) - ord(FIRST), len(TAILS))
        lead, vowel = divmod(rest, len(VOWELS))
        keys += [LEADS[lead], VOWELS[vowel], TAILS[tail].strip()]
    return "".join(TWO_KEYS.get(key, key) for key in keys)


def hangul_text(keys: str) -> str:
    """Composes keystrokes as an input method does: hangul_text(hangul_keys(text)) == text.

    A consonant or vowel that fits nowhere stays alone, as it does on the screen.
    """

    def composed(match: re.Match) -> str:
        lead, vowel, tail = (ONE_LETTER.get(part, part) if part else " " for part in match.groups())
        number = (LEADS.index(lead) * len(VOWELS) + VOWELS.index(vowel)) * len(TAILS) + TAILS.index(tail)
        return chr(ord(FIRST) + number)

    return _SYLLABLE.sub(composed, keys)
