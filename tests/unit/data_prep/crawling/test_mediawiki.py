"""Answers of MediaWiki's API: the recorded ones, both format versions, errors, and continuation."""

import asyncio
import json
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from data_prep.crawling import mediawiki
from data_prep.crawling.mediawiki import ApiError, Missing, _warnings, merged_pages, read_parse, read_query


@pytest.fixture(scope="module")
def recorded(real_data):
    """name of a recording -> its JSON."""
    return lambda name: json.loads((real_data / "mediawiki_api" / f"TestVcr{name}_0.json").read_text(encoding="utf-8"))


def test_every_recorded_answer_parses(real_data):
    files = sorted((real_data / "mediawiki_api").glob("*.json"))
    answers = [read_query(json.loads(path.read_text(encoding="utf-8"))) for path in files]
    assert len(answers) == 8 and sum(len(answer.pages) for answer in answers) == 7


def test_category_members(recorded):
    answer = read_query(recorded("PageRelationProps.test_categorymembers"))
    members = answer.lists["categorymembers"]
    assert [sum(m["ns"] == ns for m in members) for ns in (0, 14, 100)] == [26, 14, 1] and not answer.more


def test_continuation_of_links_and_images(recorded):
    links = read_query(recorded("PageRelationProps.test_links"))
    assert len(links.pages[0]["links"]) == 500
    assert links.more == {"plcontinue": "23862|0|Pyrex_(programming_language)", "continue": "||"}
    assert (
        read_query(recorded("AsyncPageCoordinatesImages.test_images")).more["imcontinue"]
        == "23862|Symbol_portal_class.svg"
    )


def test_existence_language_links_and_extracts(recorded):
    answer = recorded("AsyncPageExistence.test_exists_false")
    assert read_query(answer).pages[0]["missing"] and "deprecated" in _warnings(answer)[-1]
    assert not read_query(recorded("AsyncPageExistence.test_exists_true")).pages[0]["missing"]
    links = read_query(recorded("PageRelationProps.test_langlinks")).pages[0]["langlinks"]
    assert len(links) == 117 and {link["lang"]: link["title"] for link in links}["de"] == "Python (Programmiersprache)"
    extract = read_query(recorded("AsyncPageExtractProps.test_summary")).pages[0]["extract"]
    assert extract.startswith("Python is a high-level, general-purpose programming language.")


def test_both_format_versions_of_parse_and_missing():
    assert read_parse({"parse": {"title": "A", "text": {"*": "<p>"}}}) == ("A", "<p>")
    assert read_parse({"parse": {"title": "A", "text": "<p>"}}) == ("A", "<p>")
    for missing in ({"missing": ""}, {"missing": True}, {"invalid": True}):
        assert read_query({"query": {"pages": [{"title": "A", **missing}]}}).pages[0]["missing"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"error": {"code": "badtoken", "info": "No."}}, "the wiki says badtoken: No."),
        ({"errors": [{"code": "readonly", "text": "Later."}]}, "the wiki says readonly: Later."),
        ([], "is no answer of MediaWiki"),
        ({"hello": 1}, "is no answer of MediaWiki (its keys: hello)"),
    ],
)
def test_errors_are_said_in_the_words_of_the_wiki(answer, said):
    with pytest.raises(ApiError) as error:
        read_query(answer)
    assert said in str(error.value)
    with pytest.raises(Missing):
        read_parse({"error": {"code": "missingtitle", "info": "The page you specified doesn't exist."}})


def split(answer: dict, sizes: list[int], key: str) -> list[dict]:
    """One recorded answer cut into several that continue each other, as a wiki with a smaller limit would give it."""
    page = next(iter(answer["query"]["pages"].values()))
    rows, parts = page[key], []
    for size in sizes:
        part = {**page, key: rows[:size]}
        rows = rows[size:]
        parts.append({"query": {"pages": {str(page["pageid"]): part}}, "continue": {"xxcontinue": str(len(parts) + 1)}})
    assert not rows
    del parts[-1]["continue"]
    return parts


def test_a_query_is_continued_to_its_end_and_put_together(recorded):
    """The recorded language links in three parts; each request repeats the query with the continuation of the last."""
    parts, asked = split(recorded("PageRelationProps.test_langlinks"), [50, 50, 17], "langlinks"), []

    async def get(url):
        asked.append({key: value[0] for key, value in parse_qs(urlsplit(url).query).items()})
        return parts[len(asked) - 1]

    titles = "Python (programming language)"
    pages = asyncio.run(merged_pages(get, "http://w/api.php", titles=titles, prop="langlinks"))
    assert len(pages["Python (programming language)"]["langlinks"]) == 117
    assert [request.get("xxcontinue") for request in asked] == [None, "1", "2"]
    assert all(request["maxlag"] == "5" and request["prop"] == "langlinks" for request in asked)


