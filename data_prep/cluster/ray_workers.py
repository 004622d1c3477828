"""Workers on a Ray cluster.

- Ray chooses the node of a task, and runs it again where its node or process died (RETRIES).
- Tasks under way are bounded by the cluster's cores, which are counted again every LOOK_SECONDS.
- Nothing of the environment travels: no runtime_env, and tasks hold paths, rows and versions only.
"""

import os
import platform
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data_prep.cluster import nodes
from data_prep.common.console import one_line, say
from data_prep.common.errors import BadInput, Failed, KnownError, first_line, of_system
from data_prep.common.workers import AHEAD, Result, Task, Workers
from data_prep.remote.location import Location

RETRIES = 5  # of a task whose process or node died
LOOK_SECONDS = 2.0  # between two looks at the nodes
PATIENCE = 120.0  # seconds without any node that has a core, and for one node's answer to the first checks
CONNECT_SECONDS = 5.0
CLIENT_SERVER_DIED = "Starting Ray client server failed"  # in Ray's own words
GRACE = 15.0  # seconds for cancelled tasks to end
REASON_CHARACTERS = 300  # of Ray's own words
LOST = "Ray: the connection to the cluster is lost; run again when it is up, with this embedfleet on every node"
SILENT = 30.0  # seconds after a node left, until a task that is waited for runs a second time: Ray may wait 7 minutes


