"""Terms and definitions of one page, found by the structure of its HTML (or of its Markdown, by way of HTML)."""

from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urljoin

from lxml import etree, html

from data_prep.glossary import markup, structures
from data_prep.glossary.cross_references import Reference, reference
from data_prep.records import normalise

LONGEST_TERM = 200  # characters


@dataclass(slots=True, eq=False)
class Entry:
    """A term with its definition. anchors: the ids that lead to it on its page; line: of the page's source, 1-based.
    see: the entry that it refers to instead of defining anything (`see.resolve` gives it that one's definition)."""

    term: str
    definition: str
    url: str
    line: int = 0
    anchors: tuple[str, ...] = ()
    see: Reference | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that stood where terms stand and became no entry, and why."""

    line: int
    reason: str
    text: str


@dataclass(slots=True)
class Page:
    """What one page holds: entries in its order, how many per structure, what was skipped, notes for people."""

    url: str
    entries: list[Entry] = field(default_factory=list)
    found: Counter = field(default_factory=Counter)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def skip(self, line: int, reason: str, text: str) -> None:
        self.skipped.append(Skipped(line, reason, text[:500]))

    def summary(self) -> str:
        """One line: what was found, what was skipped and why, and the notes."""
        found = ", ".join(f"{count:,} by {name}" for name, count in self.found.items() if count)
        line = f"{self.url}: {len(self.entries):,} terms" + (f" ({found})" if found else "")
        if refer := sum(entry.see is not None for entry in self.entries):
            line += f", {refer:,} of them refer to others"
        if self.skipped:
            reasons = Counter(item.reason for item in self.skipped).most_common()
            line += f"; skipped {len(self.skipped):,}: {', '.join(f'{why} ({count:,})' for why, count in reasons)}"
        return "; ".join([line, *self.notes])


def from_html(text: str, url: str, language: str = "", about_terms: bool = False) -> Page:
    """The glossary of one HTML page. url: after redirects, against which links are resolved. language: what was asked
    for; a page that names another one in its `lang` is reported. about_terms: it is known to be a glossary, whatever
    title and address say."""
    page = Page(url)
    document, cut = markup.parse(text)
    if cut:
        page.notes.append(cut)
    if document is None:
        page.notes.append("the page is empty")
        return page
    page.notes += _other_language(document, language)
    about = about_terms or structures.about_terms(document, url)
    markup.prune(document)
    _collect(document, about, page)
    _drop_repeats(page)
    return page


def from_markdown(text: str, url: str, language: str = "") -> Page:
    """The glossary of a Markdown page (CommonMark with tables, definition lists, footnotes and front matter)."""
    from markdown_it import MarkdownIt
    from mdit_py_plugins.deflist import deflist_plugin
    from mdit_py_plugins.footnote import footnote_plugin
    from mdit_py_plugins.front_matter import front_matter_plugin

    reader = MarkdownIt("commonmark").enable("table").use(deflist_plugin).use(footnote_plugin).use(front_matter_plugin)
    page = from_html(reader.render(text), url, language)
    for found in page.entries:
        found.line = 0  # a line of the HTML would lead nowhere
    return page


def _other_language(document: html.HtmlElement, asked: str) -> list[str]:
    said = (document.get("lang") or "").partition("-")[0].lower()
    if asked and said and said != asked.lower():
        return [f"the page says that it is in {said!r}, --lang says {asked!r}"]
    return []


def _collect(document: html.HtmlElement, about: bool, page: Page) -> None:
    """Takes what the page itself marks as terms (microdata, dl.glossary); without any, tables with headings for terms,
    with the plain lists beside them on a page about terms; without any, its plain lists; without any, on a page about
    terms, plain tables, headings, bold words. Lists that were not taken are counted in a note."""
    marked = {
        "DefinedTerm": structures.defined_terms(document),
        "dl.glossary": structures.lists(document, glossary=True),
    }
    headed = {"table with headings": structures.tables(document, headed=True)}
    plain = {"definition list": structures.lists(document, glossary=False)}
    enough = about or len(plain["definition list"]) >= structures.FEWEST
    taken = _filled(marked) or _filled(headed | plain if about else headed) or (_filled(plain) if enough else {})
    for name, groups in _filled(headed | plain).items():
        if name not in taken:
            why = f"as {' and '.join(taken)} hold the terms" if taken else "as so few are no glossary"
            page.notes.append(f"{len(groups)} of a {name} left, {why}")
    if not taken and about:
        groups, passed = structures.headings(document)
        taken = _filled({"table": structures.tables(document, headed=False)}) or _filled({"headings": groups})
        for line, reason, text in passed if "headings" in taken else ():
            page.skip(line, reason, text)
        taken = taken or _filled({"bold words": structures.bold_words(document)})
    for name, groups in taken.items():
        for group in groups:
            page.found[name] += _take(group, page)
    if not taken:
        page.notes.append(_nothing(document, about))


def _filled(found: dict[str, list[structures.Group]]) -> dict[str, list[structures.Group]]:
    return {name: groups for name, groups in found.items() if groups}


def _nothing(document: html.HtmlElement, about: bool) -> str:
    if not markup.text_of(structures.main_content(document)):
        return "the page has no text (is it made by JavaScript?)"
    tried = "no DefinedTerm, definition list or table of terms"
    if about:
        return f"{tried}, and fewer than {structures.FEWEST} headings with text or bold words with an explanation"
    return f"{tried}; headings are taken only where title or address say that the page is a glossary"


def _take(group: structures.Group, page: Page) -> int:
    """Adds one entry per term of the group and returns how many; what cannot be one is skipped with its reason."""
    texts = [text if isinstance(text, str) else markup.text_of(text) for text in group.definitions]
    definition = markup.clean_definition("\n\n".join(text for text in texts if text))
    links = [(markup.text_of(a), urljoin(page.url, a.get("href").strip())) for a in group.links if a.get("href")]
    refers = reference(definition, links)
    taken, line = 0, group.line
    for element in group.terms or [""]:
        term = markup.clean_term(element if isinstance(element, str) else markup.text_of(element))
        if reason := _no_entry(term, definition):
            page.skip(line, reason, f"{term}: {definition}")
            continue
        anchors = () if isinstance(element, str) else _anchors(element)
        page.entries.append(Entry(term, definition, page.url, line, anchors, refers))
        taken += 1
    return taken


def _no_entry(term: str, definition: str) -> str:
    """Why these are no entry; empty when they are one."""
    if not term:
        return "no term"
    if not any(char.isalnum() for char in definition):
        return "no definition"
    if len(term) > LONGEST_TERM:
        return f"the term is longer than {LONGEST_TERM} characters"
    if normalise(term) == normalise(definition):
        return "the definition only repeats the term"
    if "\ufffd" in term or "\ufffd" in definition:
        return "holds bytes that the page's charset does not have"
    return ""


def _anchors(element: html.HtmlElement) -> tuple[str, ...]:
    """The ids by which links find this term: its own, those in it, and that of the section or row it begins."""
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
