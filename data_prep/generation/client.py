"""A model behind an OpenAI-compatible server: calls, retries, limits. Only this file imports openai.

The client's own retries are off, so that every repeated call is counted here and stopped by Ctrl-C.
"""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from data_prep.common.console import EVERY_SECONDS, say
from data_prep.common.errors import BadInput, Failed, nearest
from data_prep.common.retry_after import retry_after
from data_prep.common.secrets import without
from data_prep.generation.answer_cache import Answer
from data_prep.generation.endpoint import Endpoint

CONNECT_SECONDS = 10.0
REASON_CHARACTERS = 300
# After so many refused, or unanswered, chunks without any answer between them, the fault is not the chunks'.
REFUSED_IN_A_ROW, SILENT_IN_A_ROW = 10, 3


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
    """A chunk got no answer. again: a later call may succeed."""

    def __init__(self, reason: str, again: bool):
        super().__init__(reason)
        self.again = again


class Stopped(Exception):
    """The run stops: no further call is made."""


class _Fault(Exception):
    """A failed call that may be repeated. kind: for counting. wait: seconds that the server asked for."""

    def __init__(self, kind: str, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.kind, self.wait = kind, wait


class _BadRequest(Exception):
    """The server rejects the request itself."""


class Model:
    """One model of one server, called by many tasks of one event loop.

    Calls ask for structured output (response_format json_schema) until the server refuses it and answers without it;
    this is reported once.
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
        self._structured: bool | None = None  # None: unknown
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

    async def close(self) -> None:
        await self._client.close()

    async def ask(self, messages: list[dict[str, str]]) -> Answer:
        """Returns the model's answer. Unanswered, Stopped; BadInput, Failed: no call would succeed."""
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
        """Makes one call, with structured output if the server supports it."""
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
        status, reason = error.status_code, self._clean(_reason(error))
        reply = f"{status}{f': {reason}' if reason else ''}"
        if status in (400, 413, 415, 422, 501):
            return _BadRequest(reply)
        if status == 429 and error.code == "insufficient_quota":
            return Failed(f"{self.server.url} answers {reply}; the account has no quota left")
        if status in (408, 409, 425, 429) or status >= 500:
            return _Fault(str(status), f"the server answers {reply}", _wait_of(error.response.headers))
        if status == 401:
            key = f"{self.server.key_name} is not accepted" if self.server.key else "it wants a key: set OPENAI_API_KEY"
            return BadInput(f"{self.server.url} answers {reply}; {key}")
        if status == 403:
            return BadInput(f"{self.server.url} answers {reply}; the key may not use {self.name!r}, or not from here")
        if status == 404:
            return BadInput(f"{self.server.url} answers {reply}; {await self._models()}")
        return Failed(f"{self.server.url} answers {reply}")

    async def _models(self) -> str:
        """Returns the hint for a 404: the server's models, if it lists them."""
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
            reason = self._clean(str(body.get("error", "")) if isinstance(body, dict) else "")
            lack = f"the server's answer holds no message{f': {reason}' if reason else ''}"
            raise _Fault("no choices", lack) from None
        usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
        return Answer(
            self._no_key(content),
            self._no_key(refusal),
            str(choice.get("finish_reason") or ""),
            *(_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")),
            url=self.server.url,
        )

    def _no_key(self, text: str) -> str:
        """Removes a key that the server echoes. A short one ("none", "EMPTY") is no secret and may be a word."""
        return without(text, self.server.key) if self.server.key and len(self.server.key) >= 16 else text

    def _clean(self, reason: object) -> str:
        text = " ".join(without(str(reason), self.server.key).split())
        return text if len(text) <= REASON_CHARACTERS else text[:REASON_CHARACTERS] + " …"


def _reason(error: Any) -> str:
    """Returns the server's message: {"error": {"message": …}}, {"error": …}, {"detail": …}, or the whole body."""
    body = error.body
    for key in ("message", "detail", "error"):
        if isinstance(body, dict) and body.get(key):
            return str(body[key])
    return "" if body is None else str(body)


def _text(content: Any) -> str:
    """Returns the text of a message's content: a text, a list of parts with texts, or nothing."""
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else json.dumps(content)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _wait_of(headers: Any) -> float | None:
    """Returns the seconds that a response asks to wait: retry-after-ms or Retry-After."""
    with contextlib.suppress(KeyError, ValueError):
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    return retry_after(headers.get("retry-after", ""))


def messages(system: str | None, prompt: str) -> list[dict[str, str]]:
    """Returns the messages to send for one chunk."""
    return ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": prompt}]
