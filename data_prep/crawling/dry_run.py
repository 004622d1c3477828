"""Pages of `crawl --dry-run`. They come with the package; a thread of the crawler's own process serves them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

PAGES = Path(__file__).parent / "dry_run_pages"
TYPES = {
    "/robots.txt": "text/plain",
    "/glossary.html": "text/html; charset=utf-8",
    "/table.html": "text/html",
    "/headings.html": "text/html; charset=utf-8",
    "/microdata.html": "text/html; charset=utf-8",
    "/legacy.html": "text/html; charset=iso-8859-1",  # wrong on purpose: it is in windows-1251, as its `meta` says
    "/terms.md": "text/markdown; charset=utf-8",
}
WIKI = "/w/api.php"


@contextmanager
def serve() -> Iterator[list[str]]:
    """Serves the pages on a free loopback port while the block runs; yields the addresses to crawl."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        base = f"http://127.0.0.1:{server.server_port}"
        yield [f"{base}{path}" for path in TYPES if path != "/robots.txt"] + [f"{base}{WIKI}?title=Category:Tea"]
    finally:
        server.shutdown()
        server.server_close()


class _Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == WIKI:
            self._send(200, "application/json; charset=utf-8", PAGES / "api" / _answer(parse_qs(url.query)))
        elif url.path in TYPES:
            self._send(200, TYPES[url.path], PAGES / url.path.removeprefix("/"))
        else:
            self.send_error(404)

    def _send(self, status: int, content_type: str, file: Path) -> None:
        body = file.read_bytes()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args) -> None:
        """Prints nothing: the crawler reports its requests."""


def _answer(parameters: dict[str, list[str]]) -> str:
    if parameters.get("action") == ["parse"]:
        return "parse.json"
    if parameters.get("prop") == ["extracts"]:
        return "leads.json"
    if "list" in parameters:
        return "members-2.json" if "cmcontinue" in parameters else "members-1.json"
    return "info.json"
