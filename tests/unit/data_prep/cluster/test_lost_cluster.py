"""A cluster that is lost, and work that is stopped. A stand-in for ray: no Ray is needed."""

import threading
from types import SimpleNamespace

import pytest

from data_prep.cluster import nodes, ray_workers
from data_prep.cluster.ray_workers import RayWorkers
from data_prep.common.errors import Failed

NODE = {"Alive": True, "Resources": {"CPU": 2.0}, "NodeID": "n1", "NodeManagerHostname": "h", "NodeManagerAddress": "a"}
LOST = "^Ray: the connection to the cluster is lost"


class RayError(Exception):
    """Base of Ray's errors."""


class RayTaskError(RayError):
    """An error of a task's function."""


class OfGrpc(Exception):
    """An error of grpc, as Ray Client lets it through."""

    __module__ = "grpc._channel"

    def details(self) -> str:
        return "Stream removed"


class Ray:
    """Stands in for the module: its tasks never end, and every call raises `lost` once that is set."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self):
        self.lost: Exception | None = None
        self.connected = True
        self.started, self.cancelled = [], []
        self.waited = threading.Event()

    def is_initialized(self) -> bool:
        return self.connected

    def remote(self, **_):
        return lambda function: SimpleNamespace(remote=self._start)

    def _start(self, *_) -> object:
        self._check()
        self.started.append(object())
        return self.started[-1]

    def nodes(self) -> list[dict]:
        self._check()
        return [NODE]

    def wait(self, references, **_):
        self._check()
        self.waited.set()
        return [], references

    def cancel(self, reference, force) -> None:
        self._check()
        self.cancelled.append(reference)

    def _check(self) -> None:
        assert self.connected, "Ray would start a cluster on this machine"
        if self.lost:
            raise self.lost


@pytest.fixture
def ray(monkeypatch):
    stand_in = Ray()
    monkeypatch.setattr(ray_workers, "_ray", lambda: stand_in)
    monkeypatch.setattr(RayWorkers, "_check_nodes", lambda self: None)
    monkeypatch.setattr(ray_workers, "LOOK_SECONDS", 0.0)
    return stand_in


def give_up(ray: Ray) -> None:
    ray.connected = False


@pytest.mark.parametrize("reason", [ConnectionError("reset"), OfGrpc("one\nline"), give_up])
@pytest.mark.parametrize(
    "call",
    [
        lambda pool, wait: pool.submit(print),
        lambda pool, wait: pool.together(print, [1, 2]),
        lambda pool, wait: list(pool.map(print, [1, 2])),
        lambda pool, wait: wait(),
    ],
    ids=["submit", "together", "map", "result"],
)
def test_a_cluster_that_is_lost_is_a_failure_wherever_it_is_noticed(ray, call, reason):
    with RayWorkers("ray") as pool:
        wait = pool.submit(print)
        if isinstance(reason, Exception):
            ray.lost = reason
        else:
            reason(ray)
        with pytest.raises(Failed, match=LOST) as error:
            call(pool, wait)
        assert len(str(error.value).splitlines()) == 1


def test_a_cluster_that_is_lost_at_the_start_is_a_failure_and_leaves_nothing(ray, tmp_path, monkeypatch):
    def lose(self) -> None:
        ray.lost = OfGrpc()
        self._look()

    monkeypatch.setattr(RayWorkers, "_check_nodes", lose)
    with pytest.raises(Failed, match=f"{LOST}.* \\(Stream removed\\)"):
        RayWorkers("ray", output=tmp_path / "shards").__enter__()
    assert not list(tmp_path.iterdir())


def test_a_look_before_the_wait_may_find_that_another_thread_has_lost_it(ray):
    with RayWorkers("ray") as pool:
        wait = pool.submit(print)
        waited = ray.wait
        ray.wait = lambda *args, **more: (waited(*args, **more), give_up(ray))[0]
        with pytest.raises(Failed, match=LOST):
            wait()


def test_a_bug_of_ours_keeps_its_traceback(ray):
    with RayWorkers("ray") as pool:
        ray.lost = TypeError("a bug")
        with pytest.raises(TypeError, match="a bug"):
            pool.submit(print)
        ray.lost = None


def test_a_thread_that_waits_ends_when_the_work_is_stopped(ray):
    errors = []

    def wait_for(result) -> None:
        try:
            result()
        except Failed as error:
            errors.append(str(error))

    with RayWorkers("ray") as pool:
        thread = threading.Thread(target=wait_for, args=[pool.submit(print)], daemon=True)
        thread.start()
        assert ray.waited.wait(10)
        pool.stop()
        thread.join(10)
        assert not thread.is_alive() and errors == ["Ray: the work was stopped"]
    assert ray.cancelled == ray.started


def test_a_second_ctrl_c_while_tasks_end_leaves_nothing(ray, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), RayWorkers("ray", output=tmp_path / "shards") as pool:
        pool.submit(print)
        assert (tmp_path / ".shards.nodes").is_dir()
        ray.wait = interrupted
    assert not list(tmp_path.iterdir())


def test_a_mark_that_cannot_be_written_leaves_no_folder(tmp_path, monkeypatch):
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nodes, "_mark", full)
    with pytest.raises(OSError, match="No space left"):
        nodes.new_job([], tmp_path / "shards")
    assert not list(tmp_path.iterdir())
