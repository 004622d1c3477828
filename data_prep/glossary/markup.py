"""HTML to plain text: furniture (edit links, footnote marks, anchors) is dropped, paragraphs and lines stay."""

import re
import unicodedata
from collections.abc import Collection, Iterator

from lxml import etree, html
from selectolax.lexbor import LexborHTMLParser

from data_prep.glossary.words import FURNITURE_CLASSES

PARAGRAPHS = frozenset(("address", "article", "blockquote", "details", "dl", "div", "figure", "form", "hr", "main")) | {
    *("ol", "p", "pre", "section", "table", "ul", *(f"h{level}" for level in range(1, 7)))
}
LINES = frozenset(("br", "caption", "dd", "dt", "figcaption", "li", "summary", "tr"))
CELLS = frozenset(("td", "th"))
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")

FURNITURE = frozenset(
    ("script", "style", "noscript", "template", "svg", "nav", "iframe", "object", "audio", "video")
) | {*("button", "input", "select", "textarea")}
ROLES = frozenset(("navigation", "banner", "contentinfo", "complementary", "search")) | {
    *("doc-noteref", "doc-backlink", "doc-endnotes")
}
DEEPEST = 512  # open elements, the limit of Chromium
# Elements that stay open without an end tag
_OPENED = re.compile(
    "<(/?)(?:div|span|section|article|main|header|footer|nav|aside|ul|ol|dl|table|blockquote|center|form|details|fieldset|"
    r"figure|b|big|code|em|font|i|s|small|strike|strong|tt|u|sub|sup|q|cite|dfn|abbr|kbd|var|mark|ins|del|label)\b",
    re.I,
)
# In these, `header`, `footer` and `aside` are of an entry, elsewhere of the page
ENTRY = ("main", "article", "section", "li", "dd")
_SYMBOLS = re.compile("[¶§#↑^↩↵⚓🔗\ufe0e\ufe0f\ue000-\uf8ff]+")  # the private use area: icon fonts
_FOOTNOTE = re.compile(r"[\[(]?\s*(?:\d{1,3}|[a-z]|[*†‡§]+|(?:note|nb|n|fn)\s*\d+)\s*[\])]?", re.I)
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")
_SPACE = re.compile(r"\s+")
_LEFT_OF_EDIT = re.compile(r"\[[\s|]*\]")

_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
_LINE, _PARAGRAPH = "\x1e", "\x1f"  # separators while a text is put together; `parse` lets no such character in


def parse(text: str) -> tuple[html.HtmlElement | None, str]:
    """Returns the document (None for an empty page), and why it was not read to its end ("": it was).

    Two parsers: Lexbor mends broken HTML as browsers do (HTML Living Standard, 13.2). lxml alone would put the rest of
    a page into an element that was left open; here it only builds the tree.
    """
    text = _CONTROLS.sub(" ", text)
    if not text.strip():
        return None, ""
    end = _too_deep(text)
    cut = f"not read beyond character {end:,}, where {DEEPEST} elements are open" if end is not None else ""
    # huge_tree: libxml2 otherwise stops at a depth of 256 (with it, at 2048), and either way drops the rest silently
    parser = html.HTMLParser(encoding="utf-8", huge_tree=True)
    document = html.document_fromstring(LexborHTMLParser(text[:end]).html.encode(), parser=parser)
    fatal = [entry for entry in parser.error_log if entry.level_name == "FATAL"]
    return document, cut or (f"not read beyond line {fatal[0].line}: {fatal[0].message}" if fatal else "")


def _too_deep(text: str) -> int | None:
    """Returns the offset where more than DEEPEST elements are open: parsers take quadratic time beyond it."""
    depth = 0
    for tag in _OPENED.finditer(text):
        depth = max(0, depth - 1) if tag[1] else depth + 1
        if depth > DEEPEST:
            return tag.start()
    return None


def prune(document: html.HtmlElement) -> None:
    """Empties the furniture of the document, in place. Text behind it stays.

    In Python and not in XPath, whose unions take quadratic time in libxml2.
    """
    for node in [node for node in document.iter(etree.Element) if _is_furniture(node)]:
        node.clear(keep_tail=True)
    for node in [node for node in document.iter("a", "sup") if _is_mark(node)]:
        node.text = None
        del node[:]
    for formula in document.iter("img"):  # MediaWiki's fallback picture of a formula has its LaTeX
        if "mwe-math" in formula.get("class", "") and formula.get("alt"):
            formula.tail = formula.get("alt") + (formula.tail or "")


