"""Structures that hold terms and definitions. Each function finds one kind in a pruned document."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from lxml import etree, html

from data_prep.glossary import markup
from data_prep.glossary.words import ABOUT_TERMS, DEFINITION_HEADS, LETTER, NO_TERM, OTHER_LISTS, TERM_HEADS

FEWEST = 3  # plain list items, headings or bold words: any page may have fewer

WIDEST = 64  # columns of a table that are read
BOLD = ("b", "strong", "dfn")
_SEPARATED = re.compile(r"\s*(?:[:：–—]|-\s)")


@dataclass(slots=True)
class Group:
    """Terms that share definitions."""

    terms: list  # each an element or plain text
    definitions: list  # each an element or plain text
    links: list = field(default_factory=list)  # the `a` elements of the definitions

    def __post_init__(self) -> None:
        self.links = self.links or [link for e in self.definitions if not isinstance(e, str) for link in e.iter("a")]

    @property
    def line(self) -> int:
        """Line of the page's source, from 1; 0 for plain text."""
        return next((e.sourceline or 0 for e in self.terms + self.definitions if not isinstance(e, str)), 0)


def about_terms(document: html.HtmlElement, url: str) -> bool:
    """Returns True if title, first heading or address call the page a glossary. To be called before pruning."""
    heads = [head for head in (next(document.iter(tag), None) for tag in ("title", "h1", "h2")) if head is not None]
    names = [url.rstrip("/").rpartition("/")[2], *(head.text_content() for head in heads)]
    return bool(ABOUT_TERMS.search(" ".join(names)))


def defined_terms(document: html.HtmlElement) -> list[Group]:
    """Finds schema.org DefinedTerm as microdata: name and alternateName with description."""
    groups = []
    for scope in document.xpath("//*[@itemscope][contains(@itemtype, 'schema.org/DefinedTerm')]"):
        if "DefinedTermSet" in scope.get("itemtype"):
            continue
        own = [e for e in scope.xpath(".//*[@itemprop]") if e.xpath("ancestor::*[@itemscope][1]")[0] is scope]
        values = [(name, e.get("content") or e) for e in own for name in e.get("itemprop").split()]
        terms = [value for name, value in values if name in ("name", "alternateName")]
        groups.append(Group(terms, [value for name, value in values if name == "description"]))
    return groups


def lists(document: html.HtmlElement, glossary: bool) -> list[Group]:
    """Finds definition lists: those with the class "glossary", or all others but those of documentation tools."""
    groups = []
    for dl in document.xpath("//dl[not(ancestor::dl)]"):
        classes = set((dl.get("class") or "").split())
        if ("glossary" in classes) == glossary and (glossary or not classes & OTHER_LISTS):
            groups += [group for group in _pairs(dl) if group.terms]
    return groups


def _pairs(dl: html.HtmlElement) -> Iterator[Group]:
    """Yields a group of two terms and two definitions for dt dt dd dd, also where a `div` wraps each group."""
    terms, definitions = [], []
    for child in _items(dl):
        if child.tag == "dt" and definitions:
            yield Group(terms, definitions)
            terms, definitions = [], []
        if child.tag == "dt":
            several = list(child.iter("dfn"))
            terms += several if len(several) > 1 else [child]
        else:
            definitions.append(child)
    if terms or definitions:
        yield Group(terms, definitions)


def _items(dl: html.HtmlElement) -> Iterator[html.HtmlElement]:
    for child in dl.iterchildren("dt", "dd", "div"):
        if child.tag == "div":
            yield from child.iterchildren("dt", "dd")
        else:
            yield child


def tables(document: html.HtmlElement, headed: bool) -> list[Group]:
    """Finds tables whose headings name a term and a definition column, or else the other tables of two columns."""
    groups = []
    for table in document.xpath("//table[not(ancestor::table) and not(.//table) and not(.//dl) and not(ancestor::dl)]"):
        rows = _grid(table)
        head = rows[0] if rows and _is_head(rows[0]) else []
        columns = _columns(head)
        if headed and columns:
            groups += [_row(row, *columns) for row in rows[1:] if not _divides(row, head)]
        elif not headed and not columns and rows and all(len(row) == 2 for row in rows):
            groups += [_row(row, [0], 1) for row in rows[bool(head) :] if not _divides(row, head)]
    return groups


def _grid(table: html.HtmlElement) -> list[list[html.HtmlElement]]:
    """Returns rows of cells. A cell that spans several columns or rows stands in each of them."""
    rows: list[list[html.HtmlElement]] = []
    open_cells: dict[int, tuple[html.HtmlElement, int]] = {}  # column -> cell that reaches down, rows left
    for line in table.iter("tr"):
        row: list[html.HtmlElement] = []
        for cell in line.iterchildren("td", "th"):
            _reach_down(row, open_cells)
            for _ in range(min(_span(cell, "colspan"), WIDEST - len(row))):
                if (down := _span(cell, "rowspan")) > 1:
                    open_cells[len(row)] = (cell, down - 1)
                row.append(cell)
        _reach_down(row, open_cells)
        if row:
            rows.append(row)
    return rows


