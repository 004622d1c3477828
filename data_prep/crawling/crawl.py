"""Glossaries from the web and from saved pages to one file of terms and definitions, with a report on every page."""

import asyncio
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

from data_prep.cluster.open import open_workers, problems_of
from data_prep.common.console import say
from data_prep.common.errors import BadInput, KnownError
from data_prep.common.files import cache_folder, check, check_output_file
from data_prep.common.workers import Workers
from data_prep.crawling import mediawiki
from data_prep.crawling.charsets import decode
from data_prep.crawling.dry_run import serve
from data_prep.crawling.fetch import AGENT, Fetcher, NotFetched, Politeness
from data_prep.crawling.output import report, write
from data_prep.crawling.sources import GLOSSARIES, MARKDOWN, WIKIPEDIA, Source, read_sources
from data_prep.glossary import page as glossary
from data_prep.glossary.cross_references import resolve
from data_prep.glossary.markup import tidy

AT_ONCE = 16  # sources under way; to one host it is one request at a time
DAY = 86_400.0  # seconds
HTML_TYPES = ("text/html", "application/xhtml+xml", "application/xml", "text/xml")
MARKDOWN_TYPES = ("text/markdown", "text/x-markdown")


@dataclass(slots=True)
class Crawled:
    """The pages and terms of one source."""

    source: Source
    pages: list[glossary.Page] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # "PLACE: REASON" of what could not be fetched or read
    entries: list[glossary.Entry] = field(default_factory=list)  # with references resolved, up to the limit
    resolved: int = 0  # entries that refer to another one and have its definition
    unresolved: int = 0  # entries that refer to a missing term and keep their text
    beyond: int = 0  # entries left out by the limit

    def keep(self, page: glossary.Page) -> None:
        self.pages.append(page)
        say(page.summary())

    def fail(self, place: object, reason: object) -> None:
        self.failed.append(f"{place}: {reason}")
        say(f"failed: {place}: {reason}")


def crawl(
    names: list[str],
    output: Path,
    *,
    limit: int | None = None,
    language: str = "en",
    delay: float = 1.0,
    timeout: float = 30.0,
    contact: str = "",
    cache: Path | None = None,
    max_age: float = DAY,
    dry_run: bool = False,
    workers: int = 1,
    on: str | None = None,
) -> None:
    """Crawls the sources and writes their terms to `output`: .csv (term, definition, url, source) or .jsonl (pairs).

    limit: terms per source. delay, timeout, max_age: seconds. dry_run: only checks the sources, and crawls pages that
    come with the package. workers, on: who reads the pages that are fetched here, see cluster.open_workers. Raises
    BadInput before anything is fetched. Raises Failed for sources that could not be fetched, after writing the terms
    of the others.
    """
    check(problems_of(workers, on))
    sources = _check(names, output, language, limit, delay, timeout, max_age, dry_run)
    with ExitStack() as stack:
        if dry_run:
            say(f"dry run: {len(sources)} sources are well-formed and not asked; the package's own pages are crawled")
            sources = read_sources(stack.enter_context(serve()), language)
            delay, cache = 0.0, Path(stack.enter_context(tempfile.TemporaryDirectory()))
        crawled = [Crawled(source) for source in sources]
        how = None
        if any(not source.file for source in sources):
            agent = f"{AGENT}/{_version()} (glossary crawler; {contact or 'no contact given'})"
            folder = cache or cache_folder("crawl")
            how = Politeness(agent, language, delay, timeout, folder, max_age, proxies=not dry_run)
            _announce(sources, how, contact)
        try:
            pool = stack.enter_context(open_workers(workers, on))
            asyncio.run(_visit_all(crawled, how, language, limit, pool))
        except KeyboardInterrupt:
            if how:
                say(f"stopped; what was fetched is in {how.cache}, and the same command goes on from there")
            raise
    for one in crawled:
        _settle(one, limit)
    write(crawled, output)
    report(crawled, output)


def _check(names, output, language, limit, delay, timeout, max_age, dry_run) -> list[Source]:
    problems = check_output_file(output, suffix=(".csv", ".jsonl"))
    for name, value, least in (("--limit-per-source", limit, 1), ("--delay", delay, 0), ("--max-age", max_age, 0)):
        if value is not None and not value >= least:
            problems.append(f"{name} {value:g}: must be at least {least}")
    if not timeout > 0:
        problems.append(f"--timeout {timeout:g}: must be more than 0 seconds")
    try:
        sources = read_sources(names, language) if names or not dry_run else []
    except BadInput as error:
        sources, problems = [], problems + error.problems
    check(problems)
    return sources


def _version() -> str:
    try:
        return version("embedfleet")
    except PackageNotFoundError:
        return "0"


def _announce(sources: list[Source], how, contact: str) -> None:
    say(f"asking as {how.user_agent!r}, {how.delay:g} s between requests to a host; answers are kept in {how.cache}")
    if not contact and any(".wiki" in urlsplit(source.api).netloc for source in sources):
        say("note: Wikimedia asks crawlers to name a contact: --contact you@example.org")


