"""Terms and definitions of one page, by the structure of its HTML. Markdown is rendered to HTML first."""

import re
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit

from lxml import etree, html

from data_prep.glossary import markup, structures
from data_prep.glossary.cross_references import Reference, reference
from data_prep.records import normalise

LONGEST_TERM = 200  # characters
_PAGE_NUMBER = re.compile(r"/+(?:(?:page/+)?\d+/+)?$")


@dataclass(slots=True, eq=False)
class Entry:
    """A term with its definition."""

    term: str
    definition: str
    url: str  # of the page
    line: int = 0  # of the page's source, from 1
    anchors: tuple[str, ...] = ()  # ids that lead to the term on its page
    see: Reference | None = None  # the entry it refers to, in place of a definition; see cross_references.resolve


@dataclass(frozen=True, slots=True)
class Skipped:
    """An item that stood in a term's place and is no entry."""

    line: int  # of the page's source, from 1
    reason: str
    text: str


@dataclass(slots=True)
class Page:
    """The entries of one page."""

    url: str
    entries: list[Entry] = field(default_factory=list)  # in the order of the page
    by_structure: Counter = field(default_factory=Counter)  # structure -> number of entries
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # for people

    def skip(self, line: int, reason: str, text: str) -> None:
        self.skipped.append(Skipped(line, reason, text[:500]))

    def summary(self) -> str:
        """Returns a line with the numbers of entries and skipped items, and the notes."""
        structures = ", ".join(f"{count:,} by {name}" for name, count in self.by_structure.items() if count)
        line = f"{self.url}: {len(self.entries):,} terms" + (f" ({structures})" if structures else "")
        if refer := sum(entry.see is not None for entry in self.entries):
            line += f", {refer:,} of them refer to others"
        if self.skipped:
            reasons = Counter(item.reason for item in self.skipped).most_common()
            line += f"; skipped {len(self.skipped):,}: {', '.join(f'{why} ({count:,})' for why, count in reasons)}"
        return "; ".join([line, *self.notes])


def from_html(text: str, url: str, language: str = "", about_terms: bool = False) -> Page:
    """Reads the glossary of one HTML page.

    url: after redirects; links are resolved against it. language: a page whose `lang` differs gets a note.
    about_terms: the page is known to be a glossary, whatever its title and address say.
    """
    page = Page(url)
    document, cut = markup.parse(text)
    if cut:
        page.notes.append(cut)
    if document is None:
        page.notes.append("the page is empty")
        return page
    lang = (document.get("lang") or "").partition("-")[0].lower()
    if language and lang not in ("", language.lower()):
        page.notes.append(f"the page says that it is in {lang!r}, --lang says {language!r}")
    if further := _next_page(document, url):
        page.notes.append(f"goes on at {further}, which is not read: name it as a source too")
    is_glossary = about_terms or structures.about_terms(document, url)
    markup.prune(document)
    _collect(document, is_glossary, page)
    _drop_repeats(page)
    return page


def _next_page(document: html.HtmlElement, url: str) -> str:
    """Returns the address of the next page of the same glossary by rel="next", or "". To be called before pruning.

    The next chapter of a book has the same mark: only an address that differs in its query or page number counts.
    """
    for link in document.iter("a", "link"):
        if "next" in link.get("rel", "").lower().split() and link.get("href"):
            here, there = urlsplit(url), urlsplit(_joined(url, link.get("href")))
            bare = [_PAGE_NUMBER.sub("/", f"{address.path}/") for address in (here, there)]
            if (here.netloc, bare[0]) == (there.netloc, bare[1]) and here[2:4] != there[2:4]:
                return there.geturl()
    return ""


def _joined(url: str, link: str) -> str:
    """Returns the address of a link on the page, or "" if it is none."""
    try:
        return urlsplit(urljoin(url, link.strip())).geturl()
    except ValueError:
        return ""


def from_markdown(text: str, url: str, language: str = "") -> Page:
    """Reads the glossary of a Markdown page (CommonMark with tables, definition lists, footnotes and front matter)."""
    from markdown_it import MarkdownIt
    from mdit_py_plugins.deflist import deflist_plugin
    from mdit_py_plugins.footnote import footnote_plugin
    from mdit_py_plugins.front_matter import front_matter_plugin

    reader = MarkdownIt("commonmark").enable("table").use(deflist_plugin).use(footnote_plugin).use(front_matter_plugin)
    page = from_html(reader.render(text), url, language)
    for entry in page.entries:
        entry.line = 0  # a line of the HTML would lead nowhere
    return page


