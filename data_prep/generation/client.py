"""A model behind an OpenAI-compatible server: a call, its retries, when to give up. Only this file imports openai.

The client's own retries are off, so that every repeated call is one of ours: counted, and stopped by Ctrl-C.
"""

import asyncio
import contextlib
import email.utils
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from data_prep.common.console import EVERY_SECONDS, say
from data_prep.common.errors import BadInput, Failed, nearest
from data_prep.common.secrets import without
from data_prep.generation.answer_cache import Answer
from data_prep.generation.endpoint import Endpoint

CONNECT_SECONDS = 10.0
REASON_CHARACTERS = 300
# Chunks whose request the server called bad, or that got no answer whatever we tried, with no answer between them: then
# it is not the chunks' fault.
REFUSED_IN_A_ROW, SILENT_IN_A_ROW = 10, 3


@dataclass(frozen=True)
class Retry:
    """How often and how patiently. The n-th pause is between half and all of first * 2^n seconds, at most `longest`;
    where the server says how long to wait, that long. patience: a longer wait than this ends the run."""

    attempts: int = 10
    first: float = 0.5
    longest: float = 60.0
    patience: float = 600.0


class Unanswered(Exception):
    """This chunk got no answer. again: asking once more, later, may help."""

    def __init__(self, reason: str, again: bool):
        super().__init__(reason)
        self.again = again


class Stopped(Exception):
    """No further call is made."""


