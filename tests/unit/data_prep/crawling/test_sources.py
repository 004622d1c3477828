"""Sources that may be crawled, and the one error that names all others."""

from pathlib import Path

import pytest

from data_prep.common.errors import BadInput
from data_prep.crawling.sources import Source, read_sources


def one(name: str, language: str = "en") -> Source:
    (source,) = read_sources([name], language)
    return source


def test_names_of_wikis_become_their_api():
    assert one("wikipedia_glossary", "de").api == "https://de.wikipedia.org/w/api.php"
    assert one("wikipedia_glossary").title is None
    assert one("wikipedia_glossary:Category:Glossaries of science").title == "Category:Glossaries of science"
    page = one("https://en.m.wikipedia.org/wiki/Glossary_of_botanical_terms#A")
    assert (page.api, page.title) == ("https://en.wikipedia.org/w/api.php", "Glossary of botanical terms")
    wiki = one("http://wiki.example.org/api.php?title=Glossary")
    assert (wiki.api, wiki.title) == ("http://wiki.example.org/api.php", "Glossary")
    assert one("https://ru.wiktionary.org/wiki/%D0%93").title == "Г"


def test_other_addresses_are_pages(tmp_path):
    assert one("https://example.org/wiki/Glossary").url and one("HTTP://example.org").url
    page = tmp_path / "a b.HTML"
    page.write_text("x")
    assert one(str(page)).file == page


def test_a_list_names_sources_line_by_line(tmp_path):
    (tmp_path / "saved.md").write_text("x")
    listed = tmp_path / "sources.txt"
    listed.write_text(f"\ufeff# glossaries\nhttps://example.org/a\n\n  {tmp_path / 'saved.md'}\n", encoding="utf-8")
    assert [source.name for source in read_sources([str(listed)], "en")] == [
        "https://example.org/a",
        str(tmp_path / "saved.md"),
    ]


def test_every_bad_source_is_named_in_one_error_with_its_mend(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("page.pdf").write_text("x")
    Path("page.html").write_text("x")
    Path("empty.txt").write_text("# nothing\n")
    Path("list.txt").write_text("ftp://example.org/x\nother.txt\n")
    Path("latin.txt").write_bytes(b"\xff\xfe\xfa")
    bad = {
        "ftp://example.org/x": "list.txt:1: ftp://example.org/x: only http and https are fetched, not ftp:",
        "other.txt": "list.txt:2: other.txt: a list cannot name another list",
        "latin.txt": "latin.txt: cannot be read as UTF-8 text",
        "empty.txt": "empty.txt: the list is empty; write one source per line",
        "file:///etc/passwd": "only http and https are fetched, not file:; name a local file by its path",
        "javascript:alert(1)": "only http and https are fetched, not javascript:",
        "data:text/html,x": "only http and https are fetched, not data:",
        "https://user:secret@example.org/": "https://…@example.org: holds a user name or password",
        "http://": "the address has no host",
        "http://[::1": "http://[::1: is no valid address",
        "http://example.org:x/": "http://example.org:x/: is no valid address",
        "http://example.org/w/api.php": "Write http://example.org/w/api.php?title=Glossary",
        "wikipedia_glossary:": "the title is missing",
        "wikipedia_glosary": "wikipedia_glosary: no such file. Did you mean 'wikipedia_glossary'?",
        "pag.html": "pag.html: no such file. Did you mean 'page.html'?",
        "www.example.org/x": "no such file (an address? then write https://www.example.org/x)",
        "page.pdf": "page.pdf: cannot tell the format of '.pdf'",
        ".": ".: is a folder; name the pages in it",
    }
    names = [name for name in bad if name not in ("ftp://example.org/x", "other.txt")]
    with pytest.raises(BadInput) as error:
        read_sources(["list.txt", *names, "page.html", "./page.html"], "en/../x")
    for text in bad.values():
        assert sum(text in problem for problem in error.value.problems) == 1, (text, error.value.problems)
    assert "./page.html: is given twice; name it once" in error.value.problems
    assert "--lang en/../x: is no language code such as en, de or zh-yue" in error.value.problems
    assert len(error.value.problems) == len(bad) + 2 and "secret" not in str(error.value)


def test_no_source_at_all():
    with pytest.raises(BadInput, match="nothing to crawl"):
        read_sources([], "en")
