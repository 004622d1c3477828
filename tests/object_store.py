"""Local object stores for tests: moto's server for s3://, gcp-storage-emulator for gs://.

They are in an environment of their own: botocore, which moto needs, wants python-dateutil below 3; kubernetes, which
chromadb needs, wants 3 or newer. So: python -m venv STORES && STORES/bin/pip install -r tests/object_stores.txt, and
OBJECT_STORES=STORES. `bash tests/run.sh` does so. Versions of moto before 5.2.5 fail when a file is sent in parts.
"""

import http.client
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest

from tests.launching import free_port
from tests.servers import answering

SECRET = "store-secret-5d1f0b7a9c"
S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "moto",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
S3_HEADERS = {  # moto looks for a signature, and does not check it
    "Authorization": "AWS4-HMAC-SHA256 Credential=moto/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, "
    "Signature=0",
    "Content-Type": "application/octet-stream",
}
S3_CALLS = {verb: (verb, "/data/{}") for verb in ("PUT", "GET", "DELETE")}
GS_CALLS = {
    "PUT": ("POST", "/upload/storage/v1/b/data/o?uploadType=media&name={}"),
    "GET": ("GET", "/storage/v1/b/data/o/{}?alt=media"),
    "DELETE": ("DELETE", "/storage/v1/b/data/o/{}"),
}


class Bucket:
    """The bucket `data` of a stand-in, by plain HTTP. environment: of commands that use it; calls: (method, path)."""

    def __init__(self, scheme: str, port: int, calls: dict[str, tuple[str, str]], environment: dict[str, str]):
        self.url, self._port, self._calls = f"{scheme}://data", port, calls
        self.environment = environment

    def _send(self, verb: str, name: str, data: bytes | None = None) -> bytes:
        method, path = self._calls[verb]
        address = f"http://127.0.0.1:{self._port}{path.format(quote(name, safe=''))}"
        with urlopen(Request(address, data, S3_HEADERS, method=method), timeout=60) as reply:
            return reply.read()

    def put(self, name: str, data: bytes) -> None:
        self._send("PUT", name, data)

    def get(self, name: str) -> bytes:
        return self._send("GET", name)

    def delete(self, name: str) -> None:
        self._send("DELETE", name)


@contextmanager
def s3_bucket() -> Iterator[Bucket]:
    """Starts moto's server and yields a new bucket; skips the test where there is no server."""
    port = free_port()
    with _server(port, "moto_server", "-H", "127.0.0.1", "-p", str(port)):
        environment = S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        bucket = Bucket("s3", port, S3_CALLS, environment)
        bucket.put("", b"")  # makes it
        yield bucket


@contextmanager
def gs_bucket(folder: Path) -> Iterator[Bucket]:
    """Starts the emulator of Google's store, and a server before it that hands out tokens and cuts ranges of bytes,
    which the emulator ignores. Commands authenticate with a file of a user's credentials, as gcloud writes it."""
    port = free_port()
    words = ("start", "--host", "127.0.0.1", "--port", str(port), "--default-bucket", "data", "--in-memory")
    with _server(port, "gcp-storage-emulator", *words), answering(_ranges(port)) as gate:
        credentials = {"type": "authorized_user", "client_id": "client", "client_secret": SECRET}
        credentials |= {"refresh_token": SECRET, "token_uri": f"http://127.0.0.1:{gate}/token"}
        (folder / "credentials.json").write_text(json.dumps(credentials))
        environment = {"GOOGLE_APPLICATION_CREDENTIALS": str(folder / "credentials.json")}
        environment["CLOUD_STORAGE_EMULATOR_ENDPOINT"] = f"http://127.0.0.1:{gate}"
        yield Bucket("gs", port, GS_CALLS, environment)


def _ranges(port: int):
    def answer(request, body: bytes) -> tuple[int, str, bytes, dict[str, str]]:
        if request.path == "/token":
            token = {"access_token": f"token-of-{SECRET}", "expires_in": 3600, "token_type": "Bearer"}
            return 200, "application/json", json.dumps(token).encode(), {}
        if request.headers["Authorization"] != f"Bearer token-of-{SECRET}":
            return 401, "text/plain", b"no token", {}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        dropped = ("host", "range", "content-length", "transfer-encoding")
        headers = {name: value for name, value in request.headers.items() if name.lower() not in dropped}
        connection.request(request.command, request.path, body or None, headers)
        reply = connection.getresponse()
        data, kind = reply.read(), reply.headers.get("Content-Type", "application/octet-stream")
        more = {name: reply.headers[name] for name in ("Location", "Range") if name in reply.headers}
        connection.close()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if reply.status != 200 or not wanted:
            return reply.status, kind, data, more
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        return 206, kind, data[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(data)}"}

    return answer


@contextmanager
def _server(port: int, program: str, *arguments: str, seconds: float = 300) -> Iterator[None]:
    folder = os.environ.get("OBJECT_STORES")
    if folder is None:
        pytest.skip(f"OBJECT_STORES names no environment with {program} (tests/object_store.py)")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([Path(folder) / "bin" / program, *arguments], **quiet)
    try:
        end = time.monotonic() + seconds
        while not _listens(port):
            assert server.poll() is None and time.monotonic() < end, f"{program} did not start"
            time.sleep(0.02)
        yield
    finally:
        server.kill()
        server.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False
