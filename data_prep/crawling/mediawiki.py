"""API of MediaWiki (Wikipedia and others): the pages of a title or category, and their text, with continuation.

Answers of both `formatversion`s are read, and continuation in both forms: `continue` (asked for since 1.21, the
default since 1.26) and `query-continue`. Only `get` speaks to the network, one request after the other.
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
LEADS_AT_ONCE = 20  # the limit of TextExtracts per answer
# What the parser writes in place of a template beyond its limits
_OMITTED = re.compile(r"<!--\s*WARNING: (?:template|argument) omitted")

Get = Callable[[str], Awaitable[dict]]  # URL -> the JSON answer; raises ApiError without one


class ApiError(ValueError):
    """The API answered with an error, or the answer is none of MediaWiki."""


class Missing(ApiError):
    """The wiki has no page of this title."""


@dataclass(slots=True)
class QueryResult:
    """One answer to action=query, the same for both format versions."""

    pages: list[dict] = field(default_factory=list)  # "missing" is a bool, language links have a "title"
    lists: dict[str, list[dict]] = field(default_factory=dict)  # name -> rows of each list=
    general: dict = field(default_factory=dict)  # facts about the wiki
    more: dict[str, str] = field(default_factory=dict)  # parameters that continue the query; empty at the end


@dataclass(frozen=True, slots=True)
class WikiPage:
    """A page of the wiki, with either html or lead."""

    title: str
    url: str
    html: str = ""  # of a glossary
    lead: str = ""  # the text before the first heading of an article
    cut: str = ""  # why the wiki left out a part of the page; empty: it is whole


def address(api: str, **parameters: Any) -> str:
    """Returns the URL of a request. Parameters without a value are left out; True is a flag."""
    sent = {key: 1 if value is True else value for key, value in parameters.items() if value not in (None, False)}
    return f"{api}?{urlencode(sent | {'format': 'json', 'formatversion': 2, 'maxlag': MAXLAG})}"


def read_query(data: Any) -> QueryResult:
    """Reads the answer to action=query. Raises ApiError."""
    _check(data)
    query = _object(data, "query")
    pages = query.get("pages", [])
    result = QueryResult(
        pages=[_page(page) for page in _rows(list(pages.values()) if isinstance(pages, dict) else pages)]
    )
    # normalized, converted and redirects map titles to other ones: the pages have the last one
    others = {"pages", "normalized", "converted", "redirects", "interwiki"}
    result.lists = {name: _rows(rows) for name, rows in query.items() if name not in others and isinstance(rows, list)}
    result.general = _object(query, "general")
    result.more = _more(data)
    return result


def _object(answer: dict, key: str) -> dict:
    """Returns the object under this key. PHP writes an empty one as []."""
    value = answer.get(key) or {}
    if not isinstance(value, dict):
        raise ApiError(f"is no answer of MediaWiki ({key!r} is no object)")
    return value


def _rows(rows: Any) -> list[dict]:
    """Returns the pages or members of an answer, each with a title and the number of its namespace."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ApiError("is no answer of MediaWiki (its pages are no objects)")
    rows = [{**row, "title": _text(row.get("title")), "ns": row.get("ns", ARTICLE)} for row in rows]
    if not all(isinstance(row["ns"], int) for row in rows):
        raise ApiError("is no answer of MediaWiki (a namespace is no number)")
    return rows


def _text(value: Any) -> str:
    """Returns a text of an answer, with U+FFFD for half of a surrogate pair, which no file can hold."""
    if not isinstance(value, str):
        raise ApiError("is no answer of MediaWiki (a title or text is none)")
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _more(data: dict) -> dict[str, str]:
    """Returns the parameters that continue the query. Old wikis have them by module, under "query-continue"."""
    modules = [_object(data, "continue")] if "continue" in data else [*_object(data, "query-continue").values()]
    if not all(isinstance(module, dict) for module in modules):
        raise ApiError("is no answer of MediaWiki (its continuation is no object)")
    return {key: str(value) for module in modules for key, value in module.items()}


def _warnings(data: dict) -> list[str]:
    warnings = data.get("warnings") or {}
    if isinstance(warnings, list):  # in the form of `errorformat`
        warnings = {str(one.get("module", "")): one for one in warnings if isinstance(one, dict)}
    texts = {
        module: one.get("warnings") or one.get("text") or one.get("*") or one if isinstance(one, dict) else one
        for module, one in (warnings.items() if isinstance(warnings, dict) else ())
    }
    return [f"{module}: {text}" for module, text in texts.items()]


def _page(page: dict) -> dict:
    page = dict(page)
    page["missing"] = page.get("missing", False) is not False or page.get("invalid", False) is not False
    if "langlinks" in page:
        links = page["langlinks"] if isinstance(page["langlinks"], list) else [None]
        links = [
            {**link, "title": link.get("title", link.get("*", ""))} if isinstance(link, dict) else link
            for link in links
        ]
        page["langlinks"] = _rows(links)
    return page


def read_parse(data: Any) -> tuple[str, str]:
    """Returns (title, HTML) from the answer to action=parse. Raises ApiError."""
    _check(data)
    parsed = data.get("parse")
    if not isinstance(parsed, dict) or "text" not in parsed:
        raise ApiError("the answer holds no parsed page")
    text = parsed["text"]
    return _text(parsed.get("title", "")), _text(text.get("*") if isinstance(text, dict) else text)


