"""A model hub on loopback: the calls that huggingface_hub makes to upload a folder, answered as the hub answers them.

Large files go by git-lfs (the protocol's `basic` transfer), the others in the commit. What the hub would hold
afterwards is in `files`; every request is in `requests`.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

from tests.servers import running

LARGE = (".safetensors", ".onnx")
TOKEN = "hf_planted_secret_0123456789"


class Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Hub"

    def do_POST(self) -> None:
        body = self._body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": f"Invalid credentials: {self.headers.get('Authorization')}"}, 401)
        hub, path = self.server, self.path.partition("?")[0]
        if path == "/api/repos/create":
            hub.created = json.loads(body)
            return self._answer({"url": f"{hub.address}/{hub.repository}", "id": "1", "name": hub.repository})
        if path == f"/api/models/{hub.repository}/preupload/main":
            modes = [(f["path"], "lfs" if f["path"].endswith(LARGE) else "regular") for f in json.loads(body)["files"]]
            files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes]
            return self._answer({"files": files})
        if path == f"/{hub.repository}.git/info/lfs/objects/batch":
            objects = [self._upload(entry["oid"], entry["size"]) for entry in json.loads(body)["objects"]]
            return self._answer({"transfer": "basic", "objects": objects})
        if path == f"/api/models/{hub.repository}/commit/main":
            return self._commit([json.loads(line) for line in body.decode().splitlines()])
        if path == "/api/validate-yaml":
            head = yaml.safe_load(json.loads(body)["content"].split("---")[1])
            errors = [] if head.get("library_name") else [{"message": "no library_name"}]
            return self._answer({"errors": errors, "warnings": []})
        if path == "/verify":
            return self._answer({})
        return self._answer({"error": "not found"}, 404)

    def do_PUT(self) -> None:
        """A large file's bytes: at an address that was given out, so without the token."""
        body, oid = self._body(), self.path.removeprefix("/lfs/")
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.large[oid] = body
        self._answer({})

    def do_GET(self) -> None:
        self._body()
        self._answer({"error": "not found"}, 404)

    def _upload(self, oid: str, size: int) -> dict:
        address = self.server.address
        actions = {"upload": {"href": f"{address}/lfs/{oid}"}, "verify": {"href": f"{address}/verify"}}
        return {"oid": oid, "size": size, "authenticated": True, "actions": actions}

    def _commit(self, lines: list[dict]) -> None:
        hub = self.server
        hub.message = next(line["value"]["summary"] for line in lines if line["key"] == "header")
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                hub.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                hub.files[value["path"]] = hub.large[value["oid"]]
        address = f"{hub.address}/{hub.repository}/commit/c0ffee"
        self._answer({"success": True, "commitUrl": address, "commitOid": "c0ffee", "hookOutput": ""})

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, self.path))
        return body

    def _answer(self, values: dict, status: int = 200) -> None:
        body = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, repository: str):
        super().__init__(("127.0.0.1", 0), Request)
        self.repository = repository
        self.files: dict[str, bytes] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.created: dict = {}
        self.message = ""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving_hub(repository: str) -> Iterator[Hub]:
    hub = Hub(repository)
    with running(hub):
        yield hub
