"""The API of MediaWiki (Wikipedia and others): which pages a title stands for, and their text, with continuation.

Answers of both `formatversion`s are read. Nothing here speaks to the network: `get` does, one request after the other.
"""

import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode, urljoin, urlsplit

from data_prep.glossary.words import ABOUT_TERMS

ARTICLE, CATEGORY = 0, 14  # namespaces
MAXLAG = 5  # seconds behind which the databases may be before the server asks us to wait
LEADS_AT_ONCE = 20  # what TextExtracts gives per answer

Get = Callable[[str], Awaitable[dict]]  # URL -> the JSON answer; raises ApiError where there is none


class ApiError(ValueError):
    """The API answered with an error, or with something that is no answer of MediaWiki."""


class Missing(ApiError):
    """The wiki has no page of this title."""


@dataclass(slots=True)
class Answer:
    """One answer, whichever format version it came in. pages: with "missing" as a bool and language links with "title".
    lists: the rows of each list=. more: the parameters that continue the query, empty at the end."""

    pages: list[dict] = field(default_factory=list)
    lists: dict[str, list[dict]] = field(default_factory=dict)
    general: dict = field(default_factory=dict)
    more: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class WikiPage:
    """A page of the wiki: either html (of a glossary) or lead (the text before the first heading of an article)."""

    title: str
    url: str
    html: str = ""
    lead: str = ""


def address(api: str, **parameters: Any) -> str:
    """URL of a request; parameters without a value are left out, True is a flag."""
    said = {key: 1 if value is True else value for key, value in parameters.items() if value not in (None, False)}
    return f"{api}?{urlencode(said | {'format': 'json', 'formatversion': 2, 'maxlag': MAXLAG})}"


def read_query(data: Any) -> Answer:
    """The answer of action=query. Raises ApiError."""
    _check(data)
    query = data.get("query", {})
    pages = query.get("pages", [])
    answer = Answer(pages=[_page(page) for page in (pages.values() if isinstance(pages, dict) else pages)])
    # normalized, converted and redirects say which title became which: the pages have the last one
    others = {"pages", "normalized", "converted", "redirects", "interwiki"}
    answer.lists = {name: rows for name, rows in query.items() if name not in others and isinstance(rows, list)}
    answer.general = query.get("general", {})
    answer.more = {key: str(value) for key, value in data.get("continue", {}).items()}
    for module, said in data.get("warnings", {}).items():
        answer.warnings.append(f"{module}: {said.get('warnings') or said.get('*') or said}")
    return answer


def _page(page: dict) -> dict:
    page = dict(page)
    page["missing"] = page.get("missing", False) is not False or page.get("invalid", False) is not False
    if "langlinks" in page:
        page["langlinks"] = [{**link, "title": link.get("title", link.get("*", ""))} for link in page["langlinks"]]
    return page


def read_parse(data: Any) -> tuple[str, str]:
    """(title, HTML) of the answer of action=parse. Raises ApiError."""
    _check(data)
    parsed = data.get("parse")
    if not isinstance(parsed, dict) or "text" not in parsed:
        raise ApiError("the answer holds no parsed page")
    text = parsed["text"]
    return parsed.get("title", ""), text["*"] if isinstance(text, dict) else text


def _check(data: Any) -> None:
    if not isinstance(data, dict):
        raise ApiError("is no answer of MediaWiki (not a JSON object)")
    if error := data.get("error") or (data.get("errors") or [None])[0]:
        said = error.get("info") or error.get("text") or error.get("*") or ""
        raise (Missing if error.get("code") == "missingtitle" else ApiError)(
            f"the wiki says {error.get('code')}: {said}"
        )
    if not {"query", "parse", "batchcomplete", "continue"} & set(data):
        raise ApiError(f"is no answer of MediaWiki (its keys: {', '.join(map(str, data)) or 'none'})")


async def query(get: Get, api: str, **parameters: Any) -> AsyncIterator[Answer]:
    """Every answer of one query, continued to its end."""
    more: dict[str, str] = {}
    while True:
        answer = read_query(await get(address(api, action="query", **parameters | more)))
        yield answer
        if not answer.more:
            return
        if answer.more == more:
            raise ApiError(f"continues at the same place again and again ({more})")
        more = answer.more


async def merged_pages(get: Get, api: str, **parameters: Any) -> dict[str, dict]:
    """title -> page of a whole query; what comes in several answers (links, extracts) is put together."""
    pages: dict[str, dict] = {}
    async for answer in query(get, api, **parameters):
        for page in answer.pages:
            whole = pages.setdefault(page["title"], {})
            for key, value in page.items():
                whole[key] = whole[key] + value if isinstance(value, list) and key in whole else value
    return pages


