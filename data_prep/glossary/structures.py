"""Structures that hold terms and definitions. Each function finds one kind in a pruned document."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from lxml import etree, html

from data_prep.glossary import markup
from data_prep.glossary.words import (
    ABOUT_TERMS,
    DEFINITION_HEADS,
    LETTER,
    LOOSE_DEFINITION_HEADS,
    LOOSE_TERM_HEADS,
    NO_TERM,
    OTHER_LISTS,
    TERM_HEADS,
)

FEWEST = 3  # plain list items, headings or bold words: any page may have fewer

WIDEST = 64  # columns of a table that are read
BOLD = ("b", "strong", "dfn")
BLOCKS = (markup.PARAGRAPHS | markup.LINES | markup.CELLS | {"body", "center", "fieldset", "html"}) - {"br", "hr"}
_HEAD_CLASS = re.compile(r"(?:^|[\s_-])(?:t|table)?head(?:er|ing|row)?s?(?:$|[\s_-])", re.I)
LONGEST_HEAD = 3  # words of a column's heading that is marked as no heading
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
        head, rows = _head_and_body(_grid(table))
        columns = _columns(head)
        if headed and columns:
            groups += [_row(row, *columns) for row in rows if not _divides(row, head)]
        elif not headed and not columns and rows and all(len(row) == 2 for row in [head or rows[0], *rows]):
            rows = rows if head or not _loosely_heads(rows[0]) else rows[1:]
            groups += [_row(row, [0], 1) for row in rows if not _divides(row, head)]
    return groups


def _head_and_body(rows: list[list[html.HtmlElement]]) -> tuple[list[html.HtmlElement], list[list[html.HtmlElement]]]:
    """Returns the row of headings ([]: there is none), and the rows below it. Titles over all columns are left out."""
    first = next((place for place, row in enumerate(rows) if not _is_title(row)), 0)
    if not _is_head(rows[first:]):
        return [], rows
    body = rows[first + 1 :]
    while body and _in_thead(body[0]):
        body = body[1:]
    return rows[first], body


def _is_title(row: list[html.HtmlElement]) -> bool:
    return len(row) > 1 and all(cell is row[0] for cell in row)


def _grid(table: html.HtmlElement) -> list[list[html.HtmlElement]]:
    """Returns rows of cells. A cell that spans several columns or rows appears in each of them."""
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


def _is_head(rows: list[list[html.HtmlElement]]) -> bool:
    """Returns True if the first row holds the headings: by its tags, its words, its class or its bold type."""
    if not rows:
        return False
    row, below = rows[0], rows[1:2]
    if all(cell.tag == "th" for cell in row) or _in_thead(row):
        return True
    if not below:
        return False
    if _columns(row) and all(len(markup.text_of(cell).split()) <= LONGEST_HEAD for cell in row):
        return True
    return all(map(_is_marked, row)) and not all(map(_is_marked, below[0]))


def _in_thead(row: list[html.HtmlElement]) -> bool:
    return all(next(cell.iterancestors("thead"), None) is not None for cell in row)


def _is_marked(cell: html.HtmlElement) -> bool:
    """Returns True if the cell looks like a heading: by its tag, by a class of its own or its row, or wholly bold."""
    text = markup.text_of(cell)
    by_class = _HEAD_CLASS.search(f"{cell.get('class', '')} {cell.getparent().get('class', '')}")
    bold = bool(text) and any(markup.text_of(bold) == text for bold in cell.iter(*BOLD))
    return bool(cell.tag == "th" or by_class or bold)


def _columns(head: list[html.HtmlElement]) -> tuple[list[int], int] | None:
    """Returns the term columns and the definition column that these headings name, or None."""
    words = [set(re.findall(r"\w+", markup.text_of(cell).casefold())) for cell in head]
    definition = next((i for i, heading in enumerate(words) if heading & DEFINITION_HEADS), None)
    terms = [i for i, heading in enumerate(words) if heading & TERM_HEADS and i != definition]
    return (terms, definition) if terms and definition is not None else None


def _loosely_heads(row: list[html.HtmlElement]) -> bool:
    """Returns True for the first row of a glossary's table that names its columns in words of LOOSE_TERM_HEADS."""
    words = [re.findall(r"\w+", markup.text_of(cell).casefold()) for cell in row]
    if not all(0 < len(some) <= LONGEST_HEAD for some in words):
        return False
    return LOOSE_TERM_HEADS.issuperset(words[0]) and not LOOSE_DEFINITION_HEADS.isdisjoint(words[1])


def names_columns(term: str, definition: str) -> bool:
    """Returns True for a term and a definition that are the headings of their columns, such as "Term" and "Meaning"."""
    words = [set(re.findall(r"\w+", text.casefold())) for text in (term, definition)]
    return bool(words[0] and words[1] and words[0] <= TERM_HEADS and words[1] <= DEFINITION_HEADS)


