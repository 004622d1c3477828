"""Answers of servers kept on disk, so that a killed crawl goes on without asking for any page twice."""

import json
import os
import sqlite3
import time
import zlib
from pathlib import Path

KEPT = frozenset((200, 301, 302, 303, 307, 308))  # a failure is asked for again
ROBOTS_AGE = 24 * 3600  # seconds: the longest that RFC 9309 (2.4) lets a robots.txt be kept

_TABLE = """CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, url TEXT NOT NULL, status INTEGER NOT NULL, headers TEXT NOT NULL, body BLOB NOT NULL,
    seconds REAL NOT NULL)"""


def default_folder() -> Path:
    """Where answers are kept unless told otherwise: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "embedfleet" / "crawl"


class AnswerCache:
    """HTTPCACHE_STORAGE of Scrapy. Each answer is one committed row before it is used, so a SIGKILL loses none of them
    and leaves none half-written; no pickle, so a cache from elsewhere can run no code."""

    def __init__(self, settings):
        self.folder = Path(settings["HTTPCACHE_DIR"])
        self.max_age = settings.getfloat("HTTPCACHE_EXPIRATION_SECS")

    def open_spider(self, spider) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows = sqlite3.connect(self.folder / "answers.sqlite", timeout=30, isolation_level=None)
        self.rows.execute("PRAGMA journal_mode = WAL")
        self.rows.execute(_TABLE)

    def close_spider(self, spider) -> None:
        self.rows.close()

    @staticmethod
    def _key(request) -> bytes:
        from scrapy.utils.request import fingerprint

        return fingerprint(request, include_headers=["Accept-Language"])

    def retrieve_response(self, spider, request):
        from scrapy.http import Headers
        from scrapy.responsetypes import responsetypes

        max_age = min(self.max_age, ROBOTS_AGE) if _is_robots(request) else self.max_age
        asked = "SELECT url, status, headers, body FROM answers WHERE key = ? AND seconds > ?"
        row = self.rows.execute(asked, (self._key(request), time.time() - max_age)).fetchone()
        if row is None:
            return None
        url, status, headers, body = row
        headers, body = Headers(json.loads(headers)), zlib.decompress(body)
        return responsetypes.from_args(headers=headers, url=url, body=body)(url, status, headers, body)

    def store_response(self, spider, request, response) -> None:
        no_robots = _is_robots(request) and response.status in (404, 410)  # says as much as an empty one
        if not (response.status in KEPT or no_robots) or b"MediaWiki-API-Error" in response.headers:
            return
        headers = {
            name.decode("latin-1"): [value.decode("latin-1") for value in values]
            for name, values in response.headers.items()
        }
        row = (self._key(request), response.url, response.status, json.dumps(headers))
        body = zlib.compress(response.body, 1)
        self.rows.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)", (*row, body, time.time()))


def _is_robots(request) -> bool:
    return request.url.endswith("/robots.txt")
