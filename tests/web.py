"""Web servers for tests: real HTTP on loopback, with the misbehaviour that a crawler meets, and a log of requests."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.servers import running

Handler = Callable[["Request"], None]
GLOSSARY = "<h1>Glossary</h1><dl class='glossary'><dt>{0}</dt><dd>What {0} means.</dd></dl>"


class Request(BaseHTTPRequestHandler):
    """The request that a route answers: `send` in one go; everything of BaseHTTPRequestHandler is there for worse."""

    protocol_version = "HTTP/1.1"
    server: "Web"

    def do_GET(self) -> None:
        self.close_connection = True
        path = self.path.partition("?")[0]
        with self.server.lock:
            self.server.requests.append((time.monotonic(), self.path, dict(self.headers)))
        try:
            route = self.server.routes.get(path)
            route(self) if route else self.send(b"", status=404)
        except (BrokenPipeError, ConnectionResetError):  # the crawler has seen enough
            self.server.hung_up.append(path)

    def send(self, body: bytes | str, content_type: str = "text/html; charset=utf-8", status: int = 200, **headers):
        body = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def redirect(self, location: str, status: int = 302) -> None:
        self.send(b"", status=status, Location=location)

    def log_message(self, *args) -> None:
        pass


class Web(ThreadingHTTPServer):
    """routes: path -> handler; requests: (time, path with query, headers) of each; hung_up: paths whose answer the
    client did not read to its end; sent: bytes of large answers."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, routes: dict[str, Handler]):
        super().__init__(("127.0.0.1", 0), Request)
        self.routes, self.lock = routes, threading.Lock()
        self.requests: list[tuple[float, str, dict]] = []
        self.hung_up: list[str] = []
        self.sent: dict[str, int] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def counts(self) -> Counter:
        with self.lock:
            return Counter(path for _, path, _ in self.requests)


@contextmanager
def serving(routes: dict[str, Handler]) -> Iterator[Web]:
    server = Web(routes)
    with running(server):
        yield server


def page(term: str) -> Handler:
    return lambda request: request.send(GLOSSARY.format(term))
