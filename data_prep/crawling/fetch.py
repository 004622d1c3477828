"""Pages fetched politely: robots.txt, one request at a time to a host, pace, retries, limits, cache.

- `Fetcher._follow` goes along a page's redirects. Each hop asks robots.txt, then the cache, then the server.
- A hop holds the lock of its host through all its retries, so a host never sees two requests at once.
- `_exchange` is one request. It raises `_Retryable` for a failure that may pass.
"""

import asyncio
import contextlib
import socket
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.client import responses
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
from protego import Protego
from w3lib.html import get_meta_refresh

from data_prep.common.environment import network_client, proxy_note
from data_prep.common.finite import decode_json
from data_prep.common.retry_after import retry_after
from data_prep.crawling.http_cache import Answer, HttpCache

AGENT = "embedfleet"  # the name by which robots.txt may address this crawler
MAX_PAGE = 10 * 2**20  # bytes, unpacked
REDIRECTS = 5
REDIRECTED = frozenset((301, 302, 303, 307, 308))
LOCATION = "redirects-to"  # see _hide_location
LONGEST_REFRESH = 100.0  # seconds; a page that reloads itself later than that is a page
RETRIES = 3
RETRIED = frozenset((408, 429, 500, 502, 503, 504, 522, 524))
LONGEST_WAIT = 120.0  # seconds that a server may ask us to wait before we give up on the page
GZIP = b"\x1f\x8b"
_ASK_TO_WAIT = ("maxlag", "ratelimited")  # MediaWiki-API-Error, with HTTP status 200


@dataclass(frozen=True, slots=True)
class Politeness:
    """Headers, pace and limits of requests."""

    user_agent: str
    language: str
    delay: float  # seconds between two requests to one host; a longer Crawl-delay of its robots.txt counts
    timeout: float  # seconds for a whole answer
    cache: Path
    max_age: float  # seconds for which an answer in the cache is used
    proxies: bool = True  # those of the environment


class NotFetched(Exception):
    """A page could not be fetched; the message says why, in one line."""


class _BadRedirect(NotFetched):
    """A redirect that is not followed."""


class _Retryable(NotFetched):
    """A failure that may pass."""


class _Host:
    """The pace of requests to one host."""

    def __init__(self, delay: float):
        self.lock = asyncio.Lock()  # held during a request and its retries
        self.delay = delay  # seconds
        self._last = float("-inf")  # when the last request began

    async def wait(self) -> None:
        await asyncio.sleep(max(0.0, self._last + self.delay - time.monotonic()))
        self._last = time.monotonic()


