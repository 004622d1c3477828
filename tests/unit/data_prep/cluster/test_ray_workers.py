"""Workers on a real Ray of two cores: the same bytes, the same errors, nothing left running."""

import os
import re
import threading
import time
from pathlib import Path

import psutil
import pytest

ray = pytest.importorskip("ray", reason="the extra ray is not installed")

from data_prep.augmentation.augment import augment  # noqa: E402
from data_prep.augmentation.rewriting import Changes  # noqa: E402
from data_prep.cluster import nodes, ray_workers  # noqa: E402
from data_prep.cluster.ray_workers import RayWorkers  # noqa: E402
from data_prep.common.errors import BadInput, Failed  # noqa: E402
from data_prep.common.files import check  # noqa: E402
from data_prep.generation.config import QuestionGenerationConfig  # noqa: E402
from data_prep.generation.offline import generate_offline  # noqa: E402
from data_prep.generation.questions import QuestionGenerator  # noqa: E402
from data_prep.model_server.answer_cache import part_of  # noqa: E402
from data_prep.sharding.build import shard  # noqa: E402
from data_prep.stores.base import Chunk, StoreConfig  # noqa: E402
from data_prep.stores.open import write_chunks  # noqa: E402
from tests.language_model import FORMS, KEY, MODEL, LanguageModel, chunk, files_with_key, serving  # noqa: E402
from tests.launching import run as run_alone  # noqa: E402
from tests.ray_head import QUIET, ray_head, running_tasks  # noqa: E402
from tests.unit.data_prep.helpers import documents, run, write_jsonl, write_records  # noqa: E402
from tests.unit.data_prep.sharding.test_build import contents  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def head():
    """A Ray to which this process is connected, and whose processes have the key of a language model."""
    with ray_head(2, OPENAI_API_KEY=KEY) as started, pytest.MonkeyPatch.context() as patched:
        for name, value in QUIET.items():
            patched.setenv(name, value)
        patched.delenv("RAY_ADDRESS", raising=False)
        ray.init(started.address, log_to_driver=False)
        yield started
        ray.shutdown()


@pytest.fixture
def one_task_each(monkeypatch):
    """Small files are work for many tasks."""
    monkeypatch.setattr("data_prep.sharding.spool.SPAN_BYTES", 900)
    monkeypatch.setattr("data_prep.augmentation.augment.TASK_ROWS", 9)
    monkeypatch.setattr("data_prep.generation.offline.TASK_CHUNKS", 3)
    monkeypatch.setattr("data_prep.quality.rows.SPAN_BYTES", 900)
    monkeypatch.setattr("data_prep.quality.rows.SPLIT_ROWS", 10)
    monkeypatch.setattr("data_prep.quality.checks.AT_ONCE", 7)


def test_the_bytes_are_those_of_one_process(tmp_path, one_task_each, monkeypatch, capsys):
    write_records(tmp_path / "a.jsonl", [*documents(30), *documents(5)])
    monkeypatch.chdir(tmp_path)  # a relative path means the driver's folder
    for name, on in (("here", None), ("there", "ray")):
        inputs = [(tmp_path / "a.jsonl").relative_to(tmp_path)]
        output = (tmp_path / name).relative_to(tmp_path)
        shard(inputs, output, eval_fraction=0.3, num_shards=2, near_duplicates=0.85, on=on)
        augment(inputs, output.with_suffix(".jsonl"), changes=Changes(typo_rate=0.5), variants=2, on=on)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(
        ["a.jsonl", "here", "there", "here.jsonl", "there.jsonl"]
    )
    assert "Ray: 1 node, 2 cores" in capsys.readouterr().err


def test_a_client_of_another_process_writes_the_bytes_of_two_workers(tmp_path, head):
    write_records(tmp_path / "a.jsonl", documents(20))
    for name, flags in (("here", ["--workers", "2"]), ("there", ["--on", head.client])):
        words = ["shard", "a.jsonl", "--output", name, "--eval-fraction", "0.3", "--num-shards", "2", *flags]
        done = run_alone("-m", "data_prep", *words, cwd=tmp_path)
        assert done.returncode == 0, done.both
    assert "Ray: 1 node, 2 cores" in done.stderr
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.jsonl", "here", "there"]


def test_offline_pairs_of_a_store_are_those_of_one_process(tmp_path, one_task_each):
    texts = [f"Part {i} of it.\n\nThe handle of window {i} is turned first. Then pull the frame." for i in range(20)]
    chunks = [Chunk(f"c{i}", text, {"name": f"window {i}"}) for i, text in enumerate(texts)]
    write_chunks(tmp_path / "chroma", "docs", [*chunks, Chunk("short", "Too short.", {})], "digest")
    store = StoreConfig("chroma", "docs", path=tmp_path / "chroma")
    for name, on in (("here", None), ("there", "ray")):
        assert generate_offline(store, tmp_path / f"{name}.jsonl", hide=["name"], keywords=4, on=on) == 20
    assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()


