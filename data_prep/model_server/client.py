"""A model behind an OpenAI-compatible server: calls, retries, limits. Only this file imports openai.

The client's own retries are off, so that every repeated call is counted here and stopped by Ctrl-C.
"""

import asyncio
import contextlib
import random
import re
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from data_prep.common.console import EVERY_SECONDS, say
from data_prep.common.environment import network_client, proxy_note
from data_prep.common.errors import BadInput, Failed, nearest
from data_prep.common.finite import decode_json
from data_prep.common.retry_after import retry_after
from data_prep.common.secrets import without
from data_prep.model_server.endpoint import Endpoint, Pace, neighbours

CONNECT_SECONDS = 10.0
PROBE_SECONDS = 3.0  # for one list of models
REASON_CHARACTERS = 300
# After so many refused, or unanswered, chunks without any answer between them, the fault is not the chunks'.
REFUSED_IN_A_ROW, SILENT_IN_A_ROW = 10, 3
ATTEMPTS_UNHEARD = 3  # about the next chunks, if the first got no answer
BUSY = ("408", "409", "425", "429", "502", "503", "504", "529")  # says nothing about what the server can do
# In the text of a 500: the request is at fault, so that repeating it is of no use.
_REJECTED = re.compile(
    r"json.?schema|response.?format|grammar|structured|template|jinja|\broles?\b|unsupported|not support"
    r"|context (?:size|length|window)",
    re.IGNORECASE,
)
_NO_SUCH_PATH = re.compile(r"end.?point|no such (?:path|url|route)|unknown (?:path|url|route|method)", re.IGNORECASE)


@dataclass(frozen=True)
class Retry:
    """Limits of repeated calls.

    The n-th pause is drawn between half and all of first * 2^n seconds, at most `longest`. A wait that the server asks
    for replaces it.
    """

    attempts: int = 10
    first: float = 0.5  # seconds
    longest: float = 60.0  # seconds
    patience: float = 600.0  # seconds; if the server asks for a longer wait, the run ends


class Unanswered(Exception):
    """A request got no answer. again: a later call may succeed."""

    def __init__(self, reason: str, again: bool):
        super().__init__(reason)
        self.again = again


class Stopped(Exception):
    """The run stops: no further call is made."""


