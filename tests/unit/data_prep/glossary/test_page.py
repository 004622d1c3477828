"""Terms and definitions out of HTML and Markdown: every structure, what is cleaned, what is refused and reported."""

import html
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("lxml")
from data_prep.glossary import markup
from data_prep.glossary import page as glossary
from data_prep.glossary.cross_references import resolve

URL = "http://example.org/page"
ABOUT = "<title>Glossary</title>"


def read(text: str, url: str = URL) -> dict[str, str]:
    return pairs(glossary.from_html(text, url))


def pairs(page: glossary.Page) -> dict[str, str]:
    resolve(page.entries)
    assert len({entry.term for entry in page.entries}) == len(page.entries)
    return {entry.term: entry.definition for entry in page.entries}


STRUCTURES = {
    "dl.glossary": "<dl class='glossary docutils'><dt>ant</dt><dd>An insect.</dd><dt>bee</dt><dd>Another.</dd></dl>",
    "definition list": ABOUT + "<dl><dt>ant<dd>An insect.<dt>bee<dd>Another.</dl>",
    "bold lines": ABOUT + "<p><b>ant</b> - An insect.<br><b>bee</b> - Another.<br><b>cow</b> - None.</p>",
    "definition list in divs": ABOUT
    + "<dl><div><dt>ant</dt><dd>An insect.</dd></div><div><dt>bee</dt><dd>Another.</dd></div></dl>",
    "table with headings": "<table><tr><th>Abk.<th>Begriff<th>Bedeutung<tr><td>1<td>ant<td>An insect.<tr><td>2<td>bee"
    "<td>Another.</table>",
    "table": ABOUT + "<table><tr><td>ant<td>An insect.<tr><td colspan=2>B<tr><td>bee<td>Another.</table>",
    "microdata": "<div itemscope itemtype='http://schema.org/DefinedTerm'><b itemprop=name>ant</b>"
    "<i itemprop=description>An insect.</i></div><div itemscope itemtype='https://schema.org/DefinedTerm'>"
    "<meta itemprop=name content=bee><i itemprop=description>Another.</i></div>",
    "headings": "<h1>Glossary</h1><h2>A</h2><h3>ant</h3><p>An insect.</p><h2>B</h2><h3>bee</h3><p>Another.</p>"
    "<h3>cow</h3><p>None.</p>",
    "bold words": ABOUT + "<ul><li><b>ant</b>: An insect.</li><li><b>bee</b> – Another.</li><li><b>cow:</b> None.</ul>",
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_structure_gives_its_terms(name):
    found = read(STRUCTURES[name])
    assert found.pop("cow", "None.") == "None."
    assert found == {"ant": "An insect.", "bee": "Another."}


def test_what_the_page_marks_goes_before_what_only_looks_like_terms():
    text = (
        "<nav><dl><dt>Home</dt><dd>Start</dd></dl></nav><dl class='field-list'><dt>Author</dt><dd>Me</dd></dl>"
        "<dl class='glossary'><dt>ant</dt><dd>An insect. <dl><dt>inner</dt><dd>part of it</dd></dl></dd></dl>"
        "<dl><dt>Version</dt><dd>1.0</dd></dl>"
    )
    page = glossary.from_html(text, URL)
    assert pairs(page) == {"ant": "An insect.\n\ninner\npart of it"}
    assert page.notes == ["1 of a definition list left, as dl.glossary hold the terms"]


def test_a_page_that_is_no_glossary_gives_nothing_and_says_what_was_tried():
    page = glossary.from_html("<h1>News</h1><h2>One</h2><p>a<h2>Two</h2><p>b<h2>Three</h2><p>c", URL)
    assert not page.entries and "headings are taken only where title or address say" in page.notes[0]
    table = "<table><tr><th>Name</th><th>Price</th></tr><tr><td>tea</td><td>3</td></tr></table>"
    assert not glossary.from_html(table, URL).entries


def test_several_terms_share_a_definition_and_several_definitions_are_one():
    text = "<dl class=glossary><dt>TF-M</dt><dt>Trusted Firmware</dt><dd>Code.</dd><dd>For a chip.</dd></dl>"
    assert read(text) == {"TF-M": "Code.\n\nFor a chip.", "Trusted Firmware": "Code.\n\nFor a chip."}
    wiki = "<dl class=glossary><dt><dfn>lead</dfn>, <dfn>plumb</dfn></dt><dd>A metal.</dd></dl>"
    assert read(wiki) == {"lead": "A metal.", "plumb": "A metal."}


def test_paragraphs_lists_and_code_of_a_definition_are_kept_whole():
    text = "<dl class=glossary><dt>x</dt><dd><p>One\n two.</p><ul><li>a</li><li>b</li></ul><pre>c\n  d</pre></dd></dl>"
    assert read(text) == {"x": "One two.\n\na\nb\n\nc\nd"}


def test_furniture_is_cut_and_text_is_not():
    text = (
        "<dl class=glossary><dt id=a>x<sup>2</sup>\u00ad<a class=headerlink href='#a'>¶</a>:</dt>"
        "<dd>A square.<sup class=reference><a href='#cite_note-1'>[1]</a></sup><sup><a href='#n'>note 2</a></sup> "
        "See <a href='#b'>B</a>, 3<sup>rd</sup> <span class=mw-editsection>[<a href='?action=edit'>edit</a>]</span>"
        "row<script>x</script><!-- no -->.<a href='#fn9' role=doc-noteref>9</a> The sign <a href='#p'>+</a>.</dd></dl>"
    )
    assert read(text) == {"x2": "A square. See B, 3rd row. The sign +."}


REFERENCES = [
    "See <a href='#t'>Open data</a>.",
    "Link <a href='#t'>anything</a> .",
    "<a href='#t'>anything</a>",
    "<a href='#t'>Open data</a> を参照。",
    "Sjá: <a href='page#t'>x</a>",
    "см. <a href='http://example.org/p%61ge#t'>x</a>",
    "see “open  DATA”.",
    "Vedi:term:Open data",
    "Zie: term: `Open data`.",
    "→ Open data",
]


@pytest.mark.parametrize("said", REFERENCES)
def test_a_reference_gets_the_definition_of_its_target(said):
    text = f"<dl class=glossary><dt>OD</dt><dd>{said}</dd><dt id=t>Open data</dt><dd>Data for all.</dd></dl>"
    assert read(text)["OD"] == "Data for all."


@pytest.mark.parametrize(
    "said",
    [
        "Opposite of <a href='#t'>Open data</a>.",
        "See <a href='#t'>Open data</a> and the law.",
        "An <a href='#t'>Open data</a> that is at hand.",
        "Se dice de open data.",
        "The first.<a href='#n'></a>",
        "x<a href='#n'><sup></sup></a>",
    ],
)
def test_a_definition_with_a_link_is_no_reference(said):
    text = f"<dl class=glossary><dt>OD</dt><dd>{said}</dd><dt id=t>Open data</dt><dd>Data for all.</dd></dl>"
    assert read(text)["OD"] == re.sub("<.*?>", "", said)


def test_references_run_over_all_pages_of_a_source_and_in_chains_but_not_in_circles():
    one = glossary.from_html("<dl class=glossary><dt>a<dd>see b<dt>x<dd>see y<dt>y<dd>see x</dl>", URL + "1")
    two = glossary.from_html(
        "<dl class=glossary><dt>b<dd>see <a href='page3#c'>that</a><dt>d<dd>see nothing here</dl>", URL + "2"
    )
    three = glossary.from_html("<dl class=glossary><dt id=c>c<dd>The end.</dl>", URL + "3")
    entries = one.entries + two.entries + three.entries
    resolved, lost, circles = resolve(entries)
    assert (resolved, [e.term for e in lost], [e.term for e in circles]) == (2, ["d"], ["x", "y"])
    found = {entry.term: entry.definition for entry in entries}
    assert found["a"] == found["b"] == found["c"] == "The end." and found["d"] == "see nothing here"


def test_of_two_entries_of_a_term_the_definition_is_found_not_the_reference_before_it():
    pages = [
        glossary.from_html(f"<dl class=glossary><dt>{term}<dd>{said}</dl>", f"{URL}{number}")
        for number, (term, said) in enumerate(
            [("OD", "see open data"), ("open data", "see nothing here"), ("Open data", "Data for all.")]
        )
    ]
    first, second, _ = entries = [entry for page in pages for entry in page.entries]
    assert resolve(entries)[:2] == (1, [second])
    assert first.definition == "Data for all."


def test_what_is_no_entry_is_kept_aside_with_its_reason_and_line():
    text = (
        "<dl class=glossary>\n<dt>empty</dt><dd> — </dd>\n<dt></dt><dd>nameless</dd>\n<dt>echo</dt><dd>Echo</dd>\n"
        f"<dt>{'long ' * 50}</dt><dd>x</dd>\n<dt>lost</dt><dd>b\ufffdd</dd>\n<dt>ok</dt><dd>fine</dd>"
        "<dt>ok</dt><dd>Fine</dd></dl>"
    )
    page = glossary.from_html(text, URL)
    assert pairs(page) == {"ok": "fine"}
    assert [(item.line, item.reason.split(" that")[0]) for item in page.skipped] == [
        (2, "no definition"),
        (3, "no term"),
        (4, "the definition only repeats the term"),
        (5, "the term is longer than 200 characters"),
        (6, "holds bytes"),
        (7, "stands twice on the page"),
    ]
    assert "skipped 6: no definition (1), no term (1)" in page.summary()


def test_tables_with_spans_repeated_heads_and_letters():
    text = (
        "<table><thead><tr><th>Term<th>Short<th>Meaning</thead><tr><th colspan=3>A<tr><td rowspan=2>ant<td>1"
        "<td>An insect.<tr><td>2<td>It works.<tr><th>Term<th>Short<th>Meaning<tr><td>bee<td>3<td>It stings."
        "<tr><td>torn</table>"
    )
    page = glossary.from_html(text, URL)
    assert [(entry.term, entry.definition) for entry in page.entries] == [
        ("ant", "An insect."),
        ("ant", "It works."),
        ("bee", "It stings."),
    ]
    assert [item.reason for item in page.skipped] == ["no definition"]
    shared = "<table><tr><th>Term<th>Meaning<tr><td>ant<td rowspan=2>An insect.<tr><td>emmet<tr><td>bee<td>It stings."
    assert read(shared) == {"ant": "An insect.", "emmet": "An insect.", "bee": "It stings."}


HEADS = {
    "words in td": "<tr><td>Term</td><td>Definition</td></tr>",
    "words in td and th": "<tr><th>Term</th><td>Definition</td></tr>",
    "other language": "<tr><td>Fachbegriff</td><td>Erklärung</td></tr>",
    "several words": "<tr><td>The term</td><td>Its meaning</td></tr>",
    "bold, words unknown": "<tr><td><b>Name</b></td><td><strong>What it is</strong></td></tr>",
    "class of the row": "<tr class='sticky-header'><td>Name</td><td>What it is</td></tr>",
    "class of the cells": "<tr><td class=tablehead>Name</td><td class='tablehead x'>What it is</td></tr>",
    "title before td": "<tr><td colspan=2>Our glossary</td></tr><tr><td>Term</td><td>Definition</td></tr>",
    "title before th": "<tr><th colspan=2>Our glossary</th></tr><tr><th>Name</th><th>What it is</th></tr>",
    "words of a plain table": "<tr><td>Initialism</td><td>Stands for</td></tr>",
    "name and note": "<tr><td>Name</td><td>Note</td></tr>",
    "short and full": "<tr><td>Short form</td><td>Full name</td></tr>",
    "Russian": "<tr><td>Название</td><td>Комментарий</td></tr>",
    "two rows of thead": "<thead><tr><td>Term<td>Definition</tr><tr><td>(English)<td>(long)</tr></thead>",
}


@pytest.mark.parametrize("head", HEADS)
def test_a_head_row_is_no_entry_whatever_its_cells_are(head):
    rows = "<tr><td>ant</td><td>An insect.</td></tr><tr><td><b>bee</b></td><td>Another.</td></tr>"
    found = glossary.from_html(f"{ABOUT}<table>{HEADS[head]}{rows}</table>", URL)
    assert pairs(found) == {"ant": "An insect.", "bee": "Another."} and not found.skipped


def test_a_head_row_of_td_names_the_columns_of_a_wider_table():
    text = (
        "<table><tr><td>No.<td>Abbreviation<td>Meaning<tr><td>1<td>TLS<td>Thread-local storage.<tr><td>2<td>OD"
        "<td>Open data.</table>"
    )
    assert read(text) == {"TLS": "Thread-local storage.", "OD": "Open data."}


def test_first_rows_that_are_entries_stay():
    """A first row with words of headings in a sentence, in bold like all rows, or with the class of an entry."""
    word = "<tr><td>word<td>A unit of language that has a meaning of its own.<tr><td>ant<td>An insect."
    assert set(read(f"{ABOUT}<table>{word}</table>")) == {"word", "ant"}
    bold = "<tr><td><b>ant</b><td><b>An insect.</b><tr><td><b>bee</b><td><b>Another.</b>"
    assert set(read(f"{ABOUT}<table>{bold}</table>")) == {"ant", "bee"}
    classed = "<tr class=headword><td>ant<td>An insect.<tr class=note><td>bee<td>Another."
    assert set(read(f"{ABOUT}<table>{classed}</table>")) == {"ant", "bee"}
    loose = "<tr><td>name<td>What a thing or a person is called.<tr><td>ant<td>An insect, with a note."
    assert set(read(f"{ABOUT}<table>{loose}</table>")) == {"name", "ant"}


def test_headings_of_columns_in_a_list_are_no_entry():
    text = ABOUT + "<dl><dt>Term</dt><dd>Meaning</dd><dt>ant</dt><dd>An insect.</dd><dt>bee</dt><dd>Another.</dd></dl>"
    found = glossary.from_html(text, URL)
    assert set(pairs(found)) == {"ant", "bee"}
    assert [item.reason for item in found.skipped] == ["these are headings of columns"]


LINES = {
    "paragraph": "<p><b>ant</b> - An insect.<br><b>bee</b> - Another.<br>It stings.<br><b>cow</b> - None.</p>",
    "paragraphs": "<p><b>ant</b> - An insect.<br><b>bee</b> - Another.</p><p>It stings.</p><p><b>cow</b> - None.</p>",
    "list item": "<ul><li><b>ant</b>: An insect.<br/><b>bee</b>: Another.<br/>It stings.<li><b>cow</b>: None.</ul>",
    "cell": "<table><tr><td><b>ant</b> – An insect.<br><b>bee</b> – Another.<br>It stings."
    "<br><b>cow</b> – None.</table>",
    "division": "<div><b>ant</b>: An insect.<br><br><b>bee</b>: Another.<br>It stings.<br><b>cow</b>: None.</div>",
    "body": "<body>Words:<br><b>ant:</b> An insect.<br><b>bee:</b> Another.<p>It stings.</p><b>cow:</b> None.",
    "wrapped": "<p><span><b>ant</b></span> - An insect.<br><i><b>bee</b></i> - Another.<br>It stings.<br>"
    "<a id=c></a><strong>cow</strong> - None.</p>",
    "nested bold": "<p><b><dfn>ant</dfn></b>: An insect.<br><b><dfn>bee</dfn></b>: Another.<br>It stings.<br>"
    "<b><dfn>cow</dfn></b>: None.</p>",
    "text before": "<p>All of them:<br><b>ant</b> - An insect.<br><b>bee</b> - Another.<br>It stings.<br><b>cow</b> - "
    "None.</p>",
    "division after a paragraph": "<p><b>ant</b>: An insect.</p><div><b>bee</b>: Another.<br>It stings.<br>"
    "<b>cow</b>: None.</div>",
}


@pytest.mark.parametrize("name", LINES)
def test_every_line_that_begins_with_a_bold_word_is_an_entry(name):
    found = read(ABOUT + LINES[name])
    assert {term: squeezed(definition) for term, definition in found.items()} == {
        "ant": "Aninsect.",
        "bee": "Another.Itstings.",
        "cow": "None.",
    }


def test_terms_of_one_letter_are_not_glued():
    text = "<p><b>A</b> - x<br><b>B</b> - y</p><p><b>C</b> - z</p>"
    assert read(ABOUT + text) == {"A": "x", "B": "y", "C": "z"}


@pytest.mark.parametrize("comment", ["<!-- x -->", "<!--", "<?php x ?>", "<![CDATA[x]]>"])
def test_comments_between_blocks_and_cells_are_nothing(comment):
    blocks = "".join(f"<p><b>{term}</b>: {term}{term}</p>" for term in ("ant", "bee", "cat"))
    assert read(f"{ABOUT}{blocks}{comment}") == {"ant": "antant", "bee": "beebee", "cat": "catcat"}
    row = "<dl><dt>ant<dd><table><tr><td>a</td><td>b</td>{}</tr></table></dd><dt>bee<dd>x<dt>cat<dd>y</dl>"
    if comment != "<!--":  # which hides the rest of the page
        assert read(row.format(comment)) == read(row.format("")) and len(read(row.format(""))) == 3


def test_bold_words_within_a_definition_do_not_end_it():
    """Within a line; without a separator; the label of a part; a section that is no term; a list in an item."""
    text = (
        "<ul><li><b>ant</b>: An <b>insect</b>: six legs.<br><b>Example:</b> the wood ant.</li>"
        "<li><b>bee</b>: Another.<br><b>Also</b> a verb.<br><b>Example:</b> the bumblebee.</li>"
        "<li><b>cow</b>: None.<br><b>See also:</b> ox.<ul><li><b>calf</b>: a young one</li></ul></li></ul>"
    )
    assert read(ABOUT + text) == {
        "ant": "An insect: six legs.\nExample: the wood ant.",
        "bee": "Another.\nAlso a verb.\nExample: the bumblebee.",
        "cow": "None.\nSee also: ox.\n\ncalf: a young one",
        "calf": "a young one",
    }


def test_references_are_those_of_their_own_line():
    text = (
        "<p><b>OD</b>: see <a href='#t'>that</a><br><b><a id=t></a>Open data</b>: Data for all.<br>"
        "<b>PD</b>: Not <a href='/x'>open</a>.</p>"
    )
    assert read(ABOUT + text) == {"OD": "Data for all.", "Open data": "Data for all.", "PD": "Not open."}


@pytest.mark.parametrize(
    ("link", "further"),
    [
        ("<link rel=next href='?page=2'>", "http://example.org/terms?page=2"),
        ("<a rel='nofollow next' href='/terms/page/2/'>More</a>", "http://example.org/terms/page/2/"),
        ("<a rel=next href='terms/2'>More</a>", "http://example.org/terms/2"),
        ("<a rel=next href='chapter-2'>Next chapter</a>", ""),
        ("<a rel=next href='http://[bad'>Next</a><a rel=next href='#b'>b</a>", ""),
        ("<a rel=prev href='?page=0'>Back</a>", ""),
    ],
)
def test_a_glossary_that_goes_on_at_another_page_is_reported(link, further):
    found = glossary.from_html(STRUCTURES["dl.glossary"] + link, "http://example.org/terms")
    assert found.notes == ([f"goes on at {further}, which is not read: name it as a source too"] if further else [])
    assert len(found.entries) == 2


def test_headings_take_their_whole_section_and_report_what_they_pass():
    text = (
        "<h1>Glossary</h1><p>Intro.</p><div class=mw-heading><h2 id=Ant>Ant<a href='#Ant'>¶</a></h2></div>"
        "<p>One.</p><h3>Use</h3><p>Two.</p><h2>Bee</h2><p>Three.</p><h2>Cow</h2><p>See <a href='#Ant'>Ant</a>.</p>"
        "<h2>References</h2><p>A book.</p>"
    )
    page = glossary.from_html(text, URL)
    assert pairs(page) == {"Ant": "One.\n\nUse\n\nTwo.", "Bee": "Three.", "Cow": "One.\n\nUse\n\nTwo."}
    assert [item.text for item in page.skipped] == ["Glossary: Intro.", "References: A book."]


MARKDOWN = """\
---
title: Glossary
---
# Glossary

Term | Meaning
-----|--------
[TLS] <a id="tls"/> | Thread-local *storage*, written `a \\| b`.[^1]
thread storage | see "TLS".

ant
:   An insect.

    It works.

[TLS]: https://example.org
[^1]: A note.
"""


def test_markdown_tables_and_definition_lists():
    page = glossary.from_markdown(MARKDOWN, "http://example.org/terms.md")
    tls = "Thread-local storage, written a | b."
    assert pairs(page) == {"TLS": tls, "thread storage": tls, "ant": "An insect.\n\nIt works."}


def test_broken_html_is_read_and_what_cannot_be_is_said():
    torn = "<!-- x --><dl class=glossary><dt>a<b>b<dd>one <i>two<dt>c</b><dd>three</i><p>four</dl></div></p><dt>"
    assert read(torn) == {"ab": "one two", "c": "three\n\nfour"}
    deep = glossary.from_html(
        "<dl class=glossary><dt>a<dd>b</dl>" + "<div>" * 3000 + "<dl class=glossary><dt>c<dd>d", URL
    )
    assert pairs(deep) == {"a": "b"} and deep.notes == ["not read beyond character 2,594, where 512 elements are open"]
    for empty in ("", " \n", "<!-- only -->", "\x00", "<?xml version='1.0' encoding='utf-8'?>"):
        assert glossary.from_html(empty, URL).notes, repr(empty)


def test_a_page_in_another_language_than_asked_for_is_reported():
    assert (
        glossary.from_html("<html lang='de-AT'>x", URL, "en").notes[0]
        == "the page says that it is in 'de', --lang says 'en'"
    )
    assert "lang" not in glossary.from_html("<html lang='de-AT'>x", URL, "de").summary()


# A text as a page may hold it: no control characters, and nothing that cleaning takes for furniture
TEXT = st.text(st.characters(codec="utf-8", categories=["L", "N", "Sc"]), min_size=2, max_size=12).map(
    lambda text: markup.tidy(text)
)
WORDS = st.lists(TEXT.filter(str.isalnum), min_size=1, max_size=4).map(" ".join)


@settings(max_examples=20, deadline=None)
@given(
    st.dictionaries(WORDS.filter(lambda t: len(t) > 4), st.lists(WORDS, min_size=1, max_size=3), min_size=3, max_size=6)
)
def test_terms_written_into_any_structure_come_back(entries):
    """Whatever the structure, a page of terms gives these terms, in order, with all paragraphs of their definitions."""
    esc = html.escape
    wanted = [(term, "\n\n".join(paragraphs)) for term, paragraphs in entries.items()]
    wanted = [(term, definition) for term, definition in wanted if term.casefold() != definition.casefold()]
    body = {term: "".join(f"<p>{esc(part)}</p>" for part in entries[term]) for term, _ in wanted}
    rows = {
        "dl": "<dl>" + "".join(f"<dt>{esc(t)}</dt><dd>{d}</dd>" for t, d in body.items()) + "</dl>",
        "table": "<table>" + "".join(f"<tr><td>{esc(t)}</td><td>{d}</td></tr>" for t, d in body.items()) + "</table>",
        "headings": "".join(f"<h2>{esc(t)}</h2>{d}" for t, d in body.items()),
    }
    for name, text in rows.items():
        if name == "headings" and len(body) < 3:
            continue
        page = glossary.from_html(f"{ABOUT}<body>{text}", URL)
        assert [(entry.term, entry.definition) for entry in page.entries] == wanted, name


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def test_definitions_of_real_pages_are_those_that_others_took_from_them(real_data):
    """The 18 translations of the Open Data Handbook against an extraction made elsewhere, white space aside."""
    taken: dict[tuple[str, str], set[str]] = {}
    for line in (real_data / "glossaries" / "okfn.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        taken.setdefault((row["lang"], row["term"]), set()).add(squeezed(row["definition"]))
    same = other = 0
    for path in sorted((real_data / "glossary_pages" / "okfn_opendatahandbook").glob("*/glossary.html")):
        page = glossary.from_html(path.read_text(encoding="utf-8"), path.as_uri())
        for entry in page.entries:
            if known := taken.get((path.parent.name, entry.term)):
                right = squeezed(entry.definition) in known
                same, other = same + right, other + (not right)
    assert (same, other) == (490, 1)  # the one: a colon that begins a definition is cut


def test_a_real_markdown_glossary(real_data):
    text = (real_data / "glossary_pages" / "rustc_guide" / "glossary_2020.md").read_text(encoding="utf-8")
    page = glossary.from_markdown(text, "file:///glossary.md")
    found = pairs(page)
    assert len(found) == text.count('<div id="') == 77 and not page.skipped
    assert found["empty type"] == found["uninhabited type"] and found["LLVM"].startswith("(actually not an acronym :P)")
