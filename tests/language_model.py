"""An OpenAI-compatible server on loopback that fails on a seeded schedule and keeps a log of every call."""

import json
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data_prep.stores.base import Chunk
from tests.servers import running

KEY = "sk-test-7f3c9b1e5d8a4260"
MODEL = "tiny-asker"
FAULTS = ("429", "500", "503", "timeout", "half-closed", "dropped", "error in 200")
FORMS = (
    "plain",
    "fenced",
    "chatty",
    "thinking",
    "lines",
    "sloppy",
    "truncated",
    "wrong types",
    "empty list",
    "refusal",
)
HOPELESS = ("wrong types", "empty list", "refusal")  # answers that hold no pair
TOKENS_IN, TOKENS_OUT = 100, 20


def chunk(number: int) -> Chunk:
    """A chunk that the server can tell from others."""
    text = f"[c{number}] The valve {number} opens at {number + 3} bar. It is checked every {number + 2} days."
    return Chunk(f"doc-{number}", text, {"page": number})


def pairs(name: str) -> list[dict[str, str]]:
    """The question that the server asks about a chunk."""
    number = int(name[1:])
    return [
        {"question": f"At what pressure does valve {number} open?", "answer": f'At "{number + 3} bar", fully.'},
        {"question": f"How often is valve {number} checked?", "answer": f"Every {number + 2} days,\nor sooner."},
    ]


def content(name: str, form: str) -> str | None:
    """A chunk's pairs as a model of this form writes them."""
    plain = json.dumps({"pairs": pairs(name)})
    first, second = (json.dumps(pair) for pair in pairs(name))
    return {
        "plain": plain,
        "fenced": f"```json\n{plain}\n```",
        "chatty": f"Sure! Here are [2] questions (as JSON):\n{plain}\nI hope {{this}} helps :]",
        "thinking": f"<think>Maybe {first}? No.</think>\n{plain}",
        "lines": f"{first}\n{second}",
        "sloppy": f"[{first[:-1]},}}, {second},]",
        "truncated": plain[: plain.rindex("Every") + 9],
        "wrong types": json.dumps([{"question": ["What?"], "answer": 3}, "text", None]),
        "empty list": "[]",
        "refusal": None,
    }[form]


def expected(name: str, form: str) -> list[tuple[str, str]]:
    """The pairs that have to come out."""
    whole = [(pair["question"], pair["answer"]) for pair in pairs(name)]
    return [] if form in HOPELESS else whole[:1] if form == "truncated" else whole


@dataclass
class Call:
    """One request. outcome: "arrived" until it is known; "answered" once a whole answer was written to the socket."""

    at: float
    chunk: str
    outcome: str = "arrived"
    structured: bool = False
    body: dict = field(default_factory=dict)


