"""Generation by several workers: each chunk once, the limits shared, and the bytes that one worker writes."""

import asyncio
import os
import random
import threading
from bisect import bisect_left
from functools import partial

import pytest

from data_prep.common.errors import BadInput, Failed
from data_prep.common.workers import Workers
from data_prep.generation import on_cluster
from data_prep.generation.answer import Answer
from data_prep.generation.client import Retry
from data_prep.generation.config import QuestionGenerationConfig
from data_prep.generation.questions import QuestionGenerator
from data_prep.model_server import endpoint
from data_prep.model_server.answer_cache import AnswerCache, Part, key_of, part_of
from data_prep.model_server.endpoint import MINUTE, Pace
from data_prep.stores.open import write_chunks
from tests.language_model import FORMS, KEY, MODEL, LanguageModel, chunk, serving
from tests.unit.data_prep.helpers import run

COUNT = 24
REQUEST = {"model": "m"}
OF_A_RUN = ("pairs.jsonl", "pairs.rejected.jsonl", "pairs.usage.json")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "chroma"
    write_chunks(folder, "docs", [chunk(number) for number in range(COUNT)], "digest")
    return folder


@pytest.fixture
def generate(store, tmp_path, monkeypatch):
    """Generates with a server that refuses one chunk and has no answer about another; returns the output's folder."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)

    def call(url, folder, **more):
        settings = {"path": store, "collection_name": "docs", "model": MODEL, "base_url": url, "cache": folder}
        settings |= {"retry": Retry(2, 0.01, 0.01), "output_path": folder / "pairs.jsonl"}
        QuestionGenerator(QuestionGenerationConfig(**settings | more)).generate()

    return call


def asker() -> LanguageModel:
    return LanguageModel(forms=FORMS, script={"c3": ["400"], "c5": ["500"]})


def test_two_parts_write_what_one_worker_writes_and_ask_nothing_twice(generate, tmp_path, capsys):
    one, shared = asker(), asker()
    with serving(one) as url, pytest.raises(Failed, match="1 chunks have no answer yet"):
        generate(url, tmp_path / "one")
    with serving(shared) as url:
        ends = []
        for part in ("1/2", "2/2"):
            try:
                generate(url, tmp_path / "two", part=part)
            except Failed as error:
                ends.append(str(error))
        assert len(ends) == 1 and "1 chunks of part" in ends[0]  # c5 is in one of them
        assert sorted({call.chunk for call in shared.calls}) == sorted({call.chunk for call in one.calls})
        asked = len(shared.calls)
        with pytest.raises(Failed, match="1 chunks have no answer yet"):
            generate(url, tmp_path / "two", join=True)
        assert len(shared.calls) == asked and shared.repeated() == []
    for name in OF_A_RUN:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert len(list((tmp_path / "two").glob("*.part-?-of-2.????????.jsonl"))) == 2
    assert "pairs are written by --join" in capsys.readouterr().out


def test_a_join_names_the_parts_that_are_not_finished_and_writes_nothing(generate, tmp_path):
    with serving(LanguageModel()) as url:
        with pytest.raises(Failed, match="no part has run in"):
            generate(url, tmp_path, join=True)
        generate(url, tmp_path, part="2/3")
        missing = {n: sum(part_of(chunk(c).text, 3) == n for c in range(COUNT)) for n in (1, 3)}
        named = ", ".join(rf"--part {n}/3 \({count}\)" for n, count in missing.items())
        with pytest.raises(Failed, match=f"{sum(missing.values())} chunks have no answer yet; run again: {named};"):
            generate(url, tmp_path, join=True)
        assert not (tmp_path / "pairs.jsonl").exists()
        generate(url, tmp_path)  # one worker goes on from the answers of a part
        assert (tmp_path / "pairs.jsonl").exists()


def put(cache: AnswerCache, text: str) -> None:
    asyncio.run(cache.put({text: Answer(text)}))


def test_every_start_has_a_file_of_its_own_and_reads_those_of_all(tmp_path, capsys):
    for number in (1, 2, 1):
        with AnswerCache(tmp_path, REQUEST, Answer, Part(number, 2)) as cache:
            put(cache, f"answer {len(cache)}")
    files = sorted(tmp_path.glob("*.jsonl"))
    assert len(files) == 3
    files[0].write_bytes(torn := files[0].read_bytes()[:-3])  # its process was killed, or is writing
    with AnswerCache(tmp_path, REQUEST, Answer, reading=True) as cache:
        assert len(cache) == 2
        assert {cache.get(f"answer {n}") for n in range(3)} >= {None}
    assert files[0].read_bytes() == torn
    assert capsys.readouterr().err == ""


def test_parts_know_the_answers_of_a_run_without_parts(tmp_path):
    for part in (None, Part(1, 2)):
        with AnswerCache(tmp_path, REQUEST, Answer, part) as cache:
            put(cache, str(part))
    with AnswerCache(tmp_path, REQUEST, Answer, Part(2, 2)) as cache:
        assert cache.get("None") and cache.get("1/2") and len(cache) == 2


def test_more_files_than_may_be_open_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.model_server.answer_cache.OPEN_FILES", 2)
    for number in range(1, 7):
        with AnswerCache(tmp_path, REQUEST, Answer, Part(number, 6)) as cache:
            put(cache, str(number))
    with AnswerCache(tmp_path, REQUEST, Answer, Part(1, 6)) as cache:
        put(cache, "0")
        for number in [*range(7), *range(7)]:
            assert cache.get(str(number)).text == str(number)
        assert len(cache._open) <= 3


def test_the_same_part_twice_on_one_machine_is_refused(tmp_path):
    refused = pytest.raises(Failed, match="another run on this machine is --part 1/2 of the same")
    with (
        AnswerCache(tmp_path, REQUEST, Answer, Part(1, 2)),
        AnswerCache(tmp_path, REQUEST, Answer, Part(2, 2)),
        refused,
    ):
        AnswerCache(tmp_path, REQUEST, Answer, Part(1, 2))


def test_a_part_that_runs_again_is_not_finished_until_it_ends(tmp_path):
    with AnswerCache(tmp_path, REQUEST, Answer, Part(1, 2)) as cache:
        cache.save_unanswered({key_of("text \ud83d"): ("refused", False)})
        assert cache.unanswered() == {key_of("text \ud83d"): ("refused", False)}
    with AnswerCache(tmp_path, REQUEST, Answer, Part(1, 2)) as cache:
        assert cache.unanswered() == {} and cache.parts == 2


def test_of_parts_that_were_divided_anew_the_newest_says_why_a_chunk_has_no_answer(tmp_path):
    key = key_of("text")
    for at, (part, reason) in enumerate([(Part(5, 8), ("busy", True)), (Part(1, 1), ("refused", False))], 1):
        with AnswerCache(tmp_path, REQUEST, Answer, part) as cache:
            cache.save_unanswered({key: reason})
            (record,) = tmp_path.glob(f"*.part-{part.number}-of-*.json")
            os.utime(record, (at, at))
            assert cache.unanswered() == {key: reason}
    (old,) = tmp_path.glob("*.part-5-of-8.json")
    os.utime(old, (3, 3))
    with AnswerCache(tmp_path, REQUEST, Answer, reading=True) as cache:
        assert cache.unanswered() == {key: ("busy", True)}


class Nodes(Workers):
    """Stands in for RayWorkers: runs every task in this process, `tries` times; the last result counts."""

    cores, tries = 8, 1

    def __init__(self, *_):
        super().__init__(1)
        self.count = self.cores

    def together(self, function, tasks):
        return [[function(task) for _ in range(self.tries)][-1] for task in tasks]


@pytest.fixture
def nodes(monkeypatch):
    monkeypatch.setattr(on_cluster, "RayWorkers", Nodes)
    return partial(monkeypatch.setattr, Nodes)


def test_a_refusal_on_fewer_nodes_replaces_an_earlier_silence(generate, tmp_path, nodes):
    """The number of parts shrinks by itself to the chunks that are left."""
    with serving(LanguageModel(script={"c5": ["500"]})) as url, pytest.raises(Failed, match="1 chunks have no answer"):
        generate(url, tmp_path / "on", on="ray")
    with serving(LanguageModel(script={"c5": ["400"]})) as url:
        for _ in range(2):
            generate(url, tmp_path / "on", on="ray")
        generate(url, tmp_path / "on", join=True)
    assert {path.name.split(".")[1] for path in (tmp_path / "on").glob("*.part-*.json")} >= {"part-1-of-1"}
    assert "refused by the server" in (tmp_path / "on" / "pairs.rejected.jsonl").read_text()


def test_a_node_keeps_the_answers_of_its_part_alone_and_asks_nothing_twice_when_it_begins_again(
    generate, tmp_path, nodes, monkeypatch
):
    nodes("tries", 2)
    known = []

    class Watched(AnswerCache):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            known.append(len(self))

    monkeypatch.setattr(on_cluster, "AnswerCache", Watched)
    one, shared = LanguageModel(forms=FORMS), LanguageModel(forms=FORMS)
    with serving(one) as url:
        generate(url, tmp_path / "one")
    with serving(shared) as url:
        generate(url, tmp_path / "on", limit=COUNT // 2)
        generate(url, tmp_path / "on", on="ray")
    assert known[::2] == [0] * 8 and sum(known[1::2]) == COUNT // 2
    assert shared.repeated() == [] and len(shared.calls) == len(one.calls)
    for name in OF_A_RUN:
        assert (tmp_path / "on" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--part", "0/2"], "--part 0/2: must be K/N"),
        (["--part", "3/2"], "--part 3/2: must be K/N"),
        (["--part", "half"], "--part half: must be K/N"),
        (["--part", "1/2", "--join"], "--part and --join: choose one"),
        (["--part", "1/2", "--on", "ray"], "--on and --part: choose one"),
        (["--on", "dask"], "--on dask: must be ray, or ray://HOST:PORT"),
        (["--workers", "2"], "--workers: belongs to generation without one"),
        (["--part", "1/8", "--requests-per-minute", "7"], "none could ask once a minute"),
        (["--tokens-per-minute", "0"], "--tokens-per-minute 0: must be 1 or more"),
    ],
)
def test_parts_and_limits_that_make_no_sense_are_refused(store, tmp_path, capsys, flags, says):
    where = ["--path", store, "--collection", "docs", "--model", MODEL, "--output", tmp_path / "pairs.jsonl"]
    code, _, err = run(capsys, "generate", *where, *flags)
    assert code == 2 and says in err


class Clock:
    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(endpoint.time, "monotonic", lambda: self.now)


@pytest.mark.parametrize("limit, parts", [(60, 4), (10, 4), (7, 7), (1, 1)])
def test_no_minute_has_more_requests_than_allowed_however_often_workers_are_killed(monkeypatch, limit, parts):
    """Each worker sends at once when it may, and is killed and started again at random."""
    draw, sent = random.Random(limit), []
    for _ in range(parts):
        clock = Clock(monkeypatch)
        while clock.now < 20 * MINUTE:
            pace = Pace(limit // parts)
            for _ in range(draw.randint(1, 9)):
                clock.now += pace.claim()[0]
                sent.append(clock.now)
    sent.sort()
    busiest = max(bisect_left(sent, start + MINUTE - 1e-6) - first for first, start in enumerate(sent))
    assert busiest <= limit
    assert len(sent) > 20 * limit // 4  # and they do send


def test_tokens_are_spread_as_they_are_counted(monkeypatch):
    """Ten minutes of answers of very different sizes, which are known only after the next call has its turn."""
    clock, draw, pace = Clock(monkeypatch), random.Random(0), Pace(tokens=6000)
    total, before = 0, None
    while clock.now < 10 * MINUTE:
        wait, claimed = pace.claim()
        clock.now += wait
        if before:
            pace.count(*before)
        before = claimed, draw.choice((20, 100, 900))
        total += before[1]
    assert 55_000 <= total <= 62_000


def test_a_server_that_counts_no_tokens_cannot_keep_a_limit_of_them():
    Pace(requests=60).count(0, None)
    pace = Pace(tokens=100)
    pace.count(pace.claim()[1], None)
    with pytest.raises(Failed, match="the server does not count tokens"):
        pace.claim()


def test_the_limits_are_divided_by_the_parts():
    own = {"collection_name": "c", "output_path": "o.jsonl", "model": "m", "part": "2/4"}
    pace = QuestionGenerationConfig(**own, requests_per_minute=10, tokens_per_minute=6000).pace
    assert pace._gap == MINUTE / 2 and pace._of_token == MINUTE / 1500
    with pytest.raises(BadInput, match="must be K/N"):
        QuestionGenerationConfig(**own | {"part": "5/4"}).pace  # noqa: B018


def test_the_texts_for_nodes_are_of_the_user_alone(tmp_path):
    with AnswerCache(tmp_path / "cache", REQUEST, Answer, reading=True) as cache:
        file = tmp_path / "texts"
        assert on_cluster._write_texts(file, [chunk(1)], cache) == 1
        assert file.stat().st_mode & 0o777 == 0o600


def test_texts_that_a_killed_command_left_are_removed(tmp_path):
    with AnswerCache(tmp_path, REQUEST, Answer, reading=True) as cache:
        stale = [tmp_path / f".{cache.path.stem}.texts", tmp_path / f"..{cache.path.stem}.texts.unfinished"]
        for file in stale:
            file.write_text("old")

        def chunks():
            assert not stale[0].exists() and stale[1].read_text() == ""
            yield from ()

        assert on_cluster.ask_on_cluster(None, None, chunks(), cache, REQUEST) == (0, {})
    assert not any(file.exists() for file in stale)


def test_a_look_at_the_answers_that_fails_is_made_up_for(tmp_path, monkeypatch):
    looks, again = [], threading.Event()

    def look(path, start):
        looks.append(path)
        if len(looks) == 1:
            raise OSError(116, "Stale file handle")
        again.set()
        return 1, 0

    monkeypatch.setattr(on_cluster, "_lines_after", look)
    monkeypatch.setattr(on_cluster, "LOOK_SECONDS", 0.0)
    with AnswerCache(tmp_path, REQUEST, Answer, Part(1, 1)) as cache, on_cluster._shown(cache, 1, Nodes()):
        assert again.wait(10)
