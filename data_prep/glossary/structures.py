"""The ways in which a page holds terms and definitions. Each function finds one of them in a pruned document."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from lxml import etree, html

from data_prep.glossary import markup
from data_prep.glossary.words import ABOUT_TERMS, DEFINITION_HEADS, LETTER, NO_TERM, OTHER_LISTS, TERM_HEADS

FEWEST = 3  # of a structure that any page may have (a plain list, headings, bold words): fewer are no glossary

WIDEST = 64  # columns of a table that are looked at
BOLD = ("b", "strong", "dfn")
_SEPARATED = re.compile(r"\s*(?:[:：–—]|-\s)")


@dataclass(slots=True)
class Group:
    """Terms that share definitions, each an element or plain text. links: the `a` elements of the definitions."""

    terms: list
    definitions: list
    links: list = field(default_factory=list)

    def __post_init__(self) -> None:
        self.links = self.links or [link for e in self.definitions if not isinstance(e, str) for link in e.iter("a")]

    @property
    def line(self) -> int:
        """Line of the page's source, 1-based; 0 where plain text is all there is."""
        return next((e.sourceline or 0 for e in self.terms + self.definitions if not isinstance(e, str)), 0)


def about_terms(document: html.HtmlElement, url: str) -> bool:
    """Whether title, first heading or address say that the page is a glossary (before pruning)."""
    heads = [head for head in (next(document.iter(tag), None) for tag in ("title", "h1", "h2")) if head is not None]
    said = [url.rstrip("/").rpartition("/")[2], *(head.text_content() for head in heads)]
    return bool(ABOUT_TERMS.search(" ".join(said)))


def defined_terms(document: html.HtmlElement) -> list[Group]:
    """schema.org DefinedTerm as microdata: name and alternateName with description."""
    groups = []
    for scope in document.xpath("//*[@itemscope][contains(@itemtype, 'schema.org/DefinedTerm')]"):
        if "DefinedTermSet" in scope.get("itemtype"):
            continue
        own = [e for e in scope.xpath(".//*[@itemprop]") if next(_scopes(e)) is scope]
        values = [(name, e.get("content") or e) for e in own for name in e.get("itemprop").split()]
        terms = [value for name, value in values if name in ("name", "alternateName")]
        groups.append(Group(terms, [value for name, value in values if name == "description"]))
    return groups


def _scopes(element: html.HtmlElement) -> Iterator[html.HtmlElement]:
    return (above for above in element.iterancestors() if above.get("itemscope") is not None)


def lists(document: html.HtmlElement, glossary: bool) -> list[Group]:
    """Definition lists: those with the class "glossary", or the others that no documentation tool made for code."""
    groups = []
    for found in document.xpath("//dl[not(ancestor::dl)]"):
        classes = set((found.get("class") or "").split())
        if ("glossary" in classes) == glossary and (glossary or not classes & OTHER_LISTS):
            groups += [group for group in _pairs(found) if group.terms]
    return groups


def _pairs(found: html.HtmlElement) -> Iterator[Group]:
    """dt dt dd dd -> two terms with two definitions, also where `div` wraps each group or something else is between."""
    terms, definitions = [], []
    for child in _items(found):
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


def _items(found: html.HtmlElement) -> Iterator[html.HtmlElement]:
    for child in found.iterchildren("dt", "dd", "div"):
        if child.tag == "div":
            yield from child.iterchildren("dt", "dd")
        else:
            yield child


def tables(document: html.HtmlElement, headed: bool) -> list[Group]:
    """Tables whose headings name a term and a definition column; or the others that have two columns."""
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
    """Rows of cells; a cell that spans stands at each of its places."""
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
    """The term columns and the definition column that these headings name."""
    words = [set(re.findall(r"\w+", markup.text_of(cell).casefold())) for cell in head]
    definition = next((i for i, said in enumerate(words) if said & DEFINITION_HEADS), None)
    terms = [i for i, said in enumerate(words) if said & TERM_HEADS and i != definition]
    return (terms, definition) if terms and definition is not None else None


def _row(row: list[html.HtmlElement], terms: list[int], definition: int) -> Group:
    cells = [row[i] for i in terms if i < len(row)]
    filled = [cell for cell in cells if markup.text_of(cell)]
    return Group(filled or cells, row[definition : definition + 1])


def _divides(row: list[html.HtmlElement], head: list[html.HtmlElement]) -> bool:
    """A row that holds no entry: one cell over all columns (a letter), a repeated head, or nothing."""
    texts = [markup.text_of(cell) for cell in row]
    repeated = [markup.text_of(cell) for cell in head] == texts
    return not any(texts) or repeated or (len(row) > 1 and all(cell is row[0] for cell in row))


def headings(document: html.HtmlElement) -> tuple[list[Group], list[tuple[int, str, str]]]:
    """Headings of the level that most terms have, each with the text below it, deeper headings included.
    Also gives what was passed over: (line, reason, text)."""
    root = main_content(document)
    links = _links_by_heading(root)
    found = [(int(h.tag[1]), h, markup.clean_term(markup.text_of(h)), text) for h, text in markup.sections(root)]
    own = [level for level, _, title, text in found if text and level > 1 and not _no_term(title)]
    if not own:
        return [], []
    best = max(sorted(set(own), reverse=True), key=own.count)
    groups, passed, current = [], [], None
    for level, heading, title, text in found:
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
    found: dict = {}
    current = None
    for element in root.iter(*markup.HEADINGS, "a"):
        if element.tag != "a":
            current = found[element] = []
        elif current is not None and next(element.iterancestors(*markup.HEADINGS), None) is None:
            current.append(element)
    return found


def main_content(document: html.HtmlElement) -> html.HtmlElement:
    """The element that holds the page's own text."""
    for element in document.iter(etree.Element):
        is_main = element.tag in ("main", "article") or element.get("role") == "main"
        if is_main or "mw-parser-output" in element.get("class", "").split():
            return element
    return next(document.iter("body"), document)


def bold_words(document: html.HtmlElement) -> list[Group]:
    """List items and paragraphs that begin with a bold word and a colon or dash; a paragraph's definition reaches to
    the next such paragraph or heading."""
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
    """The bold word that this block begins with, if a separator follows it."""
    if not isinstance(block.tag, str) or (block.text or "").strip():
        return None
    first = next(block.iterchildren(tag=etree.Element), None)
    if first is None or first.tag not in BOLD:
        return None
    separated = markup.text_of(first).endswith((":", "：")) or _SEPARATED.match(first.tail or "")
    return first if separated else None
