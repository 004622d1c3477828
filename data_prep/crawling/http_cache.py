"""Answers of servers on disk, so that a killed crawl continues without requesting any page twice."""

import json
import sqlite3
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

STORED = frozenset((200, 301, 302, 303, 307, 308))  # a failure is requested again
NO_ROBOTS = frozenset((404, 410))  # a missing robots.txt says as much as an empty one
ROBOTS_AGE = 24 * 3600  # seconds: the longest that RFC 9309 (2.4) lets a robots.txt be kept
FILE = "pages.sqlite"

_TABLE = """CREATE TABLE IF NOT EXISTS pages (
    url TEXT, language TEXT, status INTEGER NOT NULL, headers TEXT NOT NULL, body BLOB NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (url, language))"""


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer to one request."""

    url: str
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes  # unpacked
    cached: bool = False
    retries: str = ""  # how often and with what end it was tried again, for the error message


class HttpCache:
    """Stores each answer as one committed row before it is used: a SIGKILL loses none and leaves none half-written.

    There is no pickle in it, so a cache from elsewhere can run no code.
    """

    def __init__(self, folder: Path, language: str, max_age: float):
        """language: of the requests, part of the key; max_age: seconds for which an answer is used."""
        folder.mkdir(parents=True, exist_ok=True)
        self._language, self._max_age = language, max_age
        self._rows = sqlite3.connect(folder / FILE, timeout=30, isolation_level=None)
        self._rows.execute("PRAGMA journal_mode = WAL")
        self._rows.execute(_TABLE)

    def close(self) -> None:
        self._rows.close()

    def get(self, url: str) -> Answer | None:
        max_age = min(self._max_age, ROBOTS_AGE) if _is_robots(url) else self._max_age
        select = "SELECT status, headers, body FROM pages WHERE url = ? AND language = ? AND seconds > ?"
        row = self._rows.execute(select, (url, self._language, time.time() - max_age)).fetchone()
        return row and Answer(url, row[0], json.loads(row[1]), zlib.decompress(row[2]), cached=True)

    def put(self, answer: Answer) -> None:
        """Stores the answer unless it is a failure."""
        no_robots = _is_robots(answer.url) and answer.status in NO_ROBOTS
        if not (answer.status in STORED or no_robots) or "mediawiki-api-error" in answer.headers:
            return
        row = (answer.url, self._language, answer.status, json.dumps(answer.headers), zlib.compress(answer.body, 1))
        self._rows.execute("INSERT OR REPLACE INTO pages VALUES (?, ?, ?, ?, ?, ?)", (*row, time.time()))


def _is_robots(url: str) -> bool:
    return url.endswith("/robots.txt")
