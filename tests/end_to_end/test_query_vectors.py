"""Query vectors of a closed model as processes: killed, and interrupted."""

import signal
from pathlib import Path

from tests import forked
from tests.embedding_server import EmbeddingServer
from tests.language_model import FAULTS, KEY, pairs, serving
from tests.launching import ROOT
from tests.soak.query_vectors import command, kept, soak, write


def start(argv: list[str], log: Path) -> forked.Forked:
    return forked.start(argv, ROOT, merged=True, OPENAI_API_KEY=KEY)


def test_killed_twice_nothing_is_lost_or_asked_twice(tmp_path):
    """The short form of tests.soak.query_vectors, without calls that time out: on a busy machine others would too."""
    faults = tuple(fault for fault in FAULTS if fault != "timeout")
    report = soak(tmp_path, texts=700, kills=2, concurrency=2, start=start, slow=240.0, faults=faults)
    assert report.holds(), report
    assert all(0 < count < 700 for count in report.on_disk_at_kills)


def test_ctrl_c_keeps_the_vectors_under_way_and_says_how_to_go_on(tmp_path):
    questions = [pairs(f"c{number}")[0]["question"] for number in range(700)]
    write(tmp_path, questions)
    server = EmbeddingServer(delay=0.3)
    with serving(server) as url:
        process = start([*command(tmp_path, url, 2, 240.0), str(tmp_path / "adapted")], tmp_path)
        server.wait_for_answers(5)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    answered = set(server.answered()) & set(questions)
    assert kept(tmp_path, questions) == answered and 0 < len(answered) < 700
    assert "stopping: waiting for " in said and "; the same command goes on from there" in said
    assert said.endswith("stopped by Ctrl-C\n") and KEY not in said
    assert not (tmp_path / "adapted").exists() and not list(tmp_path.glob(".adapted*"))