def _reach_down(row: list, open_cells: dict) -> None:
    while len(row) in open_cells:
        cell, left = open_cells.pop(len(row))
        if left > 1:
            open_cells[len(row)] = (cell, left - 1)
        row.append(cell)


def _span(cell: html.HtmlElement, name: str) -> int:
    value = cell.get(name, "1").strip()
    return max(int(value[:4]), 1) if value.isdecimal() else 1


def _is_head(row: list[html.HtmlElement]) -> bool:
    return all(cell.tag == "th" for cell in row) or all(
        next(cell.iterancestors("thead"), None) is not None for cell in row
    )


def _columns(head: list[html.HtmlElement]) -> tuple[list[int], int] | None:
    """Returns the term columns and the definition column that these headings name, or None."""
    words = [set(re.findall(r"\w+", markup.text_of(cell).casefold())) for cell in head]
    definition = next((i for i, heading in enumerate(words) if heading & DEFINITION_HEADS), None)
    terms = [i for i, heading in enumerate(words) if heading & TERM_HEADS and i != definition]
    return (terms, definition) if terms and definition is not None else None


def _row(row: list[html.HtmlElement], terms: list[int], definition: int) -> Group:
    cells = [row[i] for i in terms if i < len(row)]
    filled = [cell for cell in cells if markup.text_of(cell)]
    return Group(filled or cells, row[definition : definition + 1])


def _divides(row: list[html.HtmlElement], head: list[html.HtmlElement]) -> bool:
    """Returns True for a row without an entry: one cell over all columns (a letter), a repeated head, or empty."""
    texts = [markup.text_of(cell) for cell in row]
    repeated = [markup.text_of(cell) for cell in head] == texts
    return not any(texts) or repeated or (len(row) > 1 and all(cell is row[0] for cell in row))


def headings(document: html.HtmlElement) -> tuple[list[Group], list[tuple[int, str, str]]]:
    """Finds headings of the most common level, each with the text below it, deeper headings included.

    Returns the groups, and the sections that were passed over: (line, reason, text).
    """
    root = main_content(document)
    links = _links_by_heading(root)
    sections = [(int(h.tag[1]), h, markup.clean_term(markup.text_of(h)), text) for h, text in markup.sections(root)]
    own = [level for level, _, title, text in sections if text and level > 1 and not _no_term(title)]
    if not own:
        return [], []
    best = max(sorted(set(own), reverse=True), key=own.count)
    groups, passed, current = [], [], None
    for level, heading, title, text in sections:
        if level > best:
            if current:
                current.definitions += [title, text]
                current.links += links[heading]
            continue
        current = None
        if level < best or _no_term(title):
            if text:
                passed.append((heading.sourceline or 0, "a section that is no term", f"{title}: {text}"))
        else:
            current = Group([heading], [text], links[heading])
            groups.append(current)
    return (groups, passed) if len(groups) >= FEWEST else ([], [])


def _no_term(title: str) -> bool:
    return bool(LETTER.fullmatch(title) or NO_TERM.fullmatch(title))


def _links_by_heading(root: html.HtmlElement) -> dict[html.HtmlElement, list[html.HtmlElement]]:
    links: dict = {}
    current = None
    for element in root.iter(*markup.HEADINGS, "a"):
        if element.tag != "a":
            current = links[element] = []
        elif current is not None and next(element.iterancestors(*markup.HEADINGS), None) is None:
            current.append(element)
    return links


def main_content(document: html.HtmlElement) -> html.HtmlElement:
    """Returns the element that holds the page's own text."""
    for element in document.iter(etree.Element):
        is_main = element.tag in ("main", "article") or element.get("role") == "main"
        if is_main or "mw-parser-output" in element.get("class", "").split():
            return element
    return next(document.iter("body"), document)


def bold_words(document: html.HtmlElement) -> list[Group]:
    """Finds list items and paragraphs that begin with a bold word and a colon or dash.

    The definition of a paragraph reaches to the next such paragraph or heading.
    """
    groups = []
    for block in main_content(document).iter("li", "p"):
        lead = _lead(block)
        if lead is None:
            continue
        definitions = [markup.text_of(block, {lead})]
        links = list(block.iter("a"))
        if block.tag == "p":
            for following in block.itersiblings():
                if following.tag in markup.HEADINGS or following.tag == "hr" or _lead(following) is not None:
                    break
                definitions.append(markup.text_of(following))
                links += following.iter("a")
        groups.append(Group([lead], definitions, links))
    return groups if len(groups) >= FEWEST else []


def _lead(block: html.HtmlElement) -> html.HtmlElement | None:
    """Returns the bold word that this block begins with, if a separator follows it."""
    if not isinstance(block.tag, str) or (block.text or "").strip():
        return None
    first = next(block.iterchildren(tag=etree.Element), None)
    if first is None or first.tag not in BOLD:
        return None
    separated = markup.text_of(first).endswith((":", "：")) or _SEPARATED.match(first.tail or "")
    return first if separated else None