def _is_furniture(node: html.HtmlElement) -> bool:
    tag = node.tag
    if tag in FURNITURE or node.get("role") in ROLES or not FURNITURE_CLASSES.isdisjoint(node.get("class", "").split()):
        return True
    if tag == "span":  # spans only: a page that unfolds its definitions on a click hides them in blocks
        return node.get("hidden") is not None or "display:none" in node.get("style", "").replace(" ", "")
    if tag in ("header", "footer", "aside"):
        return next(node.iterancestors(*ENTRY), None) is None
    return tag == "a" and "action=edit" in node.get("href", "")


def _is_mark(node: html.HtmlElement) -> bool:
    """Returns True for a permalink or footnote mark: a link within the page whose text is a sign or a number."""
    if not any("#" in link.get("href", "") for link in node.iter("a")):
        return False
    content = node.text_content().strip()
    footnote = node.tag == "sup" or content[:1] in ("[", "(")
    return bool(_SYMBOLS.fullmatch(content) or (footnote and _FOOTNOTE.fullmatch(content)))


def text_of(element: html.HtmlElement, skip: Collection[html.HtmlElement] = ()) -> str:
    """Returns the text of one element without that of the elements in skip.

    An empty line parts paragraphs; lines are kept; other white space is collapsed.
    """
    return tidy("".join(piece for piece in _pieces(element, skip) if isinstance(piece, str)))


def sections(element: html.HtmlElement) -> list[tuple[html.HtmlElement, str]]:
    """Returns every heading with the text up to the next heading of any level, in order."""
    return parts(element, set(element.iter(*HEADINGS)))


def parts(element: html.HtmlElement, marks: Collection[html.HtmlElement]) -> list[tuple[html.HtmlElement, str]]:
    """Returns every mark in the element with the text up to the next mark, in order."""
    parts: list[tuple[html.HtmlElement, list[str]]] = []
    for piece in _pieces(element, marks):
        if not isinstance(piece, str):
            parts.append((piece, []))
        elif parts:
            parts[-1][1].append(piece)
    return [(mark, tidy("".join(pieces))) for mark, pieces in parts]


def _pieces(element: html.HtmlElement, skip: Collection[html.HtmlElement]) -> Iterator[str | html.HtmlElement]:
    """Yields the texts and breaks of an element in order, and each element of skip in place of its content."""
    skipped = 0
    for event, node in etree.iterwalk(element, events=("start", "end", "comment", "pi")):
        tag = node.tag if isinstance(node.tag, str) else ""
        if event == "start":
            if node in skip:
                yield node
                skipped += 1
            if node is not element:
                yield _before(tag)
            text, inside = node.text, node
        else:
            skipped -= node in skip
            if node is element:
                break
            yield _after(tag, node)
            text, inside = node.tail, node.getparent()
        if text and not skipped:
            pre = "\n" in text and any(above.tag == "pre" for above in (inside, *inside.iterancestors()))
            yield text.replace("\n", _LINE) if pre else _SPACE.sub(" ", text)


def _before(tag: str) -> str:
    return _PARAGRAPH if tag in PARAGRAPHS else _LINE if tag in LINES else ""


def _after(tag: str, node: html.HtmlElement) -> str:
    if tag in CELLS and next(node.itersiblings(*CELLS), None) is not None:
        return " | "
    return _before(tag)


def tidy(text: str) -> str:
    """Returns the text in NFC without invisible characters, repeated spaces and stray breaks."""
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text.replace("\r", "")))
    text = re.sub(" {2,}", " ", text)  # first, or the next expression takes quadratic time for a row of spaces
    breaks = rf" ?[{_LINE}{_PARAGRAPH}][ {_LINE}{_PARAGRAPH}]*"
    return re.sub(breaks, lambda match: "\n\n" if _PARAGRAPH in match[0] else "\n", text).strip()


def clean_term(text: str) -> str:
    """Returns the term as one line, without a colon, dash or pilcrow behind it and without empty brackets."""
    text = _LEFT_OF_EDIT.sub("", _SPACE.sub(" ", text))
    return re.sub(r"\s*[:：¶–—]\s*$", "", text.strip()).strip()


def clean_definition(text: str) -> str:
    """Returns the definition without the separator between it and its term."""
    return re.sub(r"^(?:[:–—=-]\s+|：)", "", text).strip()
