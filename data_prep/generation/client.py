"""A chat model that is asked about chunks, with structured output where the server supports it."""

import json
import re
from typing import Any

from data_prep.common.console import say
from data_prep.generation.answer import Answer
from data_prep.generation.answer_parser import is_thought
from data_prep.model_server.client import BadRequest, Client, Retry, count_of
from data_prep.model_server.endpoint import Endpoint, Pace


class Model(Client):
    """One chat model of one server.

    Calls ask for structured output (response_format json_schema) until the server refuses it and answers without it;
    this is reported once. A server that fails with it and answers without it twice does not support it either.
    """

    name_flag, thing, lacking, lacks = "--model", "chunk", "no choices", "no message"
    otherwise = ", or take pairs from the texts alone: --offline"

    def __init__(
        self,
        server: Endpoint,
        name: str,
        *,
        temperature: float | None,
        response_format: dict[str, Any],
        timeout: float,
        retry: Retry,
        pace: Pace | None = None,
    ):
        """temperature: None leaves it to the server. timeout: seconds for one whole answer. pace: None: no limit."""
        super().__init__(server, name, timeout, retry, pace)
        self._format = {"response_format": response_format}
        self._more = {} if temperature is None else {"temperature": temperature}
        self._structured: bool | None = None  # None: unknown
        self._failed_structured = 0  # chunks that failed with structured output and were answered without
        self._thoughts_only = False  # reported

    @property
    def known(self) -> bool:
        """True once the server has answered and it is known if it supports structured output."""
        return self.heard and self._structured is not None

    async def once(self, request: list[dict[str, str]], failed: str) -> Answer:
        """Makes one call, with structured output if the server supports it. request: messages."""
        refusal, plain = failed, self._structured is False or (self._structured is None and failed)
        if not plain:
            try:
                answer = await self._call(request, self._format)
                self._structured = True
                return answer
            except BadRequest as error:
                if self._structured:
                    raise
                refusal = str(error)
        answer = await self._call(request, {})
        if self._structured is None:
            self._failed_structured += 1
            if not failed or self._failed_structured > 1:
                self._structured = False
                reason = f"takes no response_format json_schema ({refusal})"
                say(f"note: {self.server.url} {reason}; answers are read as text")
        return answer

    async def _call(self, messages: list[dict[str, str]], more: dict[str, Any]) -> Answer:
        create = self._client.chat.completions.with_raw_response.create
        return await self.call(create, messages=messages, **self._more, **more)

    def pick(self, body: Any, sent: dict[str, Any]) -> tuple[dict[str, Any], str, str, str]:
        """Returns message, content, refusal and finish_reason."""
        choice = body["choices"][0]
        message = choice["message"]
        finish = str(choice.get("finish_reason") or "")
        return message, _text(message.get("content")), _text(message.get("refusal")), finish

    def answer(self, picked: tuple[dict[str, Any], str, str, str], usage: dict[str, Any]) -> Answer:
        message, content, refusal, finish = picked
        if not content and not refusal:
            self._note_thoughts(message)
        tokens = (count_of(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
        return Answer(self.no_key(content), self.no_key(refusal), finish, *tokens, url=self.server.url)

    def _note_thoughts(self, message: dict[str, Any]) -> None:
        fields = sorted(name for name, value in message.items() if value and is_thought(name))
        if fields and not self._thoughts_only:
            self._thoughts_only = True
            say(
                f"note: {self.server.url} answers with a thought ({', '.join(fields)}) and no text; thoughts are not "
                "read: raise the server's limit of tokens, or turn its reasoning parser off"
            )


def _text(content: Any) -> str:
    """Returns the text of a message's content: a text, a list of parts with texts, or nothing. Thoughts are no text."""
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(map(_part, content))
    return content if isinstance(content, str) else json.dumps(content)


def _part(part: Any) -> str:
    if not isinstance(part, dict):
        return part if isinstance(part, str) else ""
    kind = re.sub(
        r"[-_.](?:text|content|delta|summary)$|^(?:redacted|summary)[-_.]", "", str(part.get("type") or "text")
    )
    if part.get("thought") is True or is_thought(kind):
        return ""
    return str(part.get("text") or "")


def messages(system: str | None, prompt: str) -> list[dict[str, str]]:
    """Returns the messages to send for one chunk."""
    return ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": prompt}]
