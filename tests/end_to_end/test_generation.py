"""Generation as processes: killed, interrupted, and against the server that transformers ships."""

import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_prep.stores.open import write_chunks
from tests import forked, tiny
from tests.language_model import KEY, MODEL, LanguageModel, chunk, expected, serving
from tests.launching import ROOT, environment, free_port
from tests.soak.generation import soak
from tests.unit.data_prep.helpers import run

COUNT = 60


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "chroma"
    write_chunks(folder, "docs", [chunk(number) for number in range(COUNT)], "digest")
    return folder


def command(store: Path, folder: Path, url: str, *more: str, model: str = MODEL) -> list[str]:
    where = ["--path", str(store), "--collection", "docs", "--cache", str(folder / "cache"), "--base-url", url]
    options = ["--model", model, "--output", str(folder / "pairs.jsonl"), *more]
    return ["-m", "data_prep", "generate", *where, *options]


def start(argv: list[str]) -> forked.Forked:
    return forked.start(argv, ROOT, OPENAI_API_KEY=KEY)


def read(folder: Path) -> list[tuple[str, str, str]]:
    lines = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    return [(line["chunk_id"], line["question"], line["answer"]) for line in lines]


def test_killed_twice_nothing_is_lost_or_asked_twice(tmp_path):
    """The short form of tests.soak.generation."""

    def started(command: list[str], folder: Path) -> forked.Forked:
        process = forked.start(command[1:], ROOT, merged=True, OPENAI_API_KEY=KEY)
        (folder / f"log-{process.pid}.txt").symlink_to(process.out)
        return process

    report = soak(tmp_path, chunks=120, kills=2, concurrency=8, slow=3.0, start=started)
    assert report.holds(), report
    assert all(0 < count < 120 for count in report.on_disk_at_kills)
    assert sum(report.failed_calls.values()) > 10


def test_ctrl_c_keeps_every_answer_under_way_and_says_how_to_go_on(store, tmp_path):
    server = LanguageModel(delay=0.3)
    with serving(server) as url:
        process = start(command(store, tmp_path, url, "--concurrency", "6"))
        server.wait_for_answers(13)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        answered = server.counts()["answered"]
        assert 13 <= answered < COUNT
        assert "stopping: waiting for " in err
        assert f"{answered} answers are kept in {tmp_path / 'cache'}" in err
        assert "the same command goes on from there" in err
        assert err.endswith("stopped by Ctrl-C\n")
        assert not (tmp_path / "pairs.jsonl").exists()
        server.delay = 0.0
        done = start(command(store, tmp_path, url))
        out, err = done.communicate(timeout=60)
    assert done.returncode == 0, err
    assert f"({COUNT - answered} answers from this run, {answered} from before)" in out
    assert server.repeated() == []
    assert len(server.calls) == COUNT
    assert read(tmp_path) == [(f"doc-{n}", *pair) for n in range(COUNT) for pair in expected(f"c{n}", "plain")]


def test_a_second_ctrl_c_does_not_wait(store, tmp_path):
    server = LanguageModel(script={"c0": ["answered"], "*": ["timeout"]}, slow=600)
    with serving(server) as url:
        process = start(command(store, tmp_path, url, "--concurrency", "4"))
        with server.lock:
            assert server.lock.wait_for(lambda: len(server.calls) == 5, timeout=60)
        process.send_signal(signal.SIGINT)
        process.wait_until_it_says("stopping: waiting for 4 answers")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130  # the answers take ten minutes
    assert len(next((tmp_path / "cache").glob("*.jsonl")).read_text().splitlines()) == 2  # the request and one answer


@contextmanager
def stock_server(model: Path, folder: Path):
    """`transformers serve` on a free port; yields its base URL once it listens."""
    port, name = free_port(), Path(sys.executable).with_name("transformers")
    argv = [str(name), "serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    log = folder / "server.txt"
    with open(log, "w") as out, subprocess.Popen(argv, env=environment(), stdout=out, stderr=out) as server:
        try:
            deadline = time.monotonic() + 120
            while "Uvicorn running on" not in log.read_text():
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


def test_the_server_that_transformers_ships(store, tmp_path, monkeypatch, capsys):
    """It ignores response_format, knows the model by its path and wants no key."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    monkeypatch.chdir(tmp_path)  # no .env of whoever runs the tests
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    answer = '{"pairs": [{"question": "When does it open?", "answer": "At three bar."}]}'
    model = tiny.chat_model(tmp_path / "model", answer)
    with stock_server(model, tmp_path) as url:
        options = ("--limit", "5", "--system-prompt", "Be brief.", "--temperature", "0")
        code, out, err = run(capsys, *command(store, tmp_path, url, *options, model=str(model))[2:])
        log = (tmp_path / "server.txt").read_text()
        assert code == 0, err + log
        assert read(tmp_path) == [(f"doc-{n}", "When does it open?", "At three bar.") for n in range(5)]
        assert "5 pairs from 5 chunks" in out
        assert "(no key)" in err
        assert "repeated calls" not in err
        assert log.count('"POST /v1/chat/completions HTTP/1.1" 200 OK') == 5
        code, _, err = run(capsys, *command(store, tmp_path, url, "--limit", "5", model="another")[2:])
    assert code == 1
    assert "left out: 5 x refused by the server, such as doc-0: refused by the server: 400: Server is pinned to" in err
    assert err.splitlines()[-1].startswith("error: no pair came out")
