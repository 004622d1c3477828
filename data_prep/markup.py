"""HTML to plain text: what is furniture (edit links, footnote marks, anchors) goes, paragraphs and lines stay."""

import re
import unicodedata
from collections.abc import Collection, Iterator

from lxml import etree, html
from selectolax.lexbor import LexborHTMLParser

from data_prep.glossary_words import FURNITURE_CLASSES

PARAGRAPHS = frozenset(("address", "article", "blockquote", "details", "dl", "div", "figure", "form", "hr", "main")) | {
    *("ol", "p", "pre", "section", "table", "ul", *(f"h{level}" for level in range(1, 7)))
}
LINES = frozenset(("br", "caption", "dd", "dt", "figcaption", "li", "summary", "tr"))
CELLS = frozenset(("td", "th"))
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")

FURNITURE = ("script", "style", "noscript", "template", "svg", "nav", "iframe", "object", "audio", "video") + (
    ("button", "input", "select", "textarea")
)
ROLES = ("navigation", "banner", "contentinfo", "complementary", "search") + (
    ("doc-noteref", "doc-backlink", "doc-endnotes")
)
_OUTSIDE = "not(ancestor::main or ancestor::article or ancestor::section or ancestor::li or ancestor::dd)"


def _has_class(name: str) -> str:
    return f"contains(concat(' ', normalize-space(@class), ' '), ' {name} ')"


_REMOVED = etree.XPath(
    " | ".join(
        [f"//{tag}" for tag in FURNITURE]
        + [f"//*[{' or '.join(_has_class(name) for name in sorted(FURNITURE_CLASSES))}]"]
        + [f"//*[{' or '.join(f'@role={role!r}' for role in ROLES)}]"]
        # spans only: a page that unfolds its definitions on a click hides them in blocks
        + ["//span[@hidden or contains(translate(@style, ' ', ''), 'display:none')]"]
        + ["//a[contains(@href, 'action=edit')]", "//comment()", "//processing-instruction()"]
        + [f"//{tag}[{_OUTSIDE}]" for tag in ("header", "footer", "aside")]
    )
)
_MARKS = etree.XPath("//a[contains(@href, '#')] | //sup[.//a[contains(@href, '#')]]")
_SYMBOLS = re.compile("[¶§#↑^↩↵⚓🔗\ufe0e\ufe0f\ue000-\uf8ff]+")  # the private use area: icon fonts
_FOOTNOTE = re.compile(r"[\[(]?\s*(?:\d{1,3}|[a-z]|[*†‡§]+|(?:note|nb|n|fn)\s*\d+)\s*[\])]?", re.I)
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")
_SPACE = re.compile(r"\s+")
_LEFT_OF_EDIT = re.compile(r"\[[\s|]*\]")

_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
_LINE, _PARAGRAPH = "\x1e", "\x1f"  # separators while a text is put together; `parse` lets no such character in


def parse(text: str) -> tuple[html.HtmlElement | None, str]:
    """The document, and where it could not be read to its end, why. None for a page without any text or element.

    Two parsers: Lexbor mends broken HTML as browsers do (HTML Living Standard, 13.2), where lxml alone puts the rest
    of a page into an element that was left open; lxml then gives the tree.
    """
    text = _CONTROLS.sub(" ", text)
    if not text.strip():
        return None, ""
    # huge_tree: libxml2 otherwise stops at a depth of 256 (with it, at 2048), and either way drops the rest silently
    parser = html.HTMLParser(encoding="utf-8", huge_tree=True)
    document = html.document_fromstring(LexborHTMLParser(text).html.encode(), parser=parser)
    fatal = [entry for entry in parser.error_log if entry.level_name == "FATAL"]
    return document, f"not read beyond line {fatal[0].line}: {fatal[0].message}" if fatal else ""


def prune(document: html.HtmlElement) -> None:
    """Takes the furniture out of the document, in place; the text behind it stays."""
    for formula in document.iter("img"):  # MediaWiki's fallback picture of a formula has its LaTeX
        if "mwe-math" in formula.get("class", "") and formula.get("alt"):
            formula.tail = formula.get("alt") + (formula.tail or "")
    for node in _REMOVED(document):
        if node.getparent() is not None:
            node.drop_tree()
    for node in _MARKS(document):
        content = node.text_content().strip() if node.getparent() is not None else "x"
        footnote = node.tag == "sup" or content[:1] in "[("
        # an anchor with an id may be what others refer to, and an empty one has no text to be rid of
        if content and (_SYMBOLS.fullmatch(content) or (footnote and _FOOTNOTE.fullmatch(content))):
            node.drop_tree()


def text_of(element: html.HtmlElement, skip: Collection[html.HtmlElement] = ()) -> str:
    """The text of one element without that of the elements in skip: paragraphs parted by an empty line, lines kept,
    other white space collapsed."""
    return tidy("".join(piece for piece in _pieces(element, skip) if isinstance(piece, str)))


def sections(element: html.HtmlElement) -> list[tuple[html.HtmlElement, str]]:
    """Every heading with the text between it and the next heading of any level, in order."""
    headings = set(element.iter(*HEADINGS))
    found: list[tuple[html.HtmlElement, list[str]]] = []
    for piece in _pieces(element, headings):
        if not isinstance(piece, str):
            found.append((piece, []))
        elif found:
            found[-1][1].append(piece)
    return [(heading, tidy("".join(pieces))) for heading, pieces in found]


def _pieces(element: html.HtmlElement, skip: Collection[html.HtmlElement]) -> Iterator[str | html.HtmlElement]:
    """The texts and breaks of an element in order; an element of skip in the place of its content."""
    skipped = 0
    for event, node in etree.iterwalk(element, events=("start", "end")):
        tag = node.tag if isinstance(node.tag, str) else ""
        if event == "start":
            if node in skip:
                yield node
                skipped += 1
            if node is not element:
                yield _before(tag)
            text = node.text
        else:
            skipped -= node in skip
            if node is element:
                break
            yield _after(tag, node)
            text = node.tail
        if text and not skipped:
            inside = node if event == "start" else node.getparent()
            pre = "\n" in text and any(above.tag == "pre" for above in (inside, *inside.iterancestors()))
            yield text.replace("\n", _LINE) if pre else _SPACE.sub(" ", text)


def _before(tag: str) -> str:
    return _PARAGRAPH if tag in PARAGRAPHS else _LINE if tag in LINES else ""


def _after(tag: str, node: html.HtmlElement) -> str:
    if tag in CELLS and node.getnext() is not None:
        return " | "
    return _before(tag)


def tidy(text: str) -> str:
    """White space, invisible characters and composed letters (NFC) as people write them."""
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text.replace("\r", "")))
    text = re.sub(rf" *[{_LINE}{_PARAGRAPH}][ {_LINE}{_PARAGRAPH}]*", _break, text)
    return re.sub(" {2,}", " ", text).strip()


def _break(found: re.Match) -> str:
    return "\n\n" if _PARAGRAPH in found[0] else "\n"


def clean_term(text: str) -> str:
    """One line, without what editors leave around a term: a colon or dash behind it, a pilcrow, empty brackets."""
    text = _LEFT_OF_EDIT.sub("", _SPACE.sub(" ", text))
    return re.sub(r"\s*[:：¶–—]\s*$", "", text.strip()).strip()


def clean_definition(text: str) -> str:
    """The definition without the separator that stood between it and its term."""
    return re.sub(r"^(?:[:–—=-]\s+|：)", "", text).strip()