async def _visit_all(
    crawled: list[Crawled], how: Politeness | None, language: str, limit: int | None, pool: Workers
) -> None:
    """Visits every source, AT_ONCE at a time. how: None where every source is a saved page.

    The pool is stopped at the end: asyncio waits for the threads of `_by`, and they wait for tasks, which nobody wants
    after Ctrl-C.
    """
    places, done = asyncio.Semaphore(AT_ONCE), 0

    async def visit(one: Crawled, fetcher: Fetcher | None) -> None:
        nonlocal done
        async with places:
            try:
                await _visit(one, fetcher, language, limit, pool)
            except KnownError:  # of the workers
                raise
            except Exception as error:  # of one source; the others keep their terms
                fault = f"{type(error).__name__}: {error} (a fault of the crawler: please report it)"
                one.fail(one.source.name, fault)
        done += 1
        if len(crawled) > 1:
            say(f"{done} of {len(crawled)} sources done")

    try:
        async with Fetcher(how) if how else nullcontext() as fetcher, asyncio.TaskGroup() as visits:
            for one in crawled:
                visits.create_task(visit(one, fetcher))
    except ExceptionGroup as group:  # of the workers: all have the same trouble
        raise group.exceptions[0] from None
    finally:
        pool.stop()


async def _visit(one: Crawled, fetcher: Fetcher | None, language: str, limit: int | None, pool: Workers) -> None:
    if one.source.file:
        await _visit_file(one, language, pool)
    elif one.source.url:
        await _visit_page(one, fetcher, language, pool)
    else:
        await _visit_wiki(one, fetcher, limit, pool)


async def _visit_file(one: Crawled, language: str, pool: Workers) -> None:
    path = one.source.file
    try:
        body = path.read_bytes()
    except OSError as error:
        one.fail(path, error.strerror)
        return
    markdown = path.suffix.lower() in MARKDOWN
    one.keep(await _by(pool, _page_of, body, "", path.resolve().as_uri(), markdown, language))


async def _visit_page(one: Crawled, fetcher: Fetcher, language: str, pool: Workers) -> None:
    try:
        answer = await fetcher.page(one.source.url)
    except NotFetched as error:
        one.fail(one.source.url, error)
        return
    content_type = answer.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    markdown = kind in MARKDOWN_TYPES or (
        kind in ("", "text/plain") and urlsplit(answer.url).path.lower().endswith(MARKDOWN)
    )
    if not markdown and kind not in ("", *HTML_TYPES):
        one.fail(answer.url, f"is {kind}; only HTML and Markdown pages are read")
        return
    one.keep(await _by(pool, _page_of, answer.body, content_type, answer.url, markdown, language, answer.cached))


async def _visit_wiki(one: Crawled, fetcher: Fetcher, limit: int | None, pool: Workers) -> None:
    """Reads the pages of the source's title in turn, until there are as many terms as wanted."""
    source = one.source
    wiki = mediawiki.Wiki(source.api, _api(fetcher), lambda note: say(f"{source.name}: {note}"))
    leads = glossary.Page(f"{source.name} (the leads of its articles)")
    try:
        title = source.title or await _own_category(source, fetcher)
        async for page in wiki.pages(title):
            if page.html:
                read = await _by(pool, glossary.from_html, page.html, page.url, "", True)
                read.notes += [page.cut] if page.cut else []
                one.keep(read)
            else:
                leads.entries.append(glossary.Entry(page.title, tidy(page.lead), page.url))
            if limit and len(leads.entries) + sum(len(page.entries) for page in one.pages) >= limit:
                say(f"{source.name}: has the {limit:,} terms of --limit-per-source; its other pages are not asked for")
                break
    except mediawiki.ApiError as error:
        wiki.failed.append((source.title or source.name, str(error)))
    if leads.entries:
        leads.by_structure["lead of an article"] = len(leads.entries)
        one.keep(leads)
    for title, reason in wiki.failed:
        one.fail(f"{source.name}: {title}", reason)
    for reason, count in wiki.left.items():
        say(f"{source.name}: {reason}: {count:,}")


def _api(fetcher: Fetcher) -> mediawiki.Get:
    async def get(url: str) -> dict:
        try:
            return await fetcher.json(url)
        except NotFetched as error:
            raise mediawiki.ApiError(str(error)) from None

    return get


async def _own_category(source: Source, fetcher: Fetcher) -> str:
    """Returns the category of glossaries of the source's wiki, by the language links of the English Wikipedia."""
    if source.language == "en":
        return GLOSSARIES
    english = mediawiki.Wiki(WIKIPEDIA.format(lang="en"), _api(fetcher), say)
    return await english.title_in(source.language, GLOSSARIES)


async def _by(pool: Workers, function: Callable[..., glossary.Page], *arguments: object) -> glossary.Page:
    """Returns the function's result from a worker; other sources go on meanwhile."""
    wait = pool.submit(function, *arguments)
    return wait() if pool.ahead == 1 else await asyncio.to_thread(wait)


def _page_of(
    body: bytes, content_type: str, url: str, markdown: bool, language: str, cached: bool = False
) -> glossary.Page:
    decoded = decode(body, content_type)
    read = glossary.from_markdown if markdown else glossary.from_html
    page = read(decoded.text, url, language)
    page.notes = ([decoded.note] if decoded.note else []) + page.notes + (["from the cache"] if cached else [])
    return page


def _settle(one: Crawled, limit: int | None) -> None:
    """Resolves references over all pages of the source, then applies the limit."""
    entries = [entry for page in one.pages for entry in page.entries]
    one.resolved, lost, circles = resolve(entries)
    one.unresolved = len(lost)
    for page in one.pages:
        for entry in [entry for entry in page.entries if entry in circles]:
            page.skip(entry.line, "refers in a circle", f"{entry.term}: {entry.definition}")
    kept = [entry for entry in entries if entry not in circles]
    one.entries, one.beyond = kept[:limit], len(kept[limit:]) if limit else 0
