"""Scrapy behind one function: pages fetched politely (robots.txt, pace, retries, limits) inside this one process."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import scrapy
from protego import Protego
from scrapy import exceptions, signals
from scrapy.crawler import CrawlerProcess
from scrapy.downloadermiddlewares.redirect import RedirectMiddleware
from scrapy.downloadermiddlewares.retry import RetryMiddleware, get_retry_request
from scrapy.downloadermiddlewares.robotstxt import RobotsTxtMiddleware
from scrapy.exceptions import IgnoreRequest
from scrapy.utils.response import response_status_message
from twisted.internet.error import ReactorNotRestartable

from data_prep.problems import Failed

AGENT = "embedfleet"  # the name by which robots.txt may address this crawler
MAX_PAGE = 20 * 2**20  # bytes, unpacked
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
    """What `run` hands to its work: asks for one page, through Scrapy's middlewares and the cache."""

    def __init__(self, spider: scrapy.Spider, timeout: float):
        self._engine, self._timeout = spider.crawler.engine, timeout

    async def page(self, url: str, obey_robots: bool = True) -> Fetched:
        """Raises NotFetched."""
        try:
            request = scrapy.Request(url, meta={"dont_obey_robotstxt": not obey_robots})
            response = await self._engine.download_async(request)
        except (TimeoutError, exceptions.DownloadTimeoutError):
            raise NotFetched(f"no whole answer within {self._timeout:g} s, {RETRIES + 1} times") from None
        except Exception as error:
            if (reason := _reason(error)) is None:
                raise
            raise NotFetched(reason) from None
        if response.status != 200:
            tries = response.request.meta.get("retry_times", 0) + 1
            asked = response.request.meta.get("asked_to_wait")
            times = f", {tries} times" if tries > 1 else ""
            raise NotFetched(
                f"HTTP {response_status_message(response.status)}{times}" + (f"; {asked}" if asked else "")
            )
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
        return str(error).replace("Forbidden by robots.txt", "its robots.txt forbids it")
    if isinstance(error, exceptions.CannotResolveHostError):
        return "its host name is not known"
    if isinstance(error, exceptions.DownloadConnectionRefusedError):
        return "its server refuses the connection"
    if isinstance(error, exceptions.ResponseDataLossError):
        return "the answer was cut short"
    if isinstance(error, exceptions.DownloadFailedError | exceptions.UnsupportedURLSchemeError | OSError):
        return f"the connection failed: {str(error).strip() or type(error).__name__}"
    return None


def run(work: Callable[[Fetcher], Awaitable[None]], how: Politeness) -> None:
    """Runs the work with a Fetcher until it is done. Raises what the work raises, and KeyboardInterrupt after Ctrl-C.

    Once per process: a Twisted reactor cannot be started again.
    """
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


def _settings(how: Politeness) -> dict:
    return {
        "USER_AGENT": how.user_agent,
        "DEFAULT_REQUEST_HEADERS": {
            "Accept": "text/html,application/xhtml+xml,text/markdown;q=0.9,text/plain;q=0.8",
            "Accept-Language": f"{how.language},en;q=0.5" if how.language != "en" else "en",
        },
        "ROBOTSTXT_OBEY": True,
        "ROBOTSTXT_USER_AGENT": AGENT,
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
            "scrapy.downloadermiddlewares.robotstxt.RobotsTxtMiddleware": None,
            Robots: 100,
            "scrapy.downloadermiddlewares.retry.RetryMiddleware": None,
            PatientRetry: 550,
            "scrapy.downloadermiddlewares.redirect.RedirectMiddleware": None,
            WebRedirects: 600,
        },
        "HTTPCACHE_ENABLED": True,
        "HTTPCACHE_DIR": str(how.cache),
        "HTTPCACHE_EXPIRATION_SECS": how.max_age,
        "HTTPCACHE_STORAGE": "data_prep.crawl_cache.AnswerCache",
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
            await self.work(Fetcher(self, self.how.timeout))
            self.done = True
        except Exception as error:  # Scrapy would only log it
            self.failure = error
        return
        yield  # an async generator that yields nothing