@pytest.mark.parametrize("places", ["1", "12"], ids=["at one place", "in a circle"])
def test_a_continuation_that_does_not_move_is_an_error(places):
    asked = []

    async def get(url):
        asked.append(url)
        return {"query": {"pages": []}, "continue": {"xxcontinue": places[len(asked) % len(places)]}}

    with pytest.raises(ApiError, match="again and again"):
        asyncio.run(merged_pages(get, "http://w/api.php"))


def old_wiki(release: int, asked: list[dict[str, str]], members: int = 25, at_once: int = 10):
    """A wiki whose category is larger than one answer, as a release of MediaWiki 1.x continues."""

    async def get(url):
        request = {key: value[0] for key, value in parse_qs(urlsplit(url).query, keep_blank_values=True).items()}
        asked.append(request)
        if request["action"] == "parse":
            text = f"<dl><dt>{request['page']}</dt><dd>A thing.</dd></dl>"
            return {"parse": {"title": request["page"], "text": {"*": text}}}
        if "list" not in request:
            return {"query": {"pages": {"1": {"ns": 14, "title": "Category:Glossaries"}}, "general": []}}
        start = int(request.get("cmcontinue", 0))
        names = [f"Glossary {number}" for number in range(members)][start : start + at_once]
        answer = {"query": {"categorymembers": [{"ns": 0, "title": name} for name in names]}}
        further = {"cmcontinue": start + at_once}
        if start + at_once >= members:
            return answer
        if release >= 26 or (release >= 21 and "continue" in request):
            return answer | {"continue": {**further, "continue": "-||"}}
        return answer | {"query-continue": {"categorymembers": further}}

    return get


async def titles_of(wiki: mediawiki.Wiki, title: str) -> list[str]:
    return [page.title async for page in wiki.pages(title)]


@pytest.mark.parametrize("release", [19, 20, 21, 25, 26, 43])
def test_a_category_is_read_to_its_end_whatever_the_release_calls_the_continuation(release):
    """Before 1.26 an answer is continued by `query-continue` unless `continue` is asked for; before 1.21 always."""
    asked, said = [], []
    wiki = mediawiki.Wiki("https://w.example/api.php", old_wiki(release, asked), said.append)
    titles = asyncio.run(titles_of(wiki, "Category:Glossaries"))
    assert titles == [f"Glossary {number}" for number in range(25)] and not said
    assert [request.get("cmcontinue") for request in asked if "list" in request] == [None, "10", "20"]


def test_old_continuations_of_several_modules_go_on_together():
    answer = {"query-continue": {"links": {"plcontinue": "1|0|A"}, "extracts": {"excontinue": 1}}, "query": []}
    assert read_query(answer).more == {"plcontinue": "1|0|A", "excontinue": "1"}
    assert read_query({"query": {"pages": []}, "query-continue": [], "warnings": []}).more == {}


@pytest.mark.parametrize(
    "warnings",
    [
        {"result": {"*": "This result was truncated."}},
        {"result": {"warnings": "This result was truncated."}},
        [{"module": "result", "text": "This result was truncated.", "code": "truncatedresult"}],
    ],
)
def test_every_answer_that_warns_of_a_cut_is_reported_once(warnings):
    answer, said = old_wiki(43, []), []

    async def get(url):
        return await answer(url) | ({"warnings": warnings} if "list=" in url or "action=parse" in url else {})

    wiki = mediawiki.Wiki("https://w.example/api.php", get, said.append)
    assert len(asyncio.run(titles_of(wiki, "Category:Glossaries"))) == 25
    assert said == ["warning of the wiki: result: This result was truncated."]


def test_templates_that_the_wiki_left_out_of_a_page_are_counted():
    text = "<p>x</p><!-- WARNING: template omitted, post-expand include size too large -->"

    async def get(url):
        if "action=parse" in url:
            return {"parse": {"title": "Glossary", "text": text * 2}}
        return {"query": {"pages": [{"ns": 0, "title": "Glossary"}]}}

    async def only():
        return [page async for page in mediawiki.Wiki("https://w.example/api.php", get, print).pages("Glossary")]

    (page,) = asyncio.run(only())
    assert page.cut == "2 templates beyond the wiki's limits are left out of the page by the wiki"


