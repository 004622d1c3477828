"""Scrapy behind one function: pages fetched politely (robots.txt, pace, retries, limits) inside this one process."""

import asyncio
import json
import re
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import scrapy
from protego import Protego
from scrapy import exceptions
from scrapy.crawler import CrawlerProcess
from scrapy.downloadermiddlewares.redirect import MetaRefreshMiddleware, RedirectMiddleware
from scrapy.downloadermiddlewares.retry import RetryMiddleware, get_retry_request
from scrapy.exceptions import IgnoreRequest
from scrapy.http import HtmlResponse
from scrapy.utils.response import get_meta_refresh
from twisted.internet.error import ReactorNotRestartable
from twisted.logger import formatEvent, globalLogBeginner

from data_prep.common.console import say
from data_prep.common.errors import Failed

AGENT = "embedfleet"  # the name by which robots.txt may address this crawler
MAX_PAGE = 10 * 2**20  # bytes, unpacked
REDIRECTS = 5
RETRIES = 3
LONGEST_WAIT = 120.0  # seconds that a server may ask us to wait before we give up on the page
_ASK_TO_WAIT = (b"maxlag", b"ratelimited")  # MediaWiki-API-Error, with HTTP status 200


@dataclass(frozen=True, slots=True)
class Politeness:
    """How pages are asked for. delay: seconds between two requests to one host (a longer Crawl-delay of its robots.txt
    counts); timeout: seconds for a whole answer; max_age: seconds for which an answer in the cache is used."""

    user_agent: str
    language: str
    delay: float
    timeout: float
    cache: Path
    max_age: float
    proxies: bool = True  # those of the environment


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer. url: after redirects."""

    url: str
    body: bytes
    content_type: str
    cached: bool


class NotFetched(Exception):
    """A page that could not be had, and why, in one line."""


class Fetcher:
    """What `run` hands to its work: asks for one page, through Scrapy's middlewares and the cache. Pages of one host
    are asked for in turn, and all of them wait while one waits for its retry."""

    def __init__(self, spider: scrapy.Spider):
        self._engine = spider.crawler.engine
        # not left to CONCURRENT_REQUESTS_PER_DOMAIN: without a delay, Scrapy 2.19 exceeds it for requests made at once
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def page(self, url: str, obey_robots: bool = True) -> Fetched:
        """Raises NotFetched."""
        try:
            request = scrapy.Request(url, meta={"dont_obey_robotstxt": not obey_robots})
            async with self._turns[urlsplit(request.url).hostname or ""]:
                response = await self._engine.download_async(request)
        except Exception as error:
            if (reason := _reason(error)) is None:
                raise
            raise NotFetched(reason) from None
        if response.status != 200:
            tries = response.request.meta.get("retry_times", 0) + 1
            asked = response.request.meta.get("asked_to_wait")
            said = f"{_status(response.status)}" + (f", {tries} times" if tries > 1 else "")
            raise NotFetched(f"{said}; {asked}" if asked else said)
        content_type = response.headers.get("Content-Type", b"").decode("latin-1")
        return Fetched(response.url, response.body, content_type, "cached" in response.flags)

    async def json(self, url: str) -> dict:
        """The answer of an API. A robots.txt is for pages: interfaces made for programs are not asked whether they may
        be used by one. Raises NotFetched."""
        fetched = await self.page(url, obey_robots=False)
        try:
            return json.loads(fetched.body.decode("utf-8-sig"))
        except ValueError:
            raise NotFetched(f"the answer is no JSON but {fetched.content_type or 'of no stated type'}") from None


def _reason(error: Exception) -> str | None:
    """Why a download failed, in words for people; None for an error that is ours."""
    if isinstance(error, exceptions.DownloadCancelledError) or "DOWNLOAD_MAXSIZE" in str(error):
        return f"is larger than {MAX_PAGE // 2**20} MiB; it was not read further"
    if isinstance(error, IgnoreRequest):
        return str(error)
    if isinstance(error, exceptions.DownloadTimeoutError):
        return f"no whole answer in time, {RETRIES + 1} times (--timeout)"
    if isinstance(error, exceptions.CannotResolveHostError):
        return "its host name is not known"
    if isinstance(error, exceptions.DownloadConnectionRefusedError):
        return "its server refuses the connection"
    if isinstance(error, exceptions.ResponseDataLossError):
        return "the answer was cut short"
    if isinstance(error, exceptions.DownloadFailedError | exceptions.UnsupportedURLSchemeError | OSError):
        inner = re.search(r"Failure [\w.]*?(\w+: .*?)>", str(error))  # of Twisted, in brackets
        return f"the connection failed: {inner[1] if inner else str(error).strip() or type(error).__name__}"
    return None


def _status(code: int) -> str:
    try:
        return f"HTTP {code} {HTTPStatus(code).phrase}"
    except ValueError:
        return f"HTTP {code}"


def run(work: Callable[[Fetcher], Awaitable[None]], how: Politeness) -> None:
    """Runs the work with a Fetcher until it is done. Raises what the work raises, and KeyboardInterrupt after Ctrl-C.

    Once per process: a Twisted reactor cannot be started again.
    """
    # Twisted's own observer would write tracebacks to stderr
    globalLogBeginner.beginLoggingTo([_say_fault], redirectStandardIO=False, discardBuffer=True)
    process = CrawlerProcess(_settings(how))
    crawler = process.create_crawler(_Spider)
    process.crawl(crawler, work=work, how=how)
    try:
        process.start()
    except ReactorNotRestartable:
        raise Failed("a process can crawl only once; start another one") from None
    if crawler.spider is None:
        raise Failed("the crawler did not start")
    if crawler.spider.failure is not None:
        raise crawler.spider.failure
    if not crawler.spider.done:
        raise KeyboardInterrupt


def _say_fault(event: dict) -> None:
    """A failure that Twisted only logs (such as a certificate that is none), in one line."""
    if (failure := event.get("log_failure")) is not None:
        say(f"note: {formatEvent(event)}: {failure.type.__name__}: {failure.getErrorMessage()}")


def _settings(how: Politeness) -> dict:
    return {
        "USER_AGENT": how.user_agent,
        "DEFAULT_REQUEST_HEADERS": {
            "Accept": "text/html,application/xhtml+xml,text/markdown;q=0.9,text/plain;q=0.8",
            "Accept-Language": f"{how.language},en;q=0.5" if how.language != "en" else "en",
        },
        "CONCURRENT_REQUESTS_PER_DOMAIN": 1,
        "DOWNLOAD_DELAY": how.delay,
        "DOWNLOAD_DELAY_JITTER": 0,
        "DOWNLOAD_TIMEOUT": how.timeout,
        "DOWNLOAD_MAXSIZE": MAX_PAGE,
        "DOWNLOAD_WARNSIZE": 0,
        "DOWNLOAD_VERIFY_CERTIFICATES": True,
        "DOWNLOAD_HANDLERS": {"data": None, "file": None, "ftp": None, "s3": None},  # http and https only
        "REDIRECT_MAX_TIMES": REDIRECTS,
        "RETRY_TIMES": RETRIES,
        "DOWNLOADER_MIDDLEWARES": {
            Robots: 100,
            "scrapy.downloadermiddlewares.retry.RetryMiddleware": None,
            PatientRetry: 550,
            "scrapy.downloadermiddlewares.redirect.MetaRefreshMiddleware": None,
            WebRefreshes: 580,
            "scrapy.downloadermiddlewares.redirect.RedirectMiddleware": None,
            WebRedirects: 600,
        },
        "HTTPCACHE_ENABLED": True,
        "HTTPCACHE_DIR": str(how.cache),
        "HTTPCACHE_EXPIRATION_SECS": how.max_age,
        "HTTPCACHE_STORAGE": "data_prep.crawling.http_cache.AnswerCache",
        "HTTPPROXY_ENABLED": how.proxies,
        "COOKIES_ENABLED": False,
        "REFERER_ENABLED": False,
        "TELNETCONSOLE_ENABLED": False,
        "REMOTE_CONTROL_ENABLED": False,
        "LOG_ENABLED": False,
    }


class _Spider(scrapy.Spider):
    """Runs the work as its start; the pages are fetched from within it."""

    name = "glossary"
    failure: Exception | None = None
    done = False

    async def start(self):
        try:
            await self.work(Fetcher(self))
            self.done = True
        except Exception as error:  # Scrapy would only log it
            self.failure = error
        return
        yield  # an async generator that yields nothing


class Robots:
    """robots.txt by RFC 9309, where Scrapy's own middleware takes a server that fails for one that allows everything;
    and its Crawl-delay. In the place of Scrapy's RobotsTxtMiddleware."""

    def __init__(self, crawler):
        self._crawler, self._rules = crawler, {}

    @classmethod
    def from_crawler(cls, crawler):
        return cls(crawler)

    async def process_request(self, request):
        if request.meta.get("dont_obey_robotstxt"):
            return
        root = urlsplit(request.url)._replace(path="/robots.txt", query="", fragment="").geturl()
        if root not in self._rules:
            self._rules[root] = asyncio.ensure_future(self._read(root))
        rules, unreadable = await self._rules[root]
        here = f"redirects to {request.url}: " if "redirect_urls" in request.meta else ""
        if unreadable:
            raise IgnoreRequest(f"{here}robots.txt cannot be read ({unreadable}), so nothing of the host is fetched")
        if not rules.can_fetch(request.url, AGENT):
            raise IgnoreRequest(f"{here}robots.txt forbids it")

    async def _read(self, address: str) -> tuple[Protego, str]:
        """The rules of a host, and why there are none for sure: then all is forbidden (RFC 9309, 2.3.1.4)."""
        everything = Protego.parse("")
        try:
            request = scrapy.Request(address, meta={"dont_obey_robotstxt": True})
            response = await self._crawler.engine.download_async(request)
        except IgnoreRequest:  # it redirects too often: as if there were none (2.3.1.2)
            return everything, ""
        except Exception as error:
            if (reason := _reason(error)) is None:
                raise
            return everything, reason
        if response.status == 429 or response.status >= 500:
            return everything, f"{_status(response.status)}"
        if response.status != 200:
            return everything, ""
        rules = Protego.parse(response.body.decode("utf-8-sig", "replace"))
        if delay := rules.crawl_delay(AGENT):
            self._slow_down(urlsplit(address).hostname, delay)
        return rules, ""

    def _slow_down(self, host: str, delay: float) -> None:
        downloader = self._crawler.engine.downloader
        delay = max(delay, self._crawler.settings.getfloat("DOWNLOAD_DELAY"))
        downloader.per_slot_settings[host] = {"delay": delay}  # for a slot that is made later
        if host in downloader.slots:
            downloader.slots[host].delay = delay


