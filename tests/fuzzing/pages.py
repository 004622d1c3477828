"""Target: pages and answers of MediaWiki. What is written of them has to be read again."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from data_prep.common.errors import BadInput
from data_prep.common.finite import decode_json
from data_prep.crawling import mediawiki
from data_prep.crawling.charsets import decode
from data_prep.glossary import page as glossary
from data_prep.glossary.markup import tidy
from data_prep.reading.formats import read_records
from tests.fuzzing.case import Case, Finding, command
from tests.fuzzing.mutations import Draw, dumps

TARGET = "pages"
HEAD = "<html lang='en'><head><title>Glossary</title></head><body><h1>Glossary of pumps</h1>"
PAGES = [
    "<dl class='glossary'><dt id='a'>Alpha</dt><dd>The first.</dd><dt>Beta<dt>Bee<dd>See <a href='#a'>Alpha</a></dl>",
    "<dl><dt>A</dt><dd>x one</dd><dt>B</dt><dd>y two</dd><dt>C</dt><dd><p>z</p><ul><li>three</ul></dd></dl>",
    "<table><tr><th>Term<th>Definition<tr><td>A</td><td>x</td></tr><tr><td rowspan=2>B<td>y<tr><td>z</table>",
    "<table><tr><td>Term<td>Meaning</tr><tr><td colspan=2>A</tr><tr><td>B</td><td>b <br> c</td></tr></table>",
    "<h2>A</h2><p>The first.</p><h2>B</h2><p>The second.<sup><a href='#n'>[1]</a></sup></p><h2>C</h2><pre>x\n y</pre>",
    "<p><b>A</b> - x<br><b>B</b> - y<br><strong>C</strong>: z</p><ul><li><b>D</b>: w</li></ul>",
    "<div itemscope itemtype='https://schema.org/DefinedTerm'><b itemprop=name>A</b><p itemprop=description>x</p>",
    "<ul><li><dfn>A</dfn> (n.): one<li><dfn>B</dfn>: two<li><dfn>C</dfn>: three</ul><a rel=next href='?page=2'>n</a>",
]  # fmt: skip
MARKDOWN = [
    "# Glossary\n\nAlpha\n: The first.\n\nBeta\n: See Alpha.\n\nGamma\n: x[^1]\n\n[^1]: note\n",
    "---\ntitle: x\n---\n\n| Term | Definition |\n|---|---|\n| A | x |\n| B | `y` \\| z |\n",
    "# Glossary\n\n## A\n\nThe first.\n\n## B\n\n```\ncode\n```\n\n## C\n\n> quoted\n",
    "# Terms\n\n**A**: x\n\n**B**: y\n\n**C**: <b>z</b> &amp; &#0;\n",
]
TAGS = [
    "div", "p", "table", "tr", "td", "th", "dl", "dt", "dd", "ul", "li", "b", "a", "span", "sup", "h2", "pre",
    "svg", "math", "template", "form", "select", "noscript", "iframe", "title", "textarea", "plaintext", "frameset",
    "br", "colgroup", "caption",
]  # fmt: skip
ODD = [
    "<!--", "-->", "<![CDATA[", "]]>", "<?xml version='1.0' encoding='utf-16'?>",
    "<!DOCTYPE html [<!ENTITY a 'b'>]>", "&#0;",
    "&#xD800;", "&#x110000;", "&#99999999999;", "&nbsp;", "&a;", "<b", "</", "<a href='http://['>x</a>",
    "<a href='#'>¶</a>",
    "<a href='javascript:x'>", "<td colspan=99999999>", "<td rowspan=-1>", "<td colspan='9999999999999999999'>",
    "<td rowspan=0>",
    "<meta charset=utf-16>", "<meta charset=nonsense>", "<base href='//x'>", "<dl><dl>", "<x:y z:w='1'>",
    "<b id='a' id=b>",
    "<p style='display:none'>", "\x00", "\x1e", "\x1f", "<table><table>", "<br/>" * 200,
    "<script>if (a<b) {</script>",
]  # fmt: skip
TYPES = [
    "", "text/html", "text/html; charset=utf-8", "text/html; charset=latin-1", "text/html; charset=utf-7",
    "text/html; charset=", "text/html; charset=x-user-defined", "text/html; charset=iso-2022-jp", ";;charset=\xff",
]  # fmt: skip
START = {
    "query": {"pages": [{"pageid": 1, "ns": 14, "title": "Category:G"}], "general": {"articlepath": "/wiki/$1"}},
    "batchcomplete": True,
}  # fmt: skip
MEMBERS = {
    "query": {"categorymembers": [{"ns": 0, "title": "Glossary of x"}, {"ns": 0, "title": "Valve"}, {"ns": 14,
    "title": "Category:Glossaries"}, {"ns": 1, "title": "Talk:x"}]},
    "continue": {"cmcontinue": "page|2", "continue": "-||"},
}  # fmt: skip
OLD = {
    "query": {"categorymembers": [{"ns": 0, "title": "Glossary of y"}]},
    "query-continue": {"categorymembers": {"cmcontinue": "page|3"}}, "warnings": {"main": {"*": "old"}},
}  # fmt: skip
LAST = {"query": {"categorymembers": []}}
PARSED = {"parse": {"title": "Glossary of x", "pageid": 2, "text": PAGES[0]}}
LEADS = {"query": {"pages": {"7": {"ns": 0, "title": "Valve", "extract": "A valve closes."}}}, "batchcomplete": ""}
LINKS = {
    "query": {"pages": [{"ns": 14, "title": "Category:G", "langlinks": [{"lang": "de", "title": "Kategorie:G"}]}]},
}  # fmt: skip


@st.composite
def cases(draw) -> Case:
    d = Draw(draw)
    kind = d.pick(["html", "html", "markdown", "bytes", "wiki", "command"])
    if kind == "wiki":
        answers = [START, MEMBERS, OLD, LAST, PARSED, PARSED, LEADS]
        if d.chance(4):
            answers = [START | {"query": {"pages": [{"ns": 0, "title": "Glossary of x"}]}}, PARSED]
        for _ in range(1 + d.number(0, 2)):
            answers = d.mutated(answers) if d.chance(3) else _one(d, answers)
            answers = answers if isinstance(answers, list) else [answers]
        language = "de" if d.chance(5) else ""
        return Case(
            TARGET,
            {"kind": kind, "language": language},
            {"answers": dumps([LINKS, *answers] if language else answers).encode("utf-8", "replace")},
        )
    if kind == "markdown":
        text = d.pick(MARKDOWN)
    else:
        text = d.pick([HEAD, "", "<p>"]) + "".join(d.pick(PAGES) for _ in range(1 + d.number(0, 1)))
    for _ in d.times(4):
        text = _changed(d, text)
    if d.chance(6):
        text = d.damaged(text)
    body = d.bytes_of(text) if kind in ("bytes", "command") else text.encode("utf-8", "surrogatepass")
    data = {"kind": kind, "type": d.pick(TYPES), "language": d.pick(["", "en", "de"])}
    if kind == "command":
        data |= {"output": d.pick(["out.csv", "out.jsonl"]), "name": d.pick(["in.html", "in.md"])}
    return Case(TARGET, data, {data.get("name", "page"): body})


def _one(d: Draw, answers: list) -> list:
    if not answers:
        return answers
    at = d.number(0, len(answers) - 1)
    return [*answers[:at], d.mutated(answers[at]), *answers[at + 1 :]]


def _changed(d: Draw, text: str) -> str:
    """Returns the page with one tag, attribute or text added, dropped, repeated, nested deep or made odd."""
    places = [match.start() for match in re.finditer("<|$", text)]
    at = d.pick(places)
    change = d.number(0, 6)
    if change == 0:
        return text[:at] + d.pick(ODD) + text[at:]
    if change == 1:
        end = text.find(">", at) + 1
        return text[:at] + text[end or at :]
    if change == 2:
        return text[:at] + d.word() + text[at:]
    if change == 3:
        tag, depth = d.pick(TAGS), d.pick([1, 3, 300, 3000])
        return text[:at] + f"<{tag}>" * depth + text[at:] + (f"</{tag}>" * depth if d.chance(2) else "")
    if change == 4:
        stop = d.pick(places)
        return text[:at] + text[at : max(at, stop)] * d.pick([2, 50]) + text[max(at, stop) :]
    if change == 5:
        name = d.pick(["id", "class", "href", "colspan", "lang", "itemprop", "style", "hidden", "role"])
        return re.sub(r"<(\w+)", lambda match: f"<{match[1]} {name}='{d.word()}'", text[at:], count=1).join(
            [text[:at], ""]
        )
    other = d.pick(PAGES)
    return text[:at] + other[d.pick([0, len(other) // 2]) :] + text[at:]


def check(case: Case, folder: Path) -> None:
    kind = case.data["kind"]
    if kind == "wiki":
        try:
            answers = decode_json(case.files["answers"])
        except ValueError:
            return
        asyncio.run(check_wiki(answers if isinstance(answers, list) else [answers], case.data["language"]))
        return
    if kind == "command":
        check_command(case, folder)
        return
    body = case.files["page"]
    decoded = decode(body, case.data["type"])
    read = glossary.from_markdown if kind == "markdown" else glossary.from_html
    page = read(
        decoded.text,
        "https://host/glossary",
        case.data["language"],
        **({} if kind == "markdown" else {"about_terms": True}),
    )
    page.summary()
    check_entries(page.entries)


def check_entries(entries: list) -> None:
    for entry in entries:
        if not (entry.term.strip() and entry.definition.strip()):
            raise Finding("an entry without a text")
        json.dumps([entry.term, entry.definition], ensure_ascii=False).encode()


def check_command(case: Case, folder: Path) -> None:
    output = folder / case.data["output"]
    code = command("crawl", "--source", case.data["name"], "--output", output.name)
    if code:
        return
    try:
        records = list(read_records(output))
    except BadInput as error:
        raise Finding(f"what crawl writes as {output.suffix} is refused by its reader", str(error)) from error
    if not records:
        raise Finding("crawl wrote no term and ended with 0")
    if output.suffix == ".csv":
        with_pairs = output.with_suffix(".jsonl")
        command("crawl", "--source", case.data["name"], "--output", with_pairs.name)
        pairs = [(record.query, record.positives) for record in read_records(with_pairs)]
        if pairs != [(record.query, record.positives) for record in records]:
            raise Finding("crawl writes other terms as CSV than as JSONL", f"{pairs} {records}")


async def check_wiki(answers: list, language: str) -> None:
    """Reads the answers in turn as those of a wiki; ApiError is the one error that may come."""
    waiting = iter(answers)

    async def get(url: str) -> Any:
        for answer in waiting:
            return answer
        raise mediawiki.ApiError("no answer is left")

    wiki = mediawiki.Wiki("https://host/w/api.php", get, lambda note: note.encode("utf-8", "backslashreplace"))
    try:
        title = await wiki.title_in(language, "Category:G") if language else "Category:G"
        async for page in wiki.pages(title):
            if page.html:
                check_entries(glossary.from_html(page.html, page.url, about_terms=True).entries)
            else:
                check_entries([glossary.Entry(page.title, tidy(page.lead), page.url)] if tidy(page.lead) else [])
    except mediawiki.ApiError:
        pass