class Fault(Exception):
    """A failed call that may be repeated. kind: for counting. wait: seconds that the server asked for."""

    def __init__(self, kind: str, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.kind, self.wait = kind, wait


class BadRequest(Exception):
    """The server rejects the request itself."""


class _Reply(Exception):
    """A status and its reason inside of a 200."""


class _Page(Exception):
    """An answer of this content type, which is not JSON, before any answer."""


class Strange(Exception):
    """A whole answer that is none to the request. Before the first good one, the address may be wrong."""


class Client(ABC):
    """One model of one server, called by many tasks of one event loop. A subclass makes one kind of calls."""

    name_flag: str  # that names the model, for messages
    thing: str  # that a request is about, for messages
    lacking: str  # kind of the fault where an answer is none
    lacks: str  # by such an answer, for messages
    otherwise: str = ""  # what works without a server, for messages

    def __init__(self, server: Endpoint, name: str, timeout: float, retry: Retry, pace: Pace | None = None):
        """timeout: seconds for one whole answer. pace: None: no limit."""
        import openai

        self._openai = openai
        self.server, self.name, self.timeout, self.retry = server, name, timeout, retry
        with network_client(server.url):
            self._client = openai.AsyncOpenAI(
                api_key=server.key or "none",  # the client insists on one
                base_url=server.url,
                max_retries=0,
                timeout=openai.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout)),
            )
        self._pace = pace or Pace()
        self._stopping = asyncio.Event()
        self._not_before = 0.0  # time.monotonic(): the server wants no call before
        self._in_a_row: Counter[str] = Counter()
        self.retries: Counter[str] = Counter()  # repeated calls, by kind
        self.heard = False  # True once the server has answered

    def stop(self) -> None:
        """Lets pending calls finish; further ones raise Stopped."""
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    @property
    def known(self) -> bool:
        """True once the server has answered and it is known what it can do."""
        return self.heard

    async def close(self) -> None:
        await self._client.close()

    @abstractmethod
    async def once(self, request: Any, failed: str) -> Any:
        """Makes one call by `call` and returns the answer. failed: why the call before failed, "" if the one before
        that failed too or the server was busy."""

    @abstractmethod
    def pick(self, body: Any, sent: dict[str, Any]) -> Any:
        """Returns the part of a server's JSON that answers. Strange, KeyError, ValueError, …: it holds none."""

    @abstractmethod
    def answer(self, picked: Any, usage: dict[str, Any]) -> Any:
        """Returns the answer. picked: by `pick`. usage: the server's counts."""

    def is_single(self, request: Any) -> bool:
        """Returns True if the request is about one thing, so that the server refuses that thing."""
        return True

    async def ask(self, request: Any) -> Any:
        """Returns the model's answer. Unanswered, Stopped; BadInput, Failed: no call would succeed."""
        last, failed = "", ""
        again = self._in_a_row["silent"] > 0 and not self.heard
        attempts = min(ATTEMPTS_UNHEARD, self.retry.attempts) if again else self.retry.attempts
        for attempt in range(attempts):
            try:
                answer = await self.once(request, failed)
            except BadRequest as error:
                if self.is_single(request):
                    self._count_in_a_row("refused", REFUSED_IN_A_ROW, str(error))
                raise Unanswered(f"refused by the server: {error}", again=False) from None
            except Fault as fault:
                self.retries[fault.kind] += 1
                if not self.heard and str(fault) != last:
                    say(f"note: {self.server.url}: {fault}; asking again, up to {attempts} times")
                last = str(fault)
                failed = "" if failed or fault.kind in BUSY else last  # with and without structured output in turn
                await self._pause(attempt, attempts, fault)
                continue
            self._in_a_row.clear()
            self.heard = True
            return answer
        self._count_in_a_row("silent", SILENT_IN_A_ROW, last)
        raise Unanswered(f"no answer after {attempts} calls: {last}", again=True)

    def _count_in_a_row(self, what: str, most: int, reason: str) -> None:
        self._in_a_row[what] += 1
        if self._in_a_row[what] >= most:
            raise Failed(f"{self.server.url} has no answer for {most} {self.thing}s in a row: {reason}")

    async def _wait_turn(self) -> float:
        """Returns when a call may be made: the tokens that its turn counts as."""
        while True:
            while (left := self._not_before - time.monotonic()) > 0:
                await self._sleep(left * random.uniform(1, 1.25))  # not all at the same instant
            if self.stopping:
                raise Stopped
            wait, tokens = self._pace.claim()
            if wait:
                await self._sleep(wait)
            if self._not_before <= time.monotonic():
                return tokens

    async def _pause(self, attempt: int, attempts: int, fault: Fault) -> None:
        if fault.wait is None:
            if attempt + 1 < attempts:
                await self._sleep(min(self.retry.longest, self.retry.first * 2**attempt) * random.uniform(0.5, 1))
            return
        if fault.wait > self.retry.patience:
            raise Failed(f"{self.server.url} asks to wait {fault.wait:,.0f} s ({fault}); run the same command then")
        if fault.wait > EVERY_SECONDS:
            say(f"note: {fault}; the server asks to wait {fault.wait:.0f} s")
        self._not_before = max(self._not_before, time.monotonic() + fault.wait)

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
            raise Stopped

    async def call(self, create: Callable[..., Awaitable[Any]], **sent: Any) -> Any:
        """Makes one call. create: a raw method of the client, which is sent the model's name and `sent`."""
        openai, claimed = self._openai, await self._wait_turn()
        try:
            async with asyncio.timeout(self.timeout):  # the client's own limits a silence, not a trickle
                response = await create(model=self.name, **sent)
        except (TimeoutError, openai.APITimeoutError) as error:
            if type(error.__cause__).__name__ == "ConnectTimeout":
                raise self._of_connection(error) from None
            raise Fault("timeout", f"no answer within {self.timeout:g} s") from None
        except openai.APIStatusError as error:
            raise await self._of_status(error) from None
        except openai.APIConnectionError as error:
            raise self._of_connection(error) from None
        except openai.OpenAIError as error:
            raise Failed(f"{self.server.url}: {self._clean(error)}") from None
        try:
            answer, usage = self._read(response, sent)
        except Strange as error:
            raise await self._of_strange(str(error)) from None
        except _Reply as error:
            raise await self._of_reply(*error.args, None, None) from None
        except _Page as error:
            reply = f"{self.server.url} answers with {error} that is no JSON"
            raise Failed(f"{reply}; {await self._address()}") from None
        self._pace.count(claimed, _tokens_of(usage))
        return answer

    async def _of_strange(self, reason: str) -> Exception:
        """Returns the error for an answer that is none: a wrong address, unless models are listed."""
        if not self.heard and (_NO_SUCH_PATH.search(reason) or not await self._models_at(self.server.url)):
            return BadInput(f"{self.server.url}: {reason}; {await self._address()}")
        return Fault(self.lacking, reason)

    def _of_connection(self, error: Exception) -> Exception:
        cause = error.__cause__ or error
        reason = self._clean(cause) or type(cause).__name__
        kind = type(cause).__name__  # of httpx2, or httpx in older clients
        if kind in ("ConnectError", "ConnectTimeout") and not self.heard:
            note = proxy_note(self.server.url)
            return Failed(
                f"cannot connect to {self.server.url}: {reason}{note}; is the server up, and {self.server.flag} right? "
                f"Without a network name a server on this machine{self.otherwise}"
            )
        if kind == "RemoteProtocolError" and "illegal" in reason and not self.heard:
            return Failed(
                f"{self.server.url} answers with something that is no HTTP ({reason}); is {self.server.flag} right?"
            )
        return Fault("connection", f"the connection broke: {reason}")

    async def _of_status(self, error: Any) -> Exception:
        reason, wait = self._clean(_reason(error.body)), _wait_of(error.response.headers)
        return await self._of_reply(error.status_code, reason, error.code, wait)

    async def _of_reply(self, status: int, reason: str, code: str | None, wait: float | None) -> Exception:
        reply = f"{status}{f': {reason}' if reason else ''}"
        if status in (400, 413, 415, 422, 501) or (status == 500 and _REJECTED.search(reason)):
            return BadRequest(reply)
        if status == 429 and code == "insufficient_quota":
            return Failed(f"{self.server.url} answers {reply}; the account has no quota left")
        if status in (408, 409, 425, 429) or status >= 500:
            return Fault(str(status), f"the server answers {reply}", wait)
        if status == 401:
            key = f"{self.server.key_name} is not accepted" if self.server.key else "it wants a key: set OPENAI_API_KEY"
            return BadInput(f"{self.server.url} answers {reply}; {key}")
        if status == 403:
            return BadInput(f"{self.server.url} answers {reply}; the key may not use {self.name!r}, or not from here")
        if status in (404, 405):
            return BadInput(f"{self.server.url} answers {reply}; {await self._models(status)}")
        return Failed(f"{self.server.url} answers {reply}")

    async def _models(self, status: int) -> str:
        """Returns the hint for a 404: the server's models, if it lists them."""
        names = await self._models_at(self.server.url)
        if not names or status == 405:
            return await self._address()
        shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
        return self._clean(f"{self.name_flag} {self.name}: the server has {shown}.{nearest(self.name, names)}")

    async def _models_at(self, url: str) -> list[str]:
        """Returns the names of the models that are listed at this address; none where anything goes wrong."""
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                return [str(model.id) for model in (await self._client.with_options(base_url=url).models.list()).data]
        except Exception:  # only an explanation: the first error is what counts
            return []

    async def _address(self) -> str:
        """Returns the hint for a wrong address: the one beside it where models are listed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_SECONDS):
                for url in neighbours(self.server.url):
                    if await self._models_at(url):
                        return f"models are listed at {url}: give {self.server.flag} {url}"
        return f"is {self.server.flag} right (it mostly ends in /v1)?"

    def _read(self, response: Any, sent: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Returns the answer and the server's counts. _Page, Strange, _Reply: it is no answer."""
        try:
            body = decode_json(response.http_response.text)
        except ValueError:
            kind = response.http_response.headers.get("content-type", "")
            if "json" not in kind and not self.heard:
                raise _Page(kind or "something") from None
            raise Fault("no JSON", "the server's answer is no JSON") from None
        try:
            picked = self.pick(body, sent)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            error = body.get("error") if isinstance(body, dict) else None
            reason = self._clean(_reason(error if isinstance(error, dict) else body))
            status = error.get("code") if isinstance(error, dict) else None
            if isinstance(status, int) and 400 <= status < 600:
                raise _Reply(status, reason) from None
            raise Strange(f"the server's answer holds {self.lacks}{f': {reason}' if reason else ''}") from None
        usage = body["usage"] if isinstance(body.get("usage"), dict) else {}
        return self.answer(picked, usage), usage

    def no_key(self, text: str) -> str:
        """Removes a key that the server echoes. A short one ("none", "EMPTY") is no secret and may be a word."""
        return without(text, self.server.key) if self.server.key and len(self.server.key) >= 16 else text

    def _clean(self, reason: object) -> str:
        text = " ".join(without(str(reason), self.server.key).split())
        return text if len(text) <= REASON_CHARACTERS else text[:REASON_CHARACTERS] + " …"


def _reason(body: Any) -> str:
    """Returns the server's message: {"error": {"message": …}}, {"error": …}, {"detail": …}, or the whole body."""
    for key in ("message", "detail", "error"):
        if isinstance(body, dict) and body.get(key):
            return _reason(body[key])
    return "" if body is None else str(body)


def count_of(value: Any) -> int | None:
    """Returns a count of the server's; None if it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _tokens_of(usage: dict[str, Any]) -> int | None:
    """Returns the tokens of a call; None if the server does not count them."""
    if (total := count_of(usage.get("total_tokens"))) is not None:
        return total
    counts = [count_of(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
    return None if None in counts else sum(counts)


def _wait_of(headers: Any) -> float | None:
    """Returns the seconds that a response asks to wait: retry-after-ms or Retry-After."""
    with contextlib.suppress(KeyError, ValueError):
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    return retry_after(headers.get("retry-after", ""))