def test_a_real_category_is_walked(recorded):
    """The recorded members of Category:Physics: 26 articles give their leads, 20 at a time; the rest is counted."""
    titles = [
        m["title"]
        for m in recorded("PageRelationProps.test_categorymembers")["query"]["categorymembers"]
        if m["ns"] == 0
    ]
    leads = []

    async def get(url):
        asked = {key: value[0] for key, value in parse_qs(urlsplit(url).query).items()}
        if "list" in asked:
            return recorded("PageRelationProps.test_categorymembers")
        if asked.get("prop") == "extracts":
            leads.append(asked["titles"].split("|"))
            pages = {str(i): {"title": title, "extract": f"About {title}."} for i, title in enumerate(leads[-1])}
            return {"query": {"pages": pages}}
        return {"query": {"pages": {"1": {"ns": 14, "title": "Category:Physics"}}}}

    async def walk():
        return [page async for page in wiki.pages("Category:Physics")]

    wiki = mediawiki.Wiki("https://en.wikipedia.org/w/api.php", get, print)
    pages = asyncio.run(walk())
    assert [len(batch) for batch in leads] == [20, 6] and [title for batch in leads for title in batch] == titles
    assert {page.title: page.lead for page in pages}["Frenesy"] == "About Frenesy (physics)."
    assert sum(wiki.left.values()) == 15 and wiki.left["subcategories not entered"] == 14


def test_pages_shipped_for_the_dry_run_are_package_data():
    from data_prep.crawling.dry_run import PAGES, TYPES

    assert {f"/{path.name}" for path in PAGES.iterdir() if path.is_file()} == set(TYPES)
    assert "data_prep.crawling = dry_run_pages/*, dry_run_pages/api/*" in Path("setup.cfg").read_text(encoding="utf-8")


PAGE = {"query": {"pages": [{"ns": 14, "title": "Category:G"}], "general": {"articlepath": "/wiki/$1"}}}
MEMBERS = {"query": {"categorymembers": [{"ns": 0, "title": "Glossary of x"}, {"ns": 0, "title": "Valve"}]}}
PARSED = {"parse": {"title": "Glossary of x", "text": "<p>"}}
LEADS = {"query": {"pages": [{"ns": 0, "title": "Valve", "extract": "It closes."}]}}


@pytest.mark.parametrize(
    "answers",
    [
        [{"query": {"pages": [7]}}],
        [{"query": {"pages": "none"}}],
        [{"query": {"pages": [{"ns": 14}]}}],
        [{"query": {"pages": [{"ns": "14", "title": "Category:G"}]}}],
        [{"query": {"pages": [{"ns": 14, "title": "Category:G"}], "general": {"articlepath": ["/wiki/$1"]}}}],
        [{"query": {"pages": [{"ns": 14, "title": "Category:G"}], "general": {"articlepath": "//["}}}],
        [PAGE, {"query": {"categorymembers": [{"ns": 0}]}}],
        [PAGE, MEMBERS, {"parse": {"title": ["Glossary of x"], "text": "<p>"}}],
        [PAGE, MEMBERS, {"parse": {"title": "Glossary of x", "text": None}}],
        [PAGE, MEMBERS, {"parse": {"title": "Glossary of x", "text": {"a": "<p>"}}}],
        [PAGE, MEMBERS, PARSED, {"query": {"pages": [{"title": "Valve", "extract": {"*": 1}}]}}],
        [PAGE, {"error": "no"}],
        [PAGE, {"errors": {"code": "no"}}],
        [PAGE, {"warnings": [{"module": ["main"]}], "query": {"pages": [None]}}],
    ],
)
def test_an_answer_of_other_types_is_no_answer(answers):
    """Whichever key has another type, the wiki is said to answer with something else; nothing else is raised."""
    waiting = iter(answers)

    async def get(url: str) -> dict:
        for answer in waiting:
            return answer
        raise ApiError("the wiki says no more")

    async def read(wiki: mediawiki.Wiki) -> list:
        return [page async for page in wiki.pages("Category:G")]

    wiki = mediawiki.Wiki("https://w.org/w/api.php", get, lambda note: None)
    try:
        assert len(asyncio.run(read(wiki))) < 2, "the glossary alone was read"
        assert wiki.failed or wiki.left
    except ApiError as error:
        assert "no answer of MediaWiki" in str(error) or "says" in str(error)


def test_half_a_surrogate_pair_in_an_answer_becomes_a_character_that_files_hold():
    title, text = read_parse({"parse": {"title": "a\ud83d", "text": {"*": "\ud83d\ude00 \udc00"}}})
    assert (title, text) == ("a\ufffd", "\U0001f600 \ufffd")