def _row(row: list[html.HtmlElement], terms: list[int], definition: int) -> Group:
    cells = [row[i] for i in terms if i < len(row)]
    filled = [cell for cell in cells if markup.text_of(cell)]
    return Group(filled or cells, row[definition : definition + 1])


def _divides(row: list[html.HtmlElement], head: list[html.HtmlElement]) -> bool:
    """Returns True for a row without an entry: one cell over all columns (a letter), a repeated head, or empty."""
    texts = [markup.text_of(cell) for cell in row]
    repeated = [markup.text_of(cell) for cell in head] == texts
    return not any(texts) or repeated or _is_title(row)


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
    """Finds bold words that begin a line and have a colon or dash behind them.

    The definition reaches to the next such word in the block, and that of a paragraph's last one to the next such
    paragraph or heading. Blocks that are no list item or paragraph (a cell, a `div`) are read if they hold several.
    """
    leads = _leads(main_content(document))
    every = {lead for own in leads.values() for lead in own}
    groups = []
    for block, own in leads.items():
        if block.tag not in ("li", "p") and len(own) < 2:
            continue
        marks = own  # an item's list is part of its definition
        if block.tag != "li":
            marks = [e for e in block.iter(etree.Element) if e in every or e.tag in markup.HEADINGS]
        links = _links_by_mark(block, set(marks))
        parts = [(lead, text) for lead, text in markup.parts(block, set(marks)) if lead in own]
        found = [Group([lead], [text], links[lead]) for lead, text in parts]
        for following in block.itersiblings(etree.Element) if block.tag == "p" else ():
            if _ends_definition(following, leads, every):
                break
            found[-1].definitions.append(markup.text_of(following))
            found[-1].links += following.iter("a")
        groups += found
    return groups if len(groups) >= FEWEST else []


def _ends_definition(element: html.HtmlElement, leads: dict, every: set[html.HtmlElement]) -> bool:
    """Returns True for an element behind a paragraph that is not part of the definition which ends in the paragraph."""
    if element.tag in markup.HEADINGS or element.tag == "hr" or element in leads or element in every:
        return True
    return element.tag not in ("ul", "ol", "dl", "table") and any(inner in leads for inner in element.iter())


def _leads(root: html.HtmlElement) -> dict[html.HtmlElement, list[html.HtmlElement]]:
    """Returns block -> the bold words that begin a line of it and have a separator behind them, in order.

    Left out: a word that stands so in several definitions ("Example:"), as it labels a part of them.
    """
    leads: dict[html.HtmlElement, list[html.HtmlElement]] = {}
    names: Counter[str] = Counter()
    for bold in root.iter(*BOLD):
        name = markup.text_of(bold)
        if not name or next(bold.iterancestors(*BOLD), None) is not None or not _begins_line(bold):
            continue
        block = next((above for above in bold.iterancestors() if above.tag in BLOCKS), root)
        if name.endswith((":", "：")) or _SEPARATED.match(_behind(bold, block)):
            leads.setdefault(block, []).append(bold)
            names[markup.clean_term(name)] += 1
    for block, (first, *others) in leads.items():
        titles = {lead: markup.clean_term(markup.text_of(lead)) for lead in others}
        terms = [lead for lead, title in titles.items() if names[title] == 1 and not NO_TERM.fullmatch(title)]
        leads[block] = [first, *terms]
    return leads


def _begins_line(element: html.HtmlElement) -> bool:
    """Returns True if no text stands before the element on its line."""
    while True:
        before, above = element.getprevious(), element.getparent()
        if above is None:
            return True
        if ((above.text if before is None else before.tail) or "").strip():
            return False
        if before is None:
            if above.tag in BLOCKS:
                return True
            element = above
        elif before.tag in BLOCKS or before.tag in ("br", "hr"):
            return True
        elif isinstance(before.tag, str) and before.text_content().strip():
            return False
        else:
            element = before


def _behind(element: html.HtmlElement, block: html.HtmlElement) -> str:
    """Returns the text behind the element, or behind the inline elements that hold nothing else."""
    while not (element.tail or "").strip() and element.getnext() is None and element.getparent() not in (block, None):
        element = element.getparent()
    return element.tail or ""


def _links_by_mark(block: html.HtmlElement, marks: set[html.HtmlElement]) -> dict[html.HtmlElement, list]:
    """Returns mark -> the links behind it, up to the next mark."""
    links: dict[html.HtmlElement, list] = {}
    current, last = None, None
    for element in block.iter(etree.Element):
        if element in marks:
            current, last = links.setdefault(element, []), element
        elif element.tag == "a" and current is not None and last not in element.iterancestors():
            current.append(element)
    return links
