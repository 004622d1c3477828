"""Workers on a real Ray of two cores in this session: the same bytes, the same errors, nothing left running."""

import os
import time

import psutil
import pytest

ray = pytest.importorskip("ray", reason="the extra ray is not installed")

from data_prep.augmentation.augment import augment  # noqa: E402
from data_prep.augmentation.rewriting import Changes  # noqa: E402
from data_prep.cluster import nodes, ray_workers  # noqa: E402
from data_prep.cluster.ray_workers import RayWorkers  # noqa: E402
from data_prep.common.errors import BadInput, Failed  # noqa: E402
from data_prep.common.files import check  # noqa: E402
from data_prep.sharding.build import shard  # noqa: E402
from tests.unit.data_prep.helpers import documents, run, write_records  # noqa: E402
from tests.unit.data_prep.sharding.test_build import contents  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patched.setenv("RAY_AUTH_MODE", "disabled")  # by default a token would be left in the home folder
        patched.delenv("RAY_ADDRESS", raising=False)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
        yield
        ray.shutdown()


@pytest.fixture
def one_task_each(monkeypatch):
    """Small files are work for many tasks."""
    monkeypatch.setattr("data_prep.sharding.spool.SPAN_BYTES", 900)
    monkeypatch.setattr("data_prep.augmentation.augment.TASK_ROWS", 9)


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


def test_an_error_keeps_its_kind_and_a_file_error_names_the_node(tmp_path):
    with RayWorkers("ray") as pool:
        with pytest.raises(BadInput) as error:
            list(pool.map(check, [[], ["a problem", "and another"], []]))
        with pytest.raises(Failed, match=r"^node \S+ \([0-9.]+\): No such file or directory \(/nowhere\)$"):
            pool.submit(os.listdir, "/nowhere")()
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


def running() -> list[psutil.Process]:
    """Processes of this session's Ray that run a task."""
    below = psutil.Process().children(recursive=True)
    busy = [one for one in psutil.process_iter(["cmdline"]) if "ray::_run_task" in " ".join(one.info["cmdline"] or ())]
    return [process for process in busy if process in below]


def test_tasks_under_way_end_with_the_block():
    """Ctrl-C leaves the block by an exception too."""
    with pytest.raises(KeyboardInterrupt), RayWorkers("ray") as pool:
        for _ in range(4):
            pool.submit(time.sleep, 600)
        until = time.monotonic() + 60
        while not (begun := running()) and time.monotonic() < until:
            time.sleep(0.05)
        raise KeyboardInterrupt
    assert begun and not psutil.wait_procs(begun, timeout=10)[1]
    assert not running()


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