class _Pace:
    """The delay of a host's download slot: the usual one, a longer one by its robots.txt, and pauses."""

    def __init__(self, crawler):
        self._downloader, self._usual = crawler.engine.downloader, crawler.settings.getfloat("DOWNLOAD_DELAY")

    def slow_down(self, host: str, delay: float) -> None:
        self._downloader.per_slot_settings[host] = {"delay": max(delay, self._usual)}  # for a slot yet to come
        self._set(host, max(delay, self._usual))

    async def pause(self, host: str, seconds: float) -> None:
        """Nothing is sent to the host for that long, whoever asks."""
        usual = self._downloader.per_slot_settings.get(host, {}).get("delay", self._usual)
        self._set(host, max(seconds, usual))
        await asyncio.sleep(seconds)
        self._set(host, usual)

    def _set(self, host: str, delay: float) -> None:
        if host in self._downloader.slots:
            self._downloader.slots[host].delay = delay


class _Unreadable:
    """In the place of a robots.txt that could not be had: everything is forbidden (RFC 9309, 2.3.1.4)."""

    def __init__(self, reason: str):
        self._reason = reason

    def allowed(self, url: str, user_agent: str) -> bool:
        raise IgnoreRequest(f"its robots.txt cannot be read ({self._reason}), so nothing of the host is fetched")


class Robots(RobotsTxtMiddleware):
    """Scrapy's, with RFC 9309's answer to a server that fails, and with Crawl-delay."""

    @classmethod
    def from_crawler(cls, crawler):
        middleware = super().from_crawler(crawler)
        crawler.signals.connect(middleware._keep_delay, signal=signals.robots_parsed)
        return middleware

    def _keep_delay(self, robotparser, request) -> None:
        rules: Protego = robotparser.rp
        if delay := rules.crawl_delay(AGENT):
            _Pace(self.crawler).slow_down(urlsplit(request.url).hostname, delay)

    async def _parse_robots(self, response, netloc, request) -> None:
        if response.status == 429 or response.status >= 500:
            raise exceptions.DownloadFailedError(f"HTTP {response_status_message(response.status)}")
        await super()._parse_robots(response, netloc, request)

    def _robots_error(self, exc, netloc) -> None:
        if isinstance(exc, IgnoreRequest):  # it redirects too often: as if there were none (RFC 9309, 2.3.1.2)
            super()._robots_error(exc, netloc)
            return
        waiting, reason = self._parsers[netloc], _reason(exc) or str(exc)
        self._parsers[netloc] = _Unreadable(reason.removeprefix("the connection failed: "))
        waiting.callback(self._parsers[netloc])


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
        return await self._later(request, response_status_message(response.status), asked) or response

    async def process_exception(self, request, exception):
        if isinstance(exception, self.exceptions_to_retry):
            return await self._later(request, exception, None)
        return None

    async def _later(self, request, reason, asked: float | None):
        retry = get_retry_request(request, reason=reason, spider=self.crawler.spider)
        if retry is not None:
            delay = self.crawler.settings.getfloat("DOWNLOAD_DELAY")
            backoff = delay * 2 ** (retry.meta["retry_times"] - 1)
            await _Pace(self.crawler).pause(urlsplit(request.url).hostname, backoff if asked is None else asked)
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
        passed = [*request.meta.get("redirect_urls", []), request.url]
        try:
            result = super().process_response(request, response)
        except IgnoreRequest:
            raise IgnoreRequest(f"redirects more than {REDIRECTS} times: {' -> '.join(passed)}") from None
        location = response.headers.get("Location", b"").decode("latin-1")
        if result is response and response.status in (301, 302, 303, 307, 308) and location:
            raise IgnoreRequest(f"redirects to {location}; only http and https are fetched")
        if isinstance(result, scrapy.Request) and "@" in urlsplit(result.url).netloc:
            raise IgnoreRequest("redirects to an address with a user name; only open pages are crawled")
        return result