def _check(data: Any) -> None:
    if not isinstance(data, dict):
        raise ApiError("is no answer of MediaWiki (not a JSON object)")
    errors = data.get("errors")
    if error := data.get("error") or (errors[0] if isinstance(errors, list) and errors else errors):
        error = error if isinstance(error, dict) else {"code": "", "info": str(error)}
        text = error.get("info") or error.get("text") or error.get("*") or ""
        kind = Missing if error.get("code") == "missingtitle" else ApiError
        raise kind(f"the wiki says {error.get('code')}: {text}")
    if not {"query", "parse", "batchcomplete", "continue", "query-continue"} & set(data):
        raise ApiError(f"is no answer of MediaWiki (its keys: {', '.join(map(str, data)) or 'none'})")


async def query(get: Get, api: str, **parameters: Any) -> AsyncIterator[QueryResult]:
    """Yields every answer to one query, continued to its end."""
    more, seen = {"continue": ""}, []  # the empty one asks a wiki before 1.26 for the newer form
    while True:
        result = read_query(await get(address(api, action="query", **parameters | more)))
        yield result
        if not result.more:
            return
        if result.more in seen:
            raise ApiError(f"continues at the same place again and again ({result.more})")
        more = result.more
        seen.append(more)


async def merged_pages(get: Get, api: str, **parameters: Any) -> dict[str, dict]:
    """Returns title -> page of a whole query. Links and extracts that come in several answers are joined."""
    pages: dict[str, dict] = {}
    async for result in query(get, api, **parameters):
        for page in result.pages:
            whole = pages.setdefault(page["title"], {})
            for key, value in page.items():
                joins = isinstance(value, list) and isinstance(whole.get(key), list)
                whole[key] = whole[key] + value if joins else value
    return pages


class Wiki:
    """One wiki."""

    def __init__(self, api: str, get: Get, report: Callable[[str], None]):
        """api: address of its api.php; report: called with every note for people."""
        self.api, self.report, self._ask = api, report, get
        self.left: Counter = Counter()  # reason -> pages that were left out
        self.failed: list[tuple[str, str]] = []  # (title, reason) of a category's pages that could not be fetched
        self._article_path = urljoin(api, "index.php?title=$1")
        self._warned: set[str] = set()

    async def get(self, url: str) -> dict:
        """Returns the answer of the wiki. Each of its warnings (a limit, a truncated result) is printed once."""
        data = await self._ask(url)
        for warning in _warnings(data) if isinstance(data, dict) else ():
            if warning not in self._warned:
                self._warned.add(warning)
                self.report(f"warning of the wiki: {warning}")
        return data

    async def pages(self, title: str) -> AsyncIterator[WikiPage]:
        """Yields the page of this title, or the pages of this category.

        A category of glossaries has its pages and those of its subcategories of glossaries. Any other category has its
        glossaries and the leads of its other articles.
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
        for first in range(0, len(articles), LEADS_AT_ONCE):
            async for page in self._leads(articles[first : first + LEADS_AT_ONCE]):
                yield page

    async def title_in(self, language: str, title: str) -> str:
        """Returns the title of this page in another language's wiki, by its language links. Raises Missing."""
        pages = await merged_pages(self.get, self.api, titles=title, prop="langlinks", lllang=language, lllimit="max")
        links = [link for page in pages.values() for link in page.get("langlinks", []) if link.get("lang") == language]
        if not links:
            mend = f"name a page or category of it: wikipedia_glossary:TITLE --lang {language}"
            raise Missing(f"{title!r} has no counterpart in {language!r}; {mend}")
        return links[0]["title"]

    async def _start(self, title: str) -> dict:
        """Returns the page of this title, after redirects. Raises Missing."""
        start: dict = {}
        parameters = {"titles": title, "redirects": True, "prop": "info", "meta": "siteinfo", "siprop": "general"}
        async for result in query(self.get, self.api, **parameters):
            start = start or next(iter(result.pages), {})
            if path := result.general.get("articlepath"):
                self._article_path = self._joined(_text(path))
        if not start or start["missing"]:
            raise Missing(f"{urlsplit(self.api).netloc} has no page {title!r}")
        return start

    async def _members(self, category: str) -> tuple[list[str], list[str]]:
        """Returns the titles of the glossaries, and those of the other articles, of a category."""
        about_terms = ABOUT_TERMS.search(category)
        glossaries, articles, waiting, seen = [], [], [category], {category}
        while waiting:
            parameters = {"list": "categorymembers", "cmtitle": waiting.pop(0), "cmprop": "ids|title", "cmlimit": "max"}
            async for result in query(self.get, self.api, **parameters):
                for member in result.lists.get("categorymembers", []):
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
        parameters = {"page": title, "prop": "text", "redirects": True, "disableeditsection": True, "disabletoc": True}
        data = await self.get(address(self.api, action="parse", disablelimitreport=True, **parameters))
        name, text = read_parse(data)
        left = len(_OMITTED.findall(text))
        cut = f"{left:,} templates beyond the wiki's limits are left out of the page by the wiki" if left else ""
        return WikiPage(name or title, self._url(name or title), html=text, cut=cut)

    async def _leads(self, titles: list[str]) -> AsyncIterator[WikiPage]:
        parameters = {"prop": "extracts", "exintro": True, "explaintext": True, "exlimit": "max"}
        pages = await merged_pages(self.get, self.api, titles="|".join(titles), **parameters)
        for title in titles:
            lead = _text(pages.get(title, {}).get("extract", "")).strip()
            if lead:
                yield WikiPage(re.sub(r"\s*\([^()]*\)$", "", title), self._url(title), lead=lead)
            else:
                self.left["articles without a lead"] += 1

    def _joined(self, path: str) -> str:
        try:
            return urljoin(self.api, path)
        except ValueError:
            raise ApiError(f"is no answer of MediaWiki (no address has the path {path!r})") from None

    def _url(self, title: str) -> str:
        return self._article_path.replace("$1", quote(title.replace(" ", "_"), safe="/:(),'!*"))