class _Fault(Exception):
    """A call that may be repeated. kind: for counting. wait: seconds that the server asked for."""

    def __init__(self, kind: str, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.kind, self.wait = kind, wait


class _BadRequest(Exception):
    """The server calls the request itself bad."""


class Model:
    """One model of one server, asked by many tasks of one event loop.

    Structured output (response_format json_schema) is asked for until the server refuses it where it answers without:
    said once. retries: calls that had to be repeated, by kind.
    """

    def __init__(
        self,
        server: Endpoint,
        name: str,
        *,
        temperature: float | None,
        response_format: dict[str, Any],
        timeout: float,
        retry: Retry,
    ):
        """temperature: None leaves it to the server. timeout: seconds for one whole answer."""
        import openai

        self._openai = openai
        self.server, self.name, self.timeout, self.retry = server, name, timeout, retry
        self._format = {"response_format": response_format}
        self._client = openai.AsyncOpenAI(
            api_key=server.key or "none",  # the client insists on one
            base_url=server.url,
            max_retries=0,
            timeout=openai.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout)),
        )
        self._more = {} if temperature is None else {"temperature": temperature}
        self._structured: bool | None = None  # None: not known yet
        self._stopping = asyncio.Event()
        self._not_before = 0.0  # time.monotonic() until which the server wants no call
        self._in_a_row: Counter[str] = Counter()
        self.retries: Counter[str] = Counter()
        self.heard = False  # whether the server has answered at all

    def stop(self) -> None:
        """Calls that are on their way finish; no other is made: `ask` raises Stopped."""
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    async def close(self) -> None:
        await self._client.close()

    async def ask(self, messages: list[dict[str, str]]) -> Answer:
        """The model's answer. Unanswered: not for this chunk. Stopped. BadInput, Failed: asking on is pointless."""
        last = ""
        for attempt in range(self.retry.attempts):
            await self._wait_turn()
            try:
                answer = await self._fitting(messages)
            except _BadRequest as error:
                self._count_in_a_row("refused", REFUSED_IN_A_ROW, str(error))
                raise Unanswered(f"refused by the server: {error}", again=False) from None
            except _Fault as fault:
                self.retries[fault.kind] += 1
                last = str(fault)
                await self._pause(attempt, fault)
                continue
            self._in_a_row.clear()
            self.heard = True
            return answer
        self._count_in_a_row("silent", SILENT_IN_A_ROW, last)
        raise Unanswered(f"no answer after {self.retry.attempts} calls: {last}", again=True)

    def _count_in_a_row(self, what: str, most: int, reason: str) -> None:
        self._in_a_row[what] += 1
        if self._in_a_row[what] >= most:
            raise Failed(f"{self.server.url} has no answer for {most} chunks in a row: {reason}")

    async def _wait_turn(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            await self._sleep(left * random.uniform(1, 1.25))  # not all at the same instant
        if self.stopping:
            raise Stopped

    async def _pause(self, attempt: int, fault: _Fault) -> None:
        if fault.wait is None:
            if attempt + 1 < self.retry.attempts:
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

    async def _fitting(self, messages: list[dict[str, str]]) -> Answer:
        """One call, with structured output where the server has it."""
        if self._structured is not False:
            try:
                answer = await self._call(messages, self._format)
                self._structured = True
                return answer
            except _BadRequest as error:
                if self._structured:
                    raise
                refusal = error
        answer = await self._call(messages, {})
        if self._structured is None:
            self._structured = False
            say(f"note: {self.server.url} takes no response_format json_schema ({refusal}); answers are read as text")
        return answer

    async def _call(self, messages: list[dict[str, str]], more: dict[str, Any]) -> Answer:
        openai = self._openai
        create = self._client.chat.completions.with_raw_response.create
        try:
            async with asyncio.timeout(self.timeout):  # the client's own limits a silence, not a trickle
                response = await create(model=self.name, messages=messages, **self._more, **more)
        except (TimeoutError, openai.APITimeoutError):
            raise _Fault("timeout", f"no answer within {self.timeout:g} s") from None
        except openai.APIStatusError as error:
            raise await self._of_status(error) from None
        except openai.APIConnectionError as error:
            raise self._of_connection(error) from None
        except openai.OpenAIError as error:
            raise Failed(f"{self.server.url}: {self._clean(error)}") from None
        return self._read(response)

    def _of_connection(self, error: Exception) -> Exception:
        cause = error.__cause__ or error
        reason = self._clean(cause) or type(cause).__name__
        if type(cause).__name__ == "ConnectError" and not self.heard:  # of httpx2, or httpx in older clients
            return Failed(f"cannot connect to {self.server.url}: {reason}; is the server up, and --base-url right?")
        return _Fault("connection", f"the connection broke: {reason}")

    async def _of_status(self, error: Any) -> Exception:
        """What an HTTP status of 300 or more means."""
        status, reason = error.status_code, self._clean(_said(error))
        told = f"{status}{f': {reason}' if reason else ''}"
        if status in (400, 413, 415, 422, 501):
            return _BadRequest(told)
        if status == 429 and error.code == "insufficient_quota":
            return Failed(f"{self.server.url} answers {told}; the account has no quota left")
        if status in (408, 409, 425, 429) or (status >= 500):
            return _Fault(str(status), f"the server answers {told}", _retry_after(error.response.headers))
        if status == 401:
            key = f"{self.server.key_name} is not accepted" if self.server.key else "it wants a key: set OPENAI_API_KEY"
            return BadInput(f"{self.server.url} answers {told}; {key}")
        if status == 403:
            return BadInput(f"{self.server.url} answers {told}; the key may not use {self.name!r}, or not from here")
        if status == 404:
            return BadInput(f"{self.server.url} answers {told}; {await self._models()}")
        return Failed(f"{self.server.url} answers {told}")

    async def _models(self) -> str:
        """What to do about a 404: the models that the server lists, where it does."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                names = [str(model.id) for model in (await self._client.models.list()).data]
        except Exception:  # only an explanation: whatever goes wrong here, the 404 is what counts
            names = []
        if not names:
            return "is --base-url right (it mostly ends in /v1)?"
        shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
        return self._clean(f"--model {self.name}: the server has {shown}.{nearest(self.name, names)}")

    def _read(self, response: Any) -> Answer:
        try:
            body = json.loads(response.http_response.text)
        except ValueError:
            kind = response.http_response.headers.get("content-type", "")
            if "json" not in kind and not self.heard:
                raise Failed(
                    f"{self.server.url} answers with {kind or 'something'} that is no JSON; is --base-url right (it "
                    "mostly ends in /v1)?"
                ) from None
            raise _Fault("no JSON", "the server's answer is no JSON") from None
        try:
            choice = body["choices"][0]
            message = choice["message"]
            content, refusal = _text(message.get("content")), _text(message.get("refusal"))
        except (KeyError, IndexError, TypeError, AttributeError):
            said = self._clean(str(body.get("error", "")) if isinstance(body, dict) else "")
            raise _Fault("no choices", f"the server's answer holds no message{f': {said}' if said else ''}") from None
        usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
        return Answer(
            self._no_key(content),
            self._no_key(refusal),
            str(choice.get("finish_reason") or ""),
            *(_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")),
            url=self.server.url,
        )

    def _no_key(self, text: str) -> str:
        """A server that echoes the key does not get it into the cache. A short one ("none", "EMPTY") is no secret, and
        taking it out would damage the text."""
        return without(text, self.server.key) if self.server.key and len(self.server.key) >= 16 else text

    def _clean(self, reason: object) -> str:
        text = " ".join(without(str(reason), self.server.key).split())
        return text if len(text) <= REASON_CHARACTERS else text[:REASON_CHARACTERS] + " …"


def _said(error: Any) -> str:
    """The server's own words: {"error": {"message": …}}, {"error": …}, {"detail": …}, or the body as it is."""
    body = error.body
    for key in ("message", "detail", "error"):
        if isinstance(body, dict) and body.get(key):
            return str(body[key])
    return "" if body is None else str(body)


def _text(content: Any) -> str:
    """A message's content: a text, a list of parts with texts, or nothing."""
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else json.dumps(content)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _retry_after(headers: Any) -> float | None:
    """Seconds to wait that a response asks for: Retry-After as a number or a date (RFC 9110, 10.2.3), or in ms."""
    with contextlib.suppress(KeyError, ValueError):
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    value = headers.get("retry-after")
    if value is None:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(value)) if math.isfinite(float(value)) else None
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def messages(system: str | None, prompt: str) -> list[dict[str, str]]:
    """What is sent for one chunk."""
    return ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": prompt}]


def told(retries: Counter[str] | Iterable[tuple[str, int]]) -> str:
    """Repeated calls in words: `429 x 12, timeout x 3`."""
    return ", ".join(f"{kind} x {count:,}" for kind, count in sorted(dict(retries).items()))