class PatientRetry(RetryMiddleware):
    """Scrapy's, waiting before each retry: as long as the server asks (Retry-After), else twice as long each time."""

    async def process_response(self, request, response):
        lagging = response.headers.get("MediaWiki-API-Error") in _ASK_TO_WAIT
        if response.status not in self.retry_http_codes and not lagging:
            return response
        asked = _retry_after(response.headers.get("Retry-After", b"").decode("latin-1"))
        if asked is not None and asked > LONGEST_WAIT:
            request.meta["asked_to_wait"] = f"it asks to wait {asked:,.0f} s; try again later"
            return response
        return await self._later(request, _status(response.status), asked) or response

    async def process_exception(self, request, exception):
        if isinstance(exception, self.exceptions_to_retry):
            return await self._later(request, exception, None)
        return None

    async def _later(self, request, reason, asked: float | None):
        retry = get_retry_request(request, reason=reason, spider=self.crawler.spider)
        if retry is not None:
            delay = self.crawler.settings.getfloat("DOWNLOAD_DELAY")
            backoff = delay * 2 ** (retry.meta["retry_times"] - 1)
            await asyncio.sleep(backoff if asked is None else asked)
        return retry


def _retry_after(value: str) -> float | None:
    """Seconds: the header holds their number, or a date (RFC 9110, 10.2.3)."""
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


