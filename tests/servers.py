"""Stores behind real sockets, for tests: Chroma's own server, a gate before it (token, TLS), Qdrant's protocol."""

import http.client
import json
import re
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.launching import environment, free_port

READY_SECONDS = 60


@contextmanager
def chroma_server(folder: Path) -> Iterator[tuple[int, int]]:
    """`chroma run` on a free port; yields port and process id once it answers."""
    port = free_port()
    chroma = Path(sys.executable).with_name("chroma")
    command = [str(chroma), "run", "--path", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as server:
        try:
            deadline = time.monotonic() + READY_SECONDS
            while not _answers(port):
                assert server.poll() is None, server.stderr.read().decode()
                assert time.monotonic() < deadline, "chroma run does not answer"
                time.sleep(0.05)
            yield port, server.pid
        finally:
            server.terminate()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/api/v2/heartbeat")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, kind, answer, *more = self.server.answer(self, body)
        self.send_response(status)
        for name, value in dict(*more).items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _any

    def log_message(self, *_) -> None:
        pass


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[None]:
    """The server answers, in a thread, while the block runs, and is closed afterwards."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def answering(answer: Callable, certificate: Path | None = None) -> Iterator[int]:
    """An HTTP server on a free port; answer(request, body) -> (status, content type, bytes[, headers]). With a
    certificate (and its key beside it) it speaks TLS."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.answer, server.daemon_threads = answer, True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        server.socket = context.wrap_socket(server.socket, server_side=True)
    with running(server):
        yield server.server_port


@contextmanager
def gate(port: int, token: str, certificate: Path | None = None) -> Iterator[int]:
    """A proxy before a server on `port` that wants a bearer token, as people put before Chroma, which has none."""

    def answer(request, body: bytes) -> tuple[int, str, bytes]:
        if request.headers.get("Authorization") != f"Bearer {token}":
            return 401, "application/json", json.dumps({"error": f"bad {request.headers['Authorization']}"}).encode()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        headers = {"Content-Type": "application/json"}
        connection.request(request.command, request.path, body or None, headers)
        response = connection.getresponse()
        got = response.status, response.headers.get("Content-Type", ""), response.read()
        connection.close()
        return got

    with answering(answer, certificate) as own:
        yield own


# as a server of Qdrant sets them where nobody says otherwise
QDRANT_DEFAULTS = {
    "params": {"shard_number": 1, "replication_factor": 1, "write_consistency_factor": 1, "on_disk_payload": True},
    "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000, "max_indexing_threads": 0},
    "optimizer_config": {"deleted_threshold": 0.2, "default_segment_number": 0, "flush_interval_sec": 5},
    "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0},
}


class QdrantProtocol:
    """The part of Qdrant's REST protocol that is used, answered from the client library's own local engine.

    Settings, which that engine ignores, are kept as they are told, and what the schema of the API forbids is refused.

    No server binary is at hand in CI: this checks paths, bodies, headers and answers of the REST client, and that they
    mean the same as local mode; not the server's own behaviour.
    """

    def __init__(
        self,
        key: str | None = None,
        drop_metadata: bool = False,
        forgets: str | None = None,
        version: str = "1.20.0",
        allowed: int | None = None,
    ):
        """allowed: requests between two that are answered by "too many, wait a second"."""
        from qdrant_client import QdrantClient, models

        self.local, self.models = QdrantClient(":memory:"), models
        self.key, self.drop_metadata, self.forgets = key, drop_metadata, forgets
        self.version, self.allowed, self.left, self.busy = version, allowed, allowed, 0
        self.made: dict[str, dict] = {}  # collection -> the settings that were given, as get_collection returns them
        self.requests: list[str] = []
        self.lock = threading.Lock()

    def __call__(self, request, body: bytes) -> tuple[int, str, bytes]:
        path = request.path.partition("?")[0]
        self.requests.append(f"{request.command} {path}")
        if self.key and request.headers.get("api-key") != self.key:
            return _json(403, {"status": {"error": "Forbidden"}, "time": 0.0})
        if self.allowed is not None:
            self.left -= 1
            if self.left < 0:
                self.left = self.allowed
                return *_json(429, {"status": {"error": "Rate limit exceeded"}, "time": 0.0}), {"Retry-After": "1"}
        try:
            with self.lock:
                result = self._result(request.command, path, json.loads(body or b"{}"))
        except KeyError as error:
            return _json(404, {"status": {"error": f"Not found: No point with id {error} found"}, "time": 0.0})
        except (ValueError, TypeError) as error:
            status = 404 if "not found" in str(error) else 400
            return _json(status, {"status": {"error": str(error)}, "time": 0.0})
        if path == "/":
            return _json(200, result)
        return _json(200, {"result": result, "status": "ok", "time": 0.0})

    def _result(self, method: str, path: str, body: dict):
        local, models = self.local, self.models
        match = re.fullmatch(r"/collections/([^/]+)(/.*)?", path)
        name, rest = (match[1], match[2] or "") if match else ("", path)
        key = f"{method} {rest}"
        self._check_strict(name, key, body)
        if path == "/":
            return {"title": "stand-in", "version": self.version}
        if path == "/collections":
            return _plain(local.get_collections())
        if path == "/aliases":
            return _plain(local.get_aliases())
        if path == "/collections/aliases":
            operations = models.ChangeAliasesOperation(**body).actions
            return local.update_collection_aliases(operations)
        if key == "GET ":
            return self._info(name)
        if key == "PUT ":
            made = models.CreateCollection(**body)
            about = None if self.drop_metadata else made.metadata
            self.made[name] = {"indexes": {}, **self._settings(made)}
            return local.create_collection(
                name, vectors_config=made.vectors, sparse_vectors_config=made.sparse_vectors, metadata=about
            )
        if key == "PUT /index":
            return self._index(name, models.CreateFieldIndex(**body))
        if key == "PATCH ":
            asked = models.UpdateCollection(**body)
            if asked.params:
                self.made[name]["params"] |= _given(asked.params)
            if asked.strict_mode_config:
                self.made[name]["strict_mode_config"] = _given(asked.strict_mode_config)
            for vector, diff in (_given(asked).get("vectors") or {}).items():
                self.made[name]["params"]["vectors"][vector] |= diff
            return local.update_collection(name, metadata=asked.metadata) if asked.metadata else True
        if key == "POST /points/delete":
            return _plain(local.delete(name, models.PointIdsList(**body)))
        if key == "DELETE ":
            self.made.pop(name, None)
            return local.delete_collection(name)
        if key == "POST /points/scroll":
            asked = models.ScrollRequest(**body)
            options = {"with_payload": asked.with_payload, "with_vectors": asked.with_vector}
            points, following = local.scroll(name, asked.filter, asked.limit, None, asked.offset, **options)
            return {"points": [_plain(point) for point in points], "next_page_offset": following}
        if key == "POST /points/count":
            asked = models.CountRequest(**body)
            return _plain(local.count(name, asked.filter))
        if key == "POST /points":
            asked = models.PointRequest(**body)
            options = {"with_payload": asked.with_payload, "with_vectors": asked.with_vector}
            return [_plain(point) for point in local.retrieve(name, asked.ids, **options)]
        if key == "PUT /points":
            return _plain(local.upsert(name, models.PointsList(**body).points))
        if key == "POST /points/payload":
            asked = models.SetPayload(**body)
            return _plain(local.set_payload(name, asked.payload, asked.points))
        if key == "PUT /points/vectors":
            return _plain(local.update_vectors(name, models.UpdateVectors(**body).points))
        if key == "POST /points/vectors/delete":
            asked = models.DeleteVectors(**body)
            return _plain(local.delete_vectors(name, asked.vector, asked.points))
        if (added := re.fullmatch(r"PUT /vectors/([^/]+)", key)) and self.version >= "1.18":
            return self._add_vector(name, added[1], models.DenseVectorNameConfig(**body))
        if key == "POST /points/query/batch":
            requests = models.QueryRequestBatch(**body).searches
            return [_plain(answer) for answer in local.query_batch_points(name, requests)]
        raise ValueError(f"not found: {method} {path}")

    def _check_strict(self, name: str, key: str, body: dict) -> None:
        """Raises ValueError for a request that the collection's strict mode forbids."""
        strict = self.made.get(name, {}).get("strict_mode_config", {})
        if not strict.get("enabled"):
            return
        asked = {
            "POST /points/scroll": ("max_query_limit", body.get("limit", 10)),
            "PUT /points": ("upsert_max_batchsize", len(body.get("points", []))),
            "PUT /points/vectors": ("upsert_max_batchsize", len(body.get("points", []))),
            "POST /points/query/batch": ("search_max_batchsize", len(body.get("searches", []))),
        }
        limit, given = asked.get(key, ("", 0))
        if given > strict.get(limit, given):
            raise ValueError(f"Forbidden: Limit exceeded {given} > {strict[limit]} for {limit!r}")
        if key == "POST /points/count" and body.get("exact") and strict.get("search_allow_exact") is False:
            raise ValueError("Forbidden: Exact search disabled!")

    def _add_vector(self, name: str, vector: str, asked) -> dict:
        done = self.local.create_vector_name(name, vector, asked)
        params = self.made[name]["params"]
        named = params["vectors"] if "size" not in params["vectors"] else {"": params["vectors"]}
        params["vectors"] = {**named, vector: _given(asked.dense)}
        return _plain(done)

    def _settings(self, made) -> dict:
        given = _given(made)
        given.pop(self.forgets, None)
        renamed = {"optimizers_config": "optimizer_config"}
        parts = ("hnsw_config", "optimizers_config", "wal_config", "quantization_config", "strict_mode_config")
        kept = {renamed.get(part, part): given.pop(part) for part in parts if part in given}
        given.pop("metadata", None)
        given["sparse_vectors"] = given.get("sparse_vectors") or None
        return {"params": given, **kept}

    def _info(self, name: str) -> dict:
        info = _plain(self.local.get_collection(name))
        made = self.made.get({**_aliases(self.local)}.get(name, name))
        if made is not None:  # otherwise it was made in the engine itself
            metadata = info["config"].get("metadata")
            parts = {part: {**QDRANT_DEFAULTS.get(part, {}), **value} for part, value in made.items()}
            indexes = parts.pop("indexes")
            info["config"] = {**QDRANT_DEFAULTS, **parts, "metadata": metadata}
            if self.busy:
                self.busy, info["status"] = self.busy - 1, "yellow"
            info["payload_schema"] = {field: {**one, "points": 1} for field, one in indexes.items()}
        return info

    def _index(self, name: str, asked) -> dict:
        schema = asked.field_schema
        one = {"data_type": schema} if isinstance(schema, str) else {"data_type": schema.type, "params": _given(schema)}
        self.made[name]["indexes"][asked.field_name] = json.loads(json.dumps(one))
        return {"operation_id": 1, "status": "completed"}


def _aliases(local) -> dict[str, str]:
    return {one.alias_name: one.collection_name for one in local.get_aliases().aliases}


def _given(model) -> dict:
    return model.model_dump(mode="json", exclude_none=True)


def _plain(value) -> dict:
    return json.loads(value.model_dump_json())


def _json(status: int, value: dict) -> tuple[int, str, bytes]:
    return status, "application/json", json.dumps(value).encode()