class Fetcher:
    """Fetches pages. An asynchronous context manager, to be entered once."""

    def __init__(self, how: Politeness):
        self._how = how
        self._hosts: dict[str, _Host] = {}
        self._robots: dict[str, asyncio.Task[tuple[Protego, str]]] = {}  # by the address of robots.txt

    async def __aenter__(self) -> "Fetcher":
        how = self._how
        headers = {
            "User-Agent": how.user_agent.encode(),  # httpx would refuse a contact beyond ASCII
            "Accept": "text/html,application/xhtml+xml,text/markdown;q=0.9,text/plain;q=0.8",
            "Accept-Language": f"{how.language},en;q=0.5" if how.language != "en" else "en",
            "Accept-Encoding": "gzip, deflate",  # those that `_unpack` knows
        }
        with network_client():
            trusted = httpx.create_ssl_context(trust_env=how.proxies)
            trusted.load_default_certs()  # the system's, beside those of httpx
            self._client = httpx.AsyncClient(
                headers=headers,
                verify=trusted,
                trust_env=how.proxies,
                timeout=None,  # `_exchange` has one for the whole answer
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # stores none
                event_hooks={"response": [_hide_location]},
                limits=httpx.Limits(max_keepalive_connections=0),  # a connection closed meanwhile would cost a try
            )
        self._cache = HttpCache(how.cache, headers["Accept-Language"], how.max_age)
        return self

    async def __aexit__(self, *_) -> None:
        await self._client.aclose()
        self._cache.close()

    async def page(self, url: str, obey_robots: bool = True) -> Answer:
        """Returns the page at this address, or the one it redirects to. Raises NotFetched."""
        try:
            answer = await self._follow(_normalized(url), obey_robots)
        except httpx.InvalidURL as error:
            raise NotFetched(f"is no valid address: {error}") from None
        if answer.status != 200:
            raise NotFetched(_status(answer.status) + answer.retries)
        return answer

    async def json(self, url: str) -> dict:
        """Returns the answer of an API. Raises NotFetched.

        A robots.txt is for pages: interfaces made for programs are not asked whether they may be used by one.
        """
        answer = await self.page(url, obey_robots=False)
        try:
            return decode_json(answer.body.decode("utf-8-sig"))
        except ValueError:
            kind = answer.headers.get("content-type") or "of no stated type"
            raise NotFetched(f"the answer is no JSON but {kind}") from None

    async def _follow(self, url: str, obey_robots: bool) -> Answer:
        """Returns the first answer that is no redirect. Raises NotFetched."""
        passed: list[str] = []
        while True:
            if obey_robots:
                await self._check_robots(url, redirected=bool(passed))
            passed.append(url)
            host = self._host(url)
            async with host.lock:
                answer = self._cache.get(url) or await self._request(url, host)
            target = _redirect(answer)
            if not target:
                return answer
            if len(passed) > REDIRECTS:
                raise _BadRedirect(f"redirects more than {REDIRECTS} times: {' -> '.join(passed)}")
            url = target

    def _host(self, url: str) -> _Host:
        return self._hosts.setdefault(urlsplit(url).hostname or "", _Host(self._how.delay))

    async def _check_robots(self, url: str, redirected: bool) -> None:
        """Raises NotFetched where robots.txt forbids this page (RFC 9309)."""
        address = urlsplit(url)._replace(path="/robots.txt", query="").geturl()
        if address not in self._robots:
            self._robots[address] = asyncio.create_task(self._read_robots(address))
        rules, unreadable = await self._robots[address]
        hop = f"redirects to {url}: " if redirected else ""
        if unreadable:
            raise NotFetched(f"{hop}robots.txt cannot be read ({unreadable}), so nothing of the host is fetched")
        if not rules.can_fetch(url, AGENT):
            raise NotFetched(f"{hop}robots.txt forbids it")

    async def _read_robots(self, address: str) -> tuple[Protego, str]:
        """Returns the rules of a host, and why they are unknown: then all is forbidden (RFC 9309, 2.3.1.4)."""
        no_rules = Protego.parse("")
        try:
            answer = await self._follow(address, obey_robots=False)
        except _BadRedirect:  # as if there were none (2.3.1.2)
            return no_rules, ""
        except NotFetched as error:
            return no_rules, str(error)
        if answer.status == 429 or answer.status >= 500:
            return no_rules, _status(answer.status)
        if answer.status != 200:
            return no_rules, ""
        rules = Protego.parse(answer.body.decode("utf-8-sig", "replace"))
        host = self._host(address)
        host.delay = max(host.delay, rules.crawl_delay(AGENT) or 0.0)
        return rules, ""

    async def _request(self, url: str, host: _Host) -> Answer:
        """Requests until there is an answer to keep, at most 1 + RETRIES times. Raises NotFetched.
        The wait before a retry is what the server asks for (Retry-After), else twice the last one."""
        for tries in range(1, RETRIES + 2):
            await host.wait()
            wait = self._how.delay * 2 ** (tries - 1)
            times = f", {tries} times" if tries > 1 else ""
            try:
                answer = await self._exchange(url)
            except _Retryable:
                if tries > RETRIES:
                    raise
            else:
                lagging = answer.headers.get("mediawiki-api-error") in _ASK_TO_WAIT
                if answer.status not in RETRIED and not lagging:
                    break
                asked = retry_after(answer.headers.get("retry-after", ""))
                if asked is not None and asked > LONGEST_WAIT:
                    return replace(answer, retries=f"{times}; it asks to wait {asked:,.0f} s; try again later")
                wait = wait if asked is None else asked
            if tries <= RETRIES:
                await asyncio.sleep(wait)
        return replace(answer, retries=times)

    async def _exchange(self, url: str) -> Answer:
        """Returns the answer to one request and stores it. Raises NotFetched, _Retryable."""
        response = None
        try:
            async with asyncio.timeout(self._how.timeout), self._client.stream("GET", url) as response:
                body = await _read(response)
        except TimeoutError:
            raise _Retryable(f"no whole answer in time, {RETRIES + 1} times (--timeout)") from None
        except (httpx.TransportError, OSError) as error:
            note = proxy_note(url) if self._how.proxies else ""
            raise _Retryable("the answer was cut short" if response else _reason(error) + note) from None
        answer = Answer(url, response.status_code, dict(response.headers.multi_items()), body)
        self._cache.put(answer)
        return answer