class WebRedirects(RedirectMiddleware):
    """Scrapy's, saying where a redirect leads that is not followed."""

    def process_response(self, request, response):
        location = response.headers.get("Location", b"").decode("latin-1")
        if location and response.status in (301, 302, 303, 307, 308):
            _refuse_other_schemes(request.url, location)
        return _said_if_too_many(super().process_response, request, response)


class WebRefreshes(MetaRefreshMiddleware):
    """The same for `<meta http-equiv="refresh">`."""

    def process_response(self, request, response):
        if isinstance(response, HtmlResponse) and (target := get_meta_refresh(response)[1]):
            _refuse_other_schemes(request.url, target)
        return _said_if_too_many(super().process_response, request, response)


def _refuse_other_schemes(url: str, target: str) -> None:
    try:
        to = urlsplit(urljoin(url, target))
    except ValueError:
        raise IgnoreRequest(f"redirects to {target!r}, which is no address") from None
    if to.scheme not in ("http", "https"):
        raise IgnoreRequest(f"redirects to {target}; only http and https are fetched")
    if "@" in to.netloc:
        raise IgnoreRequest("redirects to an address with a user name; only open pages are crawled")


def _said_if_too_many(follow: Callable, request, response):
    try:
        return follow(request, response)
    except IgnoreRequest:
        passed = " -> ".join([*request.meta.get("redirect_urls", []), request.url])
        raise IgnoreRequest(f"redirects more than {REDIRECTS} times: {passed}") from None