def _collect(document: html.HtmlElement, is_glossary: bool, page: Page) -> None:
    """Adds the entries of the first structure that the page has. A note counts the tables and lists left out.

    In this order: microdata and dl.glossary; tables with headings for terms; plain definition lists. On a page about
    terms (is_glossary), these lists go with the tables, and plain tables, headings and bold words come last.
    """
    marked = {
        "DefinedTerm": structures.defined_terms(document),
        "dl.glossary": structures.lists(document, glossary=True),
    }
    headed = {"table with headings": structures.tables(document, headed=True)}
    plain = {"definition list": structures.lists(document, glossary=False)}
    enough = is_glossary or len(plain["definition list"]) >= structures.FEWEST
    taken = _filled(marked) or _filled(headed | plain if is_glossary else headed) or (_filled(plain) if enough else {})
    for name, groups in _filled(headed | plain).items():
        if name not in taken:
            why = f"as {' and '.join(taken)} hold the terms" if taken else "as so few are no glossary"
            page.notes.append(f"{len(groups)} of a {name} left, {why}")
    if not taken and is_glossary:
        groups, passed = structures.headings(document)
        taken = _filled({"table": structures.tables(document, headed=False)}) or _filled({"headings": groups})
        for line, reason, text in passed if "headings" in taken else ():
            page.skip(line, reason, text)
        taken = taken or _filled({"bold words": structures.bold_words(document)})
    for name, groups in taken.items():
        for group in groups:
            page.by_structure[name] += _take(group, page)
    if not taken:
        page.notes.append(_nothing(document, is_glossary))


def _filled(by_structure: dict[str, list[structures.Group]]) -> dict[str, list[structures.Group]]:
    return {name: groups for name, groups in by_structure.items() if groups}


def _nothing(document: html.HtmlElement, is_glossary: bool) -> str:
    if not markup.text_of(structures.main_content(document)):
        return "the page has no text (is it made by JavaScript?)"
    tried = "no DefinedTerm, definition list or table of terms"
    if is_glossary:
        return f"{tried}, and fewer than {structures.FEWEST} headings with text or bold words with an explanation"
    return f"{tried}; headings are taken only where title or address say that the page is a glossary"


def _take(group: structures.Group, page: Page) -> int:
    """Adds an entry for each term of the group and returns their number. Skips what is no entry, with its reason."""
    texts = [text if isinstance(text, str) else markup.text_of(text) for text in group.definitions]
    definition = markup.clean_definition("\n\n".join(text for text in texts if text))
    links = [(markup.text_of(a), _joined(page.url, a.get("href"))) for a in group.links if a.get("href")]
    see = reference(definition, links)
    taken, line = 0, group.line
    for element in group.terms or [""]:
        term = markup.clean_term(element if isinstance(element, str) else markup.text_of(element))
        if reason := _no_entry(term, definition):
            page.skip(line, reason, f"{term}: {definition}")
            continue
        anchors = () if isinstance(element, str) else _anchors(element)
        page.entries.append(Entry(term, definition, page.url, line, anchors, see))
        taken += 1
    return taken


def _no_entry(term: str, definition: str) -> str:
    """Returns why these are no entry, or ""."""
    if not term:
        return "no term"
    if not any(char.isalnum() for char in definition):
        return "no definition"
    if len(term) > LONGEST_TERM:
        return f"the term is longer than {LONGEST_TERM} characters"
    if normalise(term) == normalise(definition):
        return "the definition only repeats the term"
    if structures.names_columns(term, definition):
        return "these are headings of columns"
    if "\ufffd" in term or "\ufffd" in definition:
        return "holds bytes that the page's charset does not have"
    return ""


def _anchors(element: html.HtmlElement) -> tuple[str, ...]:
    """Returns the ids that lead to this term: its own, those in it, and that of the section or row it begins."""
    own = [part.get(name) for part in element.iter(etree.Element) for name in ("id", "name") if part.get(name)]
    parent = element.getparent()
    if parent is not None and parent.tag in ("section", "div", "tr") and parent.get("id"):
        own.append(parent.get("id"))
    return tuple(own)


def _drop_repeats(page: Page) -> None:
    seen, kept = set(), []
    for entry in page.entries:
        key = (normalise(entry.term), normalise(entry.definition))
        if key in seen:
            page.skip(entry.line, "stands twice on the page", f"{entry.term}: {entry.definition}")
        else:
            seen.add(key)
            kept.append(entry)
    page.entries = kept