class RayWorkers(Workers):
    """The nodes of a Ray cluster as long as the block.

    on: "ray" (RAY_ADDRESS, else the cluster that this machine is a part of) or "ray://HOST:PORT". A process that is
    connected already stays connected. inputs, output: see nodes.Job. count: cores of all nodes. A task
    that is silent after a node left runs a second time beside itself (SILENT), except those of `together`.
    BadInput: no Ray, no cluster, or nodes that differ from this machine. Failed: a task died RETRIES + 1 times, or no
    node was left for PATIENCE seconds.
    """

    share_disk = False

    def __init__(self, on: str, inputs: Iterable[Path | Location] = (), output: Path | None = None):
        super().__init__(1)
        self.on, self.inputs, self.output = on, list(inputs), output
        self._nodes: dict[str, str] = {}  # id -> name, of nodes with a core
        self._under_way: set[Any] = set()
        self._looked = self._seen = self._left = 0.0  # times: of a look, of a node with a core, when one left
        self._job: nodes.Job | None = None
        self._connected_here = self._stopped = False

    def __enter__(self) -> "RayWorkers":
        self.ray = _ray()
        if not self.ray.is_initialized():
            _connect(self.ray, self.on)
            self._connected_here = True
        try:
            with self._errors():
                self._begin_work()
        except BaseException:
            self.__exit__()
            raise
        say(f"Ray: {self._size()}")
        return self

    def _begin_work(self) -> None:
        options = {"num_cpus": 1, "max_retries": RETRIES, "retry_exceptions": False}
        self._run = self.ray.remote(**options)(_run_task)
        self._seen = time.monotonic()
        self._look()
        while not self._nodes:
            time.sleep(LOOK_SECONDS)
            self._look()
        self._job = nodes.new_job(self.inputs, self.output)
        self._check_nodes()

    def __exit__(self, *_: Any) -> None:
        try:
            self.stop()
        finally:
            if self._job and self._job.probe:
                shutil.rmtree(self._job.probe, ignore_errors=True)
            if self._connected_here:
                self.ray.shutdown()

    def stop(self) -> None:
        """Cancels all tasks under way, and returns when they have ended (after GRACE at most): none writes then."""
        self._stopped = True
        waiting = list(self._under_way)
        with suppress(Failed), self._errors():  # a lost cluster runs none
            for reference in waiting:
                self.ray.cancel(reference, force=True)
            if waiting:
                self.ray.wait(waiting, num_returns=len(waiting), timeout=GRACE, fetch_local=False)
        self._under_way.clear()

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Callable[[], Result]:
        start = partial(self._run.remote, self._job, function, arguments)
        with self._errors():
            if time.monotonic() - self._looked > LOOK_SECONDS:
                self._look()
            return partial(self._result, start, self._begin(start), time.monotonic())

    def together(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> list[Result]:
        """Starts all tasks, each once, and returns their results in order. Raises the error of the first that fails,
        while others run; the end of the block ends those."""
        with self._errors():
            references = [self._begin(partial(self._run.remote, self._job, function, (task,))) for task in tasks]
            waiting, results = references, {}
            while waiting:
                ready, waiting = self._wait(waiting)
                self._under_way.difference_update(ready)
                results |= {reference: self.ray.get(reference) for reference in ready}
                if time.monotonic() - self._looked > LOOK_SECONDS:
                    self._look()
            return [results[reference] for reference in references]

    def _begin(self, start: Callable[[], Any]) -> Any:
        reference = start()
        self._under_way.add(reference)
        return reference

    def note(self, done: int, seconds: float) -> str:
        speed = f"{done / seconds:,.0f} rows/s on " if done and seconds else ""
        return f", {speed}{self._size()}"

    def _size(self) -> str:
        count = len(self._nodes)
        return f"{count} {'node' if count == 1 else 'nodes'}, {self.count} {'core' if self.count == 1 else 'cores'}"

    def _result(self, start: Callable[[], Any], reference: Any, began: float) -> Any:
        runs = [reference]
        with self._errors():
            while not (ready := self._wait(runs)[0]):
                if self._stopped:
                    raise Failed("Ray: the work was stopped")
                self._look()
                if len(runs) == 1 and began < self._left < time.monotonic() - SILENT:
                    runs.append(self._begin(start))
            self._under_way.difference_update(ready)
            return self.ray.get(ready[0])

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """A block whose errors of Ray become those of a task's function, or Failed."""
        errors = self.ray.exceptions
        self._check_connected()
        try:
            yield
        except errors.RayTaskError as error:  # is an error of the function's kind too
            raise _of_task(error) from None
        except KnownError:
            raise
        except errors.RayError as error:
            died = f"a task died {RETRIES + 1} times with its process or node, or was cancelled from outside"
            raise Failed(f"Ray: {died} ({type(error).__name__}: {first_line(error)})") from None
        except Exception as error:
            if _is_of_connection(error):
                details = error.details() if hasattr(error, "details") else str(error)  # grpc's own words
                raise Failed(f"{LOST} ({one_line(details, REASON_CHARACTERS)})") from None
            self._check_connected()
            raise

    def _check_connected(self) -> None:
        """Raises Failed where Ray Client has given up; Ray would start a cluster on this machine at the next call."""
        if not self.ray.is_initialized():
            raise Failed(LOST)

    def _wait(self, references: list[Any]) -> tuple[list[Any], list[Any]]:
        """Waits LOOK_SECONDS for a task that has ended. Returns those that have, and the others."""
        self._check_connected()  # another thread may have learned that it is lost
        return self.ray.wait(references, timeout=LOOK_SECONDS)

    def _look(self) -> None:
        """Counts nodes and cores. Raises Failed where none has had a core for PATIENCE seconds."""
        alive = [node for node in self.ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        found = {node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in alive}
        for change, some, others in (("left", self._nodes, found), ("joined", found, self._nodes)):
            for name in [name for node, name in some.items() if node not in others and self._job]:
                say(f"Ray: node {name} {change}")
        now = self._looked = time.monotonic()
        if self._nodes.keys() - found.keys():
            self._left = now
        self._nodes, self.count = found, max(1, int(sum(node["Resources"]["CPU"] for node in alive)))
        self.ahead = AHEAD * self.count
        if found:
            self._seen = now
        elif now - self._seen > PATIENCE:
            raise Failed(f"Ray: no node has had a core for {PATIENCE:.0f} seconds; start nodes and run again")

    def _check_nodes(self) -> None:
        """Lets every node compare itself with this machine, then look for what all others wrote. Raises BadInput."""
        names = dict(self._nodes)
        found = self._on_every(names, _differences, self._job)
        problems = [f"node {names[node]}: {problem}" for node, some in found.items() for problem in some]
        if not problems and self._job.probe:
            marks = [*found, nodes.DRIVER]
            folder = self._job.probe.parent
            for node, missing in self._on_every(found, nodes.unseen, self._job, marks).items():
                others = ", ".join(names.get(one, one) for one in missing if one in marks)
                if missing:
                    what = f"does not show what {others} wrote" if others else missing[0]
                    problems.append(f"node {names[node]}: {folder} {what}; {nodes.mend(self._job, folder)}")
        if problems:
            raise BadInput(problems)

    def _on_every(self, names: Iterable[str], function: Callable[..., list[str]], *arguments: Any) -> dict[str, list]:
        """Returns the function's result of every node that is still there; an error, or no answer within PATIENCE, as a
        problem."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        remote, calls, answers = self.ray.remote(num_cpus=0, max_retries=0)(function), {}, {}
        for node in names:
            here = NodeAffinitySchedulingStrategy(node, soft=False)
            try:
                calls[node] = self._begin(partial(remote.options(scheduling_strategy=here).remote, *arguments))
            except ImportError as error:  # of the server of ray://, which unpickles the function
                answers[node] = [_no_answer(error)]
        until = time.monotonic() + PATIENCE
        for node, call in calls.items():
            try:
                answers[node] = self.ray.get(call, timeout=max(0.0, until - time.monotonic()))
                self._under_way.discard(call)
            except self.ray.exceptions.RayError as error:
                answers[node] = [_no_answer(error)]
        self._look()
        return {node: answer for node, answer in answers.items() if node in self._nodes}  # without those that left


def _run_task(job: nodes.Job, function: Callable[..., Any], arguments: tuple) -> Any:
    """Runs one task in a process of a node."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core each
    node, name = _this_node()
    nodes.check_once(job, node, name)
    try:
        return function(*arguments)
    except Failed as error:
        raise Failed(f"node {name}: {error}") from None
    except OSError as error:
        if error.errno is None:
            raise
        raise Failed(f"node {name}: {of_system(error)}") from None


def _differences(job: nodes.Job) -> list[str]:
    return nodes.differences(job, _this_node()[0])


def _this_node() -> tuple[str, str]:
    """Returns the id of the node of this process, and its name as in RayWorkers."""
    import ray

    address = ray.util.get_node_ip_address()
    return ray.get_runtime_context().get_node_id(), f"{platform.node()} ({address})"


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise BadInput(f"--on ray: needs the package ray ({error}): pip install 'embedfleet[ray]'") from None
    return ray


def _connect(ray: Any, on: str) -> None:
    """Connects to a running cluster. Raises BadInput where there is none; never starts one."""
    given = os.environ.get("RAY_ADDRESS", "") if on == "ray" else ""
    address, said = (
        (given or "auto", f"RAY_ADDRESS={given}" if given else "--on ray") if on == "ray" else (on, f"--on {on}")
    )
    mend = "start one (ray start --head), or name one by --on ray://HOST:PORT or RAY_ADDRESS"
    if address != "auto":
        _knock(address, said)
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())
        if CLIENT_SERVER_DIED in reason:  # ray-project/ray#63202: it is forked beside threads of gRPC
            reason = f"{CLIENT_SERVER_DIED} there; run again, or start the head with GRPC_ENABLE_FORK_SUPPORT=0"
            raise BadInput(f"{said}: {reason}") from None
        reason = one_line(reason, REASON_CHARACTERS)
        raise BadInput(f"{said}: no Ray cluster can be reached: {reason}; {mend}") from None


def _knock(address: str, said: str) -> None:
    """Raises BadInput where nothing listens at the address, for which Ray itself would wait a minute."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        if parts.scheme not in ("", "ray") or not parts.hostname or not parts.port:
            raise BadInput(f"{said}: must be HOST:PORT or ray://HOST:PORT of a running cluster")
        socket.create_connection((parts.hostname, parts.port), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise BadInput(f"{said}: no Ray cluster can be reached there: {reason}") from None


def _of_task(error: Any) -> Exception:
    """Returns the exception of a task, as its function raised it."""
    if isinstance(error.cause, Exception) and not _not_importable(error):
        return error.cause
    return BadInput(f"Ray: {_no_answer(error)}")


def _is_of_connection(error: Exception) -> bool:
    """Returns True for an error of a lost connection. Ray Client lets some of grpc's own through."""
    return isinstance(error, ConnectionError) or type(error).__module__.partition(".")[0] == "grpc"


def _not_importable(error: Exception) -> bool:
    return "No module named 'data_prep" in str(error)


def _no_answer(error: Exception) -> str:
    if _not_importable(error):
        return "embedfleet is not installed there; install the version of this machine on every node"
    return f"gives no answer ({type(error).__name__}: {first_line(error)})"
