"""A local S3 stand-in for tests: moto's server, which needs an environment of its own.

botocore, which moto needs, wants python-dateutil below 3; kubernetes, which chromadb needs, wants 3 or newer. So:
python -m venv MOTO && MOTO/bin/pip install -r tests/moto.txt, and MOTO_SERVER=MOTO/bin/moto_server. `bash tests/run.sh`
does so. Versions of moto before 5.2.5 fail when a file is sent in parts.
"""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import Request, urlopen

import pytest

from tests.launching import free_port

KEY = "moto-secret-5d1f0b7a9c"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "moto",
    "AWS_SECRET_ACCESS_KEY": KEY,
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
HEADERS = {  # moto looks for a signature, and does not check it
    "Authorization": "AWS4-HMAC-SHA256 Credential=moto/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, "
    "Signature=0",
    "Content-Type": "application/octet-stream",
}


class Bucket:
    """A bucket of the stand-in, by plain HTTP. environment: of commands that use it."""

    def __init__(self, endpoint: str, name: str):
        self._root, self.url = f"{endpoint}/{name}", f"s3://{name}"
        self.environment = ENVIRONMENT | {"AWS_ENDPOINT_URL": endpoint}
        self._send("PUT", "")

    def _send(self, method: str, name: str, data: bytes | None = None) -> bytes:
        with urlopen(Request(f"{self._root}/{name}", data, HEADERS, method=method), timeout=60) as reply:
            return reply.read()

    def put(self, name: str, data: bytes) -> None:
        self._send("PUT", name, data)

    def get(self, name: str) -> bytes:
        return self._send("GET", name)

    def delete(self, name: str) -> None:
        self._send("DELETE", name)


@contextmanager
def bucket(name: str = "data") -> Iterator[Bucket]:
    """Starts the server and yields a new bucket; skips the test where there is no server."""
    program = os.environ.get("MOTO_SERVER")
    if program is None:
        pytest.skip("MOTO_SERVER names no moto_server (tests/object_store.py)")
    port = free_port()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], **quiet)
    try:
        _wait_for(server, port)
        yield Bucket(f"http://127.0.0.1:{port}", name)
    finally:
        server.kill()
        server.wait()


def _wait_for(server: subprocess.Popen, port: int, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert server.poll() is None and time.monotonic() < end, "moto_server did not start"
            time.sleep(0.02)
