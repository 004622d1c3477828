"""A model hub on loopback that holds one private model: the calls huggingface_hub makes to download it, counted."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.servers import running

REPOSITORY, COMMIT, TOKEN = "org/tiny", "a" * 40, "hf_right"


class Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Hub"

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, whole: bool) -> None:
        hub, (path, _, _) = self.server, self.path.partition("?")
        before, _, name = path.partition(f"/resolve/{COMMIT}/")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, b"", whole)
        if path.startswith(f"/api/models/{REPOSITORY}"):
            return self._send(200, json.dumps(hub.listing(path)).encode(), whole)
        if before != f"/{REPOSITORY}" or name not in hub.files:
            return self._send(404, b"", whole)
        hub.served[name] += whole
        return self._send(200, hub.files[name], whole)

    def _send(self, status: int, content: bytes, whole: bool) -> None:
        etag = hashlib.sha256(content).hexdigest()
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if asked and status == 200:  # bytes FIRST to LAST, or from FIRST on
            first, _, last = asked.partition("-")
            status, content = 206, content[int(first) : int(last) + 1 if last else None]
        self.server.bytes += len(content) if whole else 0
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if whole:
            self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass


class Hub(ThreadingHTTPServer):
    """files: what the model consists of. served: how often each was sent, whole or in part. bytes: sent in all."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Request)
        self.address = f"http://127.0.0.1:{self.server_port}"
        paths = [path for path in folder.rglob("*") if path.is_file()]
        self.files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        self.served: Counter = Counter()
        self.bytes = 0

    def listing(self, path: str):
        if "/tree/" in path:
            return [{"type": "file", "path": n, "size": len(data), "oid": "0" * 40} for n, data in self.files.items()]
        return {"id": REPOSITORY, "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]}


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    hub = Hub(folder)
    with running(hub):
        yield hub