async def _hide_location(response: httpx.Response) -> None:
    """Renames the header Location, which httpx would parse even where it follows nothing, and fail for a bad one."""
    if "location" in response.headers:
        response.headers[LOCATION] = response.headers.pop("location")


async def _read(response: httpx.Response) -> bytes:
    """Returns the unpacked body. Raises NotFetched for one larger than MAX_PAGE, without reading further."""
    length = response.headers.get("content-length", "")
    _check_size(int(length) if length.isdecimal() else 0)
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        _check_size(len(body))
    return _unpack(bytes(body), response.headers.get("content-encoding", "").strip().lower())


def _unpack(body: bytes, coding: str) -> bytes:
    """Returns the body without its Content-Encoding. httpx would unpack a few kilobytes to any size, in memory."""
    if coding in ("", "identity"):
        return body
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise NotFetched(f"is packed as {coding}, which was not asked for")
    if not body:
        return body
    for window in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):  # with a header of gzip or zlib; "deflate" without any
        with contextlib.suppress(zlib.error):
            return _inflate(body, window, coding)
    raise NotFetched(f"its {coding} is broken")


def _inflate(body: bytes, window: int, coding: str) -> bytes:
    """Returns the unpacked stream, or streams: several in a row are one body (RFC 1952, 2.2). Raises zlib.error."""
    unpacked = bytearray()
    while True:
        stream = zlib.decompressobj(window)
        unpacked += stream.decompress(body, MAX_PAGE + 1 - len(unpacked))
        _check_size(len(unpacked))
        if not stream.eof:
            raise _Retryable(f"its {coding} ends in the middle: the answer was cut short")
        body = stream.unused_data
        if not body.startswith(GZIP):  # what follows is no further stream but padding
            return bytes(unpacked)


def _check_size(size: int) -> None:
    if size > MAX_PAGE:
        raise NotFetched(f"is larger than {MAX_PAGE // 2**20} MiB; it was not read further")


def _redirect(answer: Answer) -> str:
    """Returns the address this answer redirects to, by Location or `<meta http-equiv="refresh">`, or "".
    Raises _BadRedirect for one that is not followed."""
    target, kind = "", answer.headers.get("content-type", "")
    if answer.status in REDIRECTED:
        target = answer.headers.get(LOCATION, "")
    elif answer.status == 200 and ("html" in kind.lower() or not kind):
        seconds, refresh = get_meta_refresh(answer.body[:4096].decode("utf-8", "replace"), answer.url)
        target = refresh if refresh and seconds < LONGEST_REFRESH else ""
    if not target:
        return ""
    try:
        to = urlsplit(urljoin(answer.url, target))
        if to.scheme in ("http", "https") and "@" not in to.netloc:
            return _normalized(to.geturl())
    except (ValueError, httpx.InvalidURL):
        raise _BadRedirect(f"redirects to {target!r}, which is no address") from None
    if to.scheme not in ("http", "https"):
        raise _BadRedirect(f"redirects to {target}; only http and https are fetched")
    raise _BadRedirect("redirects to an address with a user name; only open pages are crawled")


def _normalized(url: str) -> str:
    """Returns the address as it is sent, without its fragment. Raises httpx.InvalidURL."""
    return str(httpx.URL(url).copy_with(fragment=None))


def _status(code: int) -> str:
    return f"HTTP {code} {responses.get(code, '')}".rstrip()


def _reason(error: Exception) -> str:
    """Returns why a connection failed, in words for people."""
    causes = list(_causes(error))
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return "its host name is not known"
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return "its server refuses the connection"
    return f"the connection failed: {str(causes[-1]).strip() or type(causes[-1]).__name__}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        for other in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
            yield from _causes(other)
        error = error.__cause__ or error.__context__