class Wiki:
    """One wiki. report: called with every note for people. left: pages that were not taken, by reason. failed: (title,
    why) of the pages of a category that could not be had."""

    def __init__(self, api: str, get: Get, report: Callable[[str], None]):
        self.api, self.get, self.report = api, get, report
        self.left: Counter = Counter()
        self.failed: list[tuple[str, str]] = []
        self._article_path = urljoin(api, "index.php?title=$1")

    async def pages(self, title: str) -> AsyncIterator[WikiPage]:
        """The pages that a title stands for: itself; or, of a category of glossaries, each of its pages and those of
        its subcategories of glossaries; or, of any other category, its glossaries and the leads of its other articles.
        """
        start = await self._start(title)
        if start["ns"] != CATEGORY:
            yield await self._parsed(start["title"])
            return
        glossaries, articles = await self._members(start["title"])
        for name in glossaries:
            try:
                page = await self._parsed(name)
            except ApiError as error:
                self.failed.append((name, str(error)))
            else:
                yield page
        for at in range(0, len(articles), LEADS_AT_ONCE):
            async for page in self._leads(articles[at : at + LEADS_AT_ONCE]):
                yield page

    async def title_in(self, language: str, title: str) -> str:
        """The title that this page has in another language's wiki, by its language links. Raises Missing."""
        found = await merged_pages(self.get, self.api, titles=title, prop="langlinks", lllang=language, lllimit="max")
        links = [link for page in found.values() for link in page.get("langlinks", []) if link.get("lang") == language]
        if not links:
            mend = f"name a page or category of it: wikipedia_glossary:TITLE --lang {language}"
            raise Missing(f"{title!r} has no counterpart in {language!r}; {mend}")
        return links[0]["title"]

    async def _start(self, title: str) -> dict:
        start: dict = {}
        asked = {"titles": title, "redirects": True, "prop": "info", "meta": "siteinfo", "siprop": "general"}
        async for answer in query(self.get, self.api, **asked):
            start = start or next(iter(answer.pages), {})
            for warning in answer.warnings:
                self.report(f"warning of the wiki: {warning}")
            if path := answer.general.get("articlepath"):
                self._article_path = urljoin(self.api, path)
        if not start or start["missing"]:
            raise Missing(f"{urlsplit(self.api).netloc} has no page {title!r}")
        return start

    async def _members(self, category: str) -> tuple[list[str], list[str]]:
        """Titles of the glossaries and of the other articles of a category."""
        about_terms = ABOUT_TERMS.search(category)
        glossaries, articles, waiting, seen = [], [], [category], {category}
        while waiting:
            asked = {"list": "categorymembers", "cmtitle": waiting.pop(0), "cmprop": "ids|title", "cmlimit": "max"}
            async for answer in query(self.get, self.api, **asked):
                for member in answer.lists.get("categorymembers", []):
                    title, named = member["title"], ABOUT_TERMS.search(member["title"])
                    if title in seen:
                        continue
                    seen.add(title)
                    if member["ns"] == CATEGORY and named and about_terms:
                        waiting.append(title)
                    elif member["ns"] == CATEGORY:
                        self.left["subcategories not entered"] += 1
                    elif named or (about_terms and member["ns"] == ARTICLE):
                        glossaries.append(title)
                    elif member["ns"] == ARTICLE:
                        articles.append(title)
                    else:
                        self.left["pages that are no articles (portals, talk, files)"] += 1
        return glossaries, articles

    async def _parsed(self, title: str) -> WikiPage:
        asked = {"page": title, "prop": "text", "redirects": True, "disableeditsection": True, "disabletoc": True}
        data = await self.get(address(self.api, action="parse", disablelimitreport=True, **asked))
        name, text = read_parse(data)
        return WikiPage(name or title, self._url(name or title), html=text)

    async def _leads(self, titles: list[str]) -> AsyncIterator[WikiPage]:
        asked = {"prop": "extracts", "exintro": True, "explaintext": True, "exlimit": "max"}
        found = await merged_pages(self.get, self.api, titles="|".join(titles), **asked)
        for title in titles:
            lead = found.get(title, {}).get("extract", "").strip()
            if lead:
                yield WikiPage(re.sub(r"\s*\([^()]*\)$", "", title), self._url(title), lead=lead)
            else:
                self.left["articles without a lead"] += 1

    def _url(self, title: str) -> str:
        return self._article_path.replace("$1", quote(title.replace(" ", "_"), safe="/:(),'!*"))