@pytest.fixture
def ask(tmp_path):
    """Generates with a server; returns the bytes of the files."""
    write_chunks(tmp_path / "chroma", "docs", [chunk(number) for number in range(30)], "digest")

    def call(url: str, folder: Path, name: str = "pairs", **more) -> list[bytes]:
        where = {"path": tmp_path / "chroma", "collection_name": "docs", "cache": folder}
        output = folder / f"{name}.jsonl"
        settings = where | {"model": MODEL, "base_url": url, "output_path": output, "concurrency": 2} | more
        QuestionGenerator(QuestionGenerationConfig(**settings)).generate()
        return [
            (folder / f"{name}{end}.json{kind}").read_bytes()
            for end, kind in (("", "l"), (".rejected", "l"), (".usage", ""))
        ]

    return call


def test_nodes_ask_a_model_about_every_chunk_once_though_one_is_killed(tmp_path, ask, head, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    one, shared = (LanguageModel(forms=FORMS, script={"c3": ["400"]}, delay=0.1) for _ in range(2))
    with serving(one) as url:
        here = ask(url, tmp_path / "one")

    def kill_one() -> None:
        shared.wait_for_answers(8)
        running_tasks(head)[0].kill()

    with serving(shared) as url:
        killer = threading.Thread(target=kill_one)
        killer.start()
        assert ask(url, tmp_path / "two", on="ray") == here
        killer.join()
        asked = len(shared.calls)
        assert ask(url, tmp_path / "two", "other", on="ray") == here
    answered = [call for call in shared.calls[:asked] if call.chunk != "c3"]  # refused: asked again after a kill
    assert len(answered) <= 29 + 2  # that were under way in the killed process
    assert {call.chunk for call in shared.calls[asked:]} == {"c3"}  # refused before, and tried again as everywhere
    assert {call.chunk for call in shared.calls} == {call.chunk for call in one.calls}
    assert len(list((tmp_path / "two").glob("*.part-?-of-2.????????.jsonl"))) == 3
    assert not list((tmp_path / "two").glob(".*"))
    assert not files_with_key(tmp_path) and not files_with_key(head.folder)
    assert "Ray: 1 node, 2 cores" in capsys.readouterr().err


def test_the_first_part_that_fails_ends_the_others_at_once(tmp_path, ask, head, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    names = {n: f"c{n}" for n in range(30)}
    slow = {name: ["timeout"] for n, name in names.items() if part_of(chunk(n).text, 2) == 1}
    fatal = {name: ["401"] for name in names.values() if name not in slow}
    with serving(LanguageModel(script=slow | fatal, slow=120.0)) as url:
        began = time.monotonic()
        with pytest.raises(BadInput, match="answers 401"):
            ask(url, tmp_path / "two", on="ray")
        assert time.monotonic() - began < 90
    assert not running_tasks(head)


def test_a_node_without_the_key_is_named(tmp_path, ask, monkeypatch):
    with serving(LanguageModel()) as url:
        monkeypatch.setenv("YC_OPENAI_API_KEY", KEY)  # of this process only
        monkeypatch.setenv("YC_OPENAI_API_BASE", url)
        with pytest.raises(BadInput, match="YC_OPENAI_API_KEY is not set there; start Ray on every node with it"):
            ask(url, tmp_path / "two", on="ray")
    assert not list((tmp_path / "two").glob(".*"))


def test_pages_of_a_crawl_are_read_as_by_one_process(tmp_path, capsys):
    pytest.importorskip("selectolax", reason="the extra crawl is not installed")
    for name, flags in (("here", []), ("there", ["--on", "ray"])):
        code, _, err = run(capsys, "crawl", "--dry-run", "--output", tmp_path / f"{name}.csv", *flags)
        assert code == 0, err
    assert "Ray: 1 node, 2 cores" in err
    here, there = (
        re.sub(r"127\.0\.0\.1:\d+", "HOST", (tmp_path / f"{name}.csv").read_text()) for name in ("here", "there")
    )
    assert here == there and len(here.splitlines()) > 20


def test_a_report_on_rows_is_that_of_one_process(tmp_path, one_task_each, capsys):
    rows = [record.to_json() for record in [*documents(30), *documents(5)]]
    bad = [{"query": "q", "positive": ""}, "{", {"foo": 1}]
    path = write_jsonl(tmp_path / "a.jsonl", [*rows, *bad, {"query": "Un œuf", "positive": "Le blé", "extra": 1}])
    shard([write_records(tmp_path / "b.jsonl", documents(30))], tmp_path / "shards", eval_fraction=0.3)
    for looked_at, count in ((path, 106), (tmp_path / "shards", 90)):
        reports = []
        for flags in ([], ["--workers", "2"], ["--on", "ray"]):
            code, out, err = run(capsys, "inspect", looked_at, "--json", "--html", tmp_path / "r.html", *flags)
            assert code == 0, err
            reports.append((out, (tmp_path / "r.html").read_bytes()))
        assert "Ray: 1 node, 2 cores" in err
        assert f'"rows": {count},' in out and reports[1:] == reports[:1] * 2


def without_credentials(url: str) -> None:
    raise Failed(f"{url}: ACCESS_DENIED")


def test_an_error_keeps_its_kind_and_a_failure_names_the_node(tmp_path):
    with RayWorkers("ray") as pool:
        with pytest.raises(BadInput) as error:
            list(pool.map(check, [[], ["a problem", "and another"], []]))
        with pytest.raises(Failed, match=r"^node \S+ \([0-9.]+\): No such file or directory \(/nowhere\)$"):
            pool.submit(os.listdir, "/nowhere")()
        with pytest.raises(Failed, match=r"^node \S+ \([0-9.]+\): s3://bucket/a: ACCESS_DENIED$"):
            pool.submit(without_credentials, "s3://bucket/a")()
    assert error.value.problems == ["a problem", "and another"]


def test_a_task_that_always_dies_ends_the_work(monkeypatch):
    monkeypatch.setattr(ray_workers, "RETRIES", 1)
    with RayWorkers("ray") as pool, pytest.raises(Failed, match="^Ray: a task died 2 times with its process or node"):
        pool.submit(os._exit, 1)()


def hang_once(marker: str) -> str:
    if os.path.exists(marker):
        return "second run"
    open(marker, "w").close()
    time.sleep(600)


def test_a_task_that_hangs_on_a_lost_node_runs_again(tmp_path, monkeypatch):
    """A node whose link is cut: Ray itself hears of its tasks only minutes later."""
    monkeypatch.setattr(ray_workers, "SILENT", 0.5)
    monkeypatch.setattr(ray_workers, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(ray_workers, "GRACE", 1.0)
    with RayWorkers("ray") as pool:
        wait = pool.submit(hang_once, str(tmp_path / "marker"))
        until = time.monotonic() + 60
        while not (tmp_path / "marker").exists() and time.monotonic() < until:
            time.sleep(0.05)
        pool._left = time.monotonic()
        assert wait() == "second run"


def test_tasks_under_way_end_with_the_block(head):
    """Ctrl-C leaves the block by an exception too."""
    with pytest.raises(KeyboardInterrupt), RayWorkers("ray") as pool:
        for _ in range(4):
            pool.submit(time.sleep, 600)
        until = time.monotonic() + 60
        while not (begun := running_tasks(head)) and time.monotonic() < until:
            time.sleep(0.05)
        raise KeyboardInterrupt
    assert begun and not psutil.wait_procs(begun, timeout=10)[1]
    assert not running_tasks(head)


def hang(*_) -> None:
    time.sleep(600)


def test_a_check_without_an_answer_ends_the_command_and_does_not_go_on(head, monkeypatch):
    """A node whose input lies behind a dead mount."""
    monkeypatch.setattr(ray_workers, "_differences", hang)
    monkeypatch.setattr(ray_workers, "PATIENCE", 3.0)
    with pytest.raises(BadInput, match="gives no answer"):
        RayWorkers("ray").__enter__()
    assert not running_tasks(head, "hang")


def test_a_node_with_other_versions_is_refused_before_any_work(tmp_path, monkeypatch, capsys):
    path = write_records(tmp_path / "a.jsonl", documents(5))
    own = nodes.versions()
    monkeypatch.setattr(nodes, "versions", lambda: own | {"pyarrow": "1.0"})  # of the driver alone
    code, _, err = run(capsys, "shard", path, "--output", tmp_path / "s", "--on", "ray")
    assert code == 2 and ": pyarrow " in err and ", but 1.0 here" in err
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]


def test_no_cluster_at_an_address_is_one_line(tmp_path, monkeypatch, capsys):
    path = write_records(tmp_path / "a.jsonl", documents(5))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for flag, address in (("ray", "127.0.0.1:1"), ("ray", "here"), ("ray://127.0.0.1:1", "")):
        monkeypatch.setenv("RAY_ADDRESS", address)
        code, _, err = run(capsys, "shard", path, "--output", tmp_path / "s", "--on", flag)
        assert code == 2 and len(err.splitlines()) == 1 and err.startswith("error: "), err
        assert f"RAY_ADDRESS={address}: " in err if address else f"--on {flag}: " in err
