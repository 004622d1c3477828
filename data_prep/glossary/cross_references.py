"""References between glossary entries: "API: see Application Programming Interface" gets that entry's definition."""

import re
from dataclasses import dataclass
from urllib.parse import unquote

from data_prep.glossary.words import SEE, SEE_AFTER, SEE_LINK
from data_prep.records import normalise

LONGEST = 160  # characters; a longer text defines something, whatever word it begins with

_BEFORE_LINK, _AFTER_LINK = re.compile(rf"(?:{SEE_LINK})\s*[:：]?", re.I), re.compile(SEE_AFTER)
_ROLE = r"(?::?\s*\w+\s*:\s*)?"  # ":term:" that Sphinx did not understand, translated by people
_QUOTED = r"[\"'“”„‘’«»「`*_]*"
_TEXT = re.compile(rf"(?:{SEE})(?:\s*[:：]|(?<=[→⇒➔])|\s)\s*{_ROLE}{_QUOTED}(.+?){_QUOTED}\s*[.。]?", re.I | re.S)
_TEXT_AFTER = re.compile(rf"[「『]?(.+?)[」』]?\s*(?:{SEE_AFTER})\s*[.。]?", re.S)


@dataclass(frozen=True, slots=True)
class Reference:
    """The target of an entry that refers to another one."""

    term: str
    anchor: str = ""  # URL with fragment, or empty


def reference(text: str, links: list[tuple[str, str]]) -> Reference | None:
    """Returns the reference in place of a definition, or None for a definition. links: (text, URL) of those in it."""
    if len(text) > LONGEST or "\n\n" in text:
        return None
    if len(links) == 1 and links[0][0] and links[0][0] in text:
        label, url = links[0]
        before, after = (part.strip(" .。:：\"'“”‘’") for part in text.split(label, 1))
        alone = not before and not after and "#" in url
        if alone or (_matches(_BEFORE_LINK, before) and not after) or (not before and _matches(_AFTER_LINK, after)):
            return Reference(label, url)
        return None
    match = _TEXT.fullmatch(text) or _TEXT_AFTER.fullmatch(text)
    return Reference(match[1].strip()) if match and not links else None


def _matches(words: re.Pattern, text: str) -> bool:
    """Returns True if the text is one of the words. Their full stop may be missing."""
    return bool(words.fullmatch(text) or words.fullmatch(f"{text}."))


def resolve(entries: list) -> tuple[int, list, list]:
    """Gives each entry that refers to another one its definition, over all pages of one source.

    entries: page.Entry, changed in place. Returns the number resolved, the entries whose target is missing (they keep
    their text), and those that refer in a circle (they have no definition).
    """
    by_anchor = {unquote(f"{entry.url}#{anchor}"): entry for entry in entries for anchor in entry.anchors}
    by_term: dict[tuple[str, str], object] = {}
    for entry in sorted(entries, key=lambda entry: entry.see is not None):  # a definition before a reference
        by_term.setdefault((entry.url, normalise(entry.term)), entry)
        by_term.setdefault(("", normalise(entry.term)), entry)

    def target(entry):
        name = normalise(entry.see.term)
        return by_anchor.get(unquote(entry.see.anchor)) or by_term.get((entry.url, name)) or by_term.get(("", name))

    ends: dict[int, object] = {}  # id of an entry -> the entry that defines it; None: missing; itself: a circle
    for entry in entries:
        passed, last = {}, entry
        while last is not None and last.see and id(last) not in passed and id(last) not in ends:
            passed[id(last)] = last
            last = target(last)
        end = ends.get(id(last), last)
        ends |= dict.fromkeys(passed, end)
    lost = [entry for entry in entries if entry.see and ends[id(entry)] is None]
    circles = [entry for entry in entries if entry.see and ends[id(entry)] is not None and ends[id(entry)].see]
    resolved = [entry for entry in entries if entry.see and ends[id(entry)] is not None and not ends[id(entry)].see]
    for entry in resolved:
        entry.definition = ends[id(entry)].definition
    return len(resolved), lost, circles
