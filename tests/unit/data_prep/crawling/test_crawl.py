"""Crawls that end early; the rest is in end_to_end/test_crawl.py."""

import os
import signal
import threading

import pytest

pytest.importorskip("httpx")
pytest.importorskip("protego")
pytest.importorskip("w3lib")

from data_prep.common.errors import Failed
from data_prep.common.workers import Workers
from data_prep.crawling import crawl as crawling


class Pool(Workers):
    """Workers whose first task calls `begun`; every task ends only when the pool is stopped."""

    def __init__(self, begun):
        super().__init__(1)
        self.ahead, self.begun = 2, begun
        self.tasks, self.waited, self.stopped = 0, [], threading.Event()

    def submit(self, function, *arguments):
        self.tasks += 1
        return self._wait if self.tasks > 1 else self._first

    def _first(self):
        self.begun()
        self._wait()

    def _wait(self):
        self.waited.append(self.stopped.wait(10))
        raise Failed("stopped")

    def stop(self):
        self.stopped.set()


def crawl_with(pool, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(crawling, "open_workers", lambda *_: pool)
    pages = [tmp_path / f"{number}.html" for number in range(3)]
    for page in pages:
        page.write_text("<dl class=glossary><dt>term<dd>definition</dl>")
    crawling.crawl([str(page) for page in pages], tmp_path / "out.csv", on="ray")


def test_ctrl_c_stops_the_tasks_and_does_not_wait_for_them(tmp_path, monkeypatch):
    pool = Pool(lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        crawl_with(pool, tmp_path, monkeypatch)
    assert pool.waited and all(pool.waited), "a thread that never began to wait is in no list"
    assert not (tmp_path / "out.csv").exists()


def test_an_error_of_the_workers_stops_the_other_tasks_and_is_raised_once(tmp_path, monkeypatch, capsys):
    def die() -> None:
        raise Failed("Ray: a task died")

    pool = Pool(die)
    with pytest.raises(Failed, match="^Ray: a task died$"):
        crawl_with(pool, tmp_path, monkeypatch)
    assert pool.stopped.is_set() and all(pool.waited)
    assert "please report it" not in capsys.readouterr().err