class LanguageModel:
    """share: of calls that fail, drawn by (seed, chunk, number of the call). forms: of answers, drawn by (seed, chunk).
    script: what the calls about a chunk get one after the other, the last again and again; "*" for every other chunk.
    structured: whether the server takes, ignores, refuses or crashes at response_format (500, maybe with a reason).
    elsewhere: what calls outside of /v1 get: "404", or "200 error" as from LM Studio. slow: seconds of a "timeout";
    delay: of an answer."""

    path = "/v1/chat/completions"

    def __init__(
        self,
        *,
        seed: int = 0,
        share: float = 0.0,
        faults: tuple[str, ...] = FAULTS,
        forms: tuple[str, ...] = ("plain",),
        structured: str = "take",
        elsewhere: str = "404",
        retry_after: str = "0.05",
        slow: float = 2.0,
        delay: float = 0.0,
        script: dict[str, list[str]] | None = None,
        key: str = KEY,
    ):
        self.seed, self.share, self.faults, self.forms, self.structured = seed, share, faults, forms, structured
        self.elsewhere = elsewhere
        self.retry_after, self.slow, self.delay, self.script, self.key = retry_after, slow, delay, script or {}, key
        self.calls: list[Call] = []
        self.lock = threading.Condition()
        self.closing = threading.Event()
        self.most_at_once = self._at_once = 0

    def name_of(self, body: dict) -> str:
        """The chunk that a request is about."""
        name = re.search(r"\[(c\d+)\]", body["messages"][-1]["content"])
        return name[1] if name else "?"

    def whole(self, handler: "_Handler", call: Call) -> dict:
        """The body of a whole answer."""
        return handler._completion(self, call.chunk)

    def form(self, name: str) -> str:
        return random.Random(f"{self.seed}:{name}").choice(self.forms)

    def outcome(self, name: str, number: int) -> str:
        """Returns the answer to the number-th call about a chunk."""
        if script := self.script.get(name) or self.script.get("*"):
            return script[min(number, len(script) - 1)]
        draw = random.Random(f"{self.seed}:{name}:{number}")
        return draw.choice(self.faults) if draw.random() < self.share else "answered"

    def counts(self) -> Counter:
        with self.lock:
            return Counter(call.outcome for call in self.calls)

    def wait_for_answers(self, count: int, seconds: float = 60) -> None:
        """Returns once so many whole answers were sent."""
        with self.lock:
            reached = self.lock.wait_for(lambda: sum(c.outcome == "answered" for c in self.calls) >= count, seconds)
        assert reached, self.counts()

    def of(self, name: str) -> list[Call]:
        with self.lock:
            return [call for call in self.calls if call.chunk == name]

    def repeated(self) -> list[str]:
        """Chunks of calls that came after a whole answer about the same chunk."""
        done, again = set(), []
        with self.lock:
            for call in self.calls:
                if call.chunk in done:
                    again.append(call.chunk)
                if call.outcome == "answered":
                    done.add(call.chunk)
        return again

    def begin(self, name: str, body: dict) -> tuple[Call, str]:
        with self.lock:
            outcome = self.outcome(name, sum(call.chunk == name for call in self.calls))
            call = Call(time.monotonic(), name, structured="response_format" in body, body=body)
            self.calls.append(call)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self.lock.notify_all()
        return call, outcome

    def end(self, call: Call, outcome: str) -> None:
        with self.lock:
            call.outcome = outcome
            self._at_once -= 1
            self.lock.notify_all()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            return self._elsewhere()
        self._json(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def _elsewhere(self) -> None:
        if self.server.model.elsewhere == "200 error":
            self._json(200, {"error": f"Unexpected endpoint or method. ({self.command} {self.path})"})
        else:
            self._json(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        server: LanguageModel = self.server.model
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        call, outcome = server.begin(server.name_of(body), body)
        if key != server.key:
            outcome = "401"
        elif not self.path.startswith("/v1/"):
            outcome = "elsewhere"
        elif self.path != server.path or body["model"] != MODEL:
            outcome = "404"
        elif server.structured == "refuse" and call.structured:
            outcome = "400 response_format"
        elif server.structured.startswith("crash") and call.structured:
            outcome = f"500{server.structured.removeprefix('crash')}"
        try:
            self._answer(server, call, outcome, key)
        except OSError:  # the client is gone: its own timeout, or killed
            outcome = "gone"
        server.end(call, outcome)

    def _answer(self, server: LanguageModel, call: Call, outcome: str, key: str) -> None:
        if outcome == "answered":
            server.closing.wait(server.delay)
            self._json(200, server.whole(self, call))
        elif outcome == "elsewhere":
            self._elsewhere()
        elif outcome == "timeout":
            server.closing.wait(server.slow)
            self.close_connection = True
        elif outcome == "dropped":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif outcome == "half-closed":
            data = json.dumps(server.whole(self, call)).encode()
            self._head(200, len(data))
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            self.close_connection = True
        elif outcome == "error in 200":
            self._json(200, {"error": {"message": f"upstream failed for {key}", "code": 502}})
        elif outcome.startswith("200 "):
            self._json(200, json.loads(outcome[4:]))
        elif outcome == "html":
            self._head(200, 15, "text/html")
            self.wfile.write(b"<html>hi</html>")
        else:
            status, _, about = outcome.partition(" ")
            error = {"message": f"{status} for key {key} {about}".strip(), "code": about or None}
            after = {"Retry-After": server.retry_after} if status in ("429", "503") else {}
            self._json(int(status), {"error": error}, after)

    def _completion(self, server: LanguageModel, name: str) -> dict:
        form = server.form(name)
        message = {"role": "assistant", "content": content(name, form)}
        if form == "refusal":
            message["refusal"] = "I cannot help with that."
        finish = "length" if form == "truncated" else "stop"
        return {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": MODEL,
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": TOKENS_IN, "completion_tokens": TOKENS_OUT, "total_tokens": 120},
        }

    def _json(self, status: int, value: dict, headers: dict | None = None) -> None:
        data = json.dumps(value).encode()
        self._head(status, len(data), headers=headers)
        self.wfile.write(data)
        self.wfile.flush()

    def _head(self, status: int, length: int, kind: str = "application/json", headers: dict | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(length), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_) -> None:  # clients that are killed reset their connections
        pass


@contextmanager
def serving(model: LanguageModel, port: int = 0) -> Iterator[str]:
    """The model behind a socket; yields its base URL."""
    server = _Server(("127.0.0.1", port), _Handler)
    server.model = model
    with running(server):
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            model.closing.set()


def use_own_key(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Sets the key of the test server, and works in a folder without the .env of whoever runs the tests."""
    monkeypatch.chdir(folder)
    for name in ("OPENAI_BASE_URL", "YC_OPENAI_API_KEY", "YC_OPENAI_API_BASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def files_with_key(folder: Path) -> list[str]:
    """Returns the files of a folder that hold the key of the test server."""
    return [str(file) for file in folder.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()]
