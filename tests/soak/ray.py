"""python -m tests.soak.ray: `shard --on ray` on three hosts, each a network namespace with a raylet of one core.

First the same rows on 1, 2 and 3 nodes and without Ray: equal bytes, rows per second. Then faults: each ends in the
same bytes, or in one refusal. --words makes few rows large enough for many tasks. Prints one JSON line per case. Needs
root, iproute2 and the scripts that make the hosts, see tests/soak/hosts.py. The hosts share one kernel and its disks:
every folder is shared unless a case hides it.
"""

import argparse
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests import tiny
from tests.disks import small_disk
from tests.launching import ROOT
from tests.soak.hosts import Hosts, Running, missing

BIN = Path(sys.executable).parent
HEAD = "10.77.0.1:6379"
SECRET = "sk-planted-soak-secret"
EVERY_PHASE, LONG = "in every phase of one run and back", 3_000_000  # a case, and the rows from which it has the time
PATIENCE = 3000  # seconds for a case
QUIET = ["env", "RAY_USAGE_STATS_ENABLED=0", "RAY_AUTH_MODE=disabled", "RAY_worker_niceness=0", "OMP_NUM_THREADS=1"]


def show(**line) -> None:
    print(json.dumps(line), flush=True)


def write_rows(path: Path, count: int, length: int) -> None:
    """length: words of a positive."""
    draw = random.Random(0)
    words = [f"word{i}" for i in range(30_000)]
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(count):
            query, positive = (" ".join(draw.choices(words, k=k)) for k in (6, length))
            file.write(json.dumps({"query": query, "positive": positive}) + "\n")


class Ray:
    """Raylets of one core on the hosts; `nodes`: the running ones by host, 1 the head."""

    def __init__(self, hosts: Hosts, folder: Path):
        self.hosts, self.folder, self.nodes = hosts, folder, {}
        self.odd: set[int] = set()  # hosts that a case started otherwise
        self.seen: dict[str, int] = {}  # counts of the current case, beside those that every case has

    def start(self, host: int, *before: str, temp: Path | None = None) -> Running:
        """before: a command that starts the raylet."""
        self.odd |= {host} if before or temp else set()
        where = ["--head", "--port", "6379", "--include-dashboard=false", "--temp-dir", str(self.folder / "ray")]
        where = where if host == 1 else ["--address", HEAD, *(["--temp-dir", str(temp)] if temp else [])]
        one = ["--num-cpus", "1", "--node-ip-address", f"10.77.0.{host}", "--object-store-memory", "80000000"]
        argv = [*before, *QUIET, str(BIN / "ray"), "start", "--block", *one, *where]
        self.nodes[host] = started = self.hosts.start(host, argv)
        until = time.monotonic() + 120
        while "Ray runtime started" not in started.said():
            assert time.monotonic() < until and started.process.poll() is None, started.said()
            time.sleep(0.2)
        return started

    def kill(self, host: int) -> None:
        self.odd.discard(host)
        self.nodes.pop(host).kill()

    def renew(self) -> None:
        """Starts the hosts that have no raylet, or an odd one."""
        for host in (1, 2, 3):
            if host in self.odd or (host in self.nodes and self.nodes[host].process.poll() is not None):
                self.kill(host)
            if host not in self.nodes:
                self.start(host)

    def stop(self) -> None:
        for host in sorted(self.nodes, reverse=True):
            self.kill(host)


class Case:
    """Parts that all cases share: rows, a tokenizer, and the folder that one process wrote."""

    def __init__(self, folder: Path, rows: int, length: int):
        self.folder, self.rows, self.path, self.model = folder, rows, folder / "rows.jsonl", tiny.model(folder / "bert")
        write_rows(self.path, rows, length)
        self.whole = folder / "whole"

    def argv(self, output: Path, *flags: str) -> list[str]:
        argv = [*QUIET, sys.executable, "-m", "data_prep", "shard", str(self.path), "--output", str(output)]
        return [*argv, "--num-shards", "6", "--tokenizer", str(self.model), "--near-duplicates", "0.85", *flags]

    def alone(self, workers: int) -> float:
        """Shards without Ray; returns the seconds."""
        began = time.monotonic()
        done = subprocess.run([*self.argv(self.whole, "--workers", str(workers), "--overwrite")], cwd=ROOT)
        assert done.returncode == 0
        return time.monotonic() - began

    def start(self, hosts: Hosts, output: Path) -> Running:
        # a shell starts what runs in its background with SIGINT ignored
        environment = ["env", "--default-signal=INT", f"RAY_ADDRESS={HEAD}", f"OPENAI_API_KEY={SECRET}"]
        return hosts.start(1, [*environment, *self.argv(output, "--on", "ray")])

    def same(self, output: Path) -> bool:
        return not subprocess.run(["diff", "-r", str(self.whole), str(output)], capture_output=True).stdout


def running_tasks(node: Running | None = None) -> list[psutil.Process]:
    """Processes that run a task, of one node or all."""
    below = psutil.Process(node.process.pid).children(recursive=True) if node else None
    busy = [one for one in psutil.process_iter(["cmdline"]) if "ray::_run_task" in " ".join(one.info["cmdline"] or ())]
    return [process for process in busy if below is None or process in below]


def spool_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.unfinished") / "spool"


def until(running: Running, there: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not there():
        assert running.process.poll() is None and time.monotonic() < end, running.said()
        time.sleep(0.05)


def reading(output: Path, running: Running) -> None:
    until(running, lambda: any(spool_of(output).glob("*.npz")))


def writing(output: Path, running: Running) -> None:
    until(running, lambda: (spool_of(output).parent / "train").is_dir())


def tokenising(output: Path, running: Running) -> None:
    until(running, lambda: any(spool_of(output).glob("*.tokens.npz")))


def speed(folder: Path, case: Case, hosts: Hosts) -> None:
    """Equal bytes and rows per second on 1, 2 and 3 nodes of one core, and by --workers."""
    for workers in (1, 2):
        seconds = case.alone(workers)
        show(
            case="speed", rows=case.rows, workers=workers, seconds=round(seconds, 1), rows_s=round(case.rows / seconds)
        )
    ray = Ray(hosts, folder)
    try:
        for count in (1, 2, 3):
            ray.start(count)
            output = folder / f"nodes{count}"
            before = _seconds_of_children()
            running = case.start(hosts, output)
            assert running.end(PATIENCE) == 0, running.said()
            connected = running.first(("Ray: ",), 0)
            seconds = running.lines[-1][0] - connected
            line = {"nodes": count, "seconds": round(seconds, 1), "rows_s": round(case.rows / seconds)}
            line["cpu_seconds_of_the_command"] = round(_seconds_of_children() - before, 1)
            show(case="speed", rows=case.rows, **line, same_bytes=case.same(output))
        secrets = subprocess.run(["grep", "-rlF", SECRET, str(folder / "ray")], capture_output=True, text=True).stdout
        show(case="secret of the driver's environment", files_that_hold_it=secrets.split())
    finally:
        ray.stop()


def _seconds_of_children() -> float:
    """Returns the processor seconds of ended children; the raylets are none, they run on."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def killed(when: Callable[[Path, Running], None], back: bool) -> Callable:
    """Node 3 is killed in a phase; with `back` another one joins from there 5 seconds later."""

    def fault(case: Case, hosts: Hosts, ray: Ray, output: Path) -> Running:
        running = case.start(hosts, output)
        when(output, running)
        until(running, lambda: running_tasks(ray.nodes[3]))
        ray.kill(3)
        if back:
            time.sleep(5)
            ray.start(3)
        return running

    return fault


def killed_in_every_phase(case: Case, hosts: Hosts, ray: Ray, output: Path) -> Running:
    """Node 3 is killed in each phase of one run, and comes back 5 seconds later."""
    running = case.start(hosts, output)
    for when in (reading, writing, tokenising):
        when(output, running)
        until(running, lambda: running_tasks(ray.nodes[3]))
        ray.kill(3)
        time.sleep(5)
        ray.start(3)
    return running


def cut_off(case: Case, hosts: Hosts, ray: Ray, output: Path) -> Running:
    """The link of node 3 is down for 90 seconds: it lives, but nobody hears it."""
    running = case.start(hosts, output)
    until(running, lambda: running_tasks(ray.nodes[3]))
    hosts.link(3, "down")
    time.sleep(90)
    hosts.link(3, "up")
    return running


def without_the_folder(case: Case, hosts: Hosts, ray: Ray, output: Path) -> Running:
    """Node 3 has another, empty folder in place of the shared one."""
    ray.kill(3)
    shared = output.parent
    hide = f'mount -t tmpfs none {shared} && exec "$@"'
    ray.start(3, "unshare", "--mount", "bash", "-c", hide, "_")
    return case.start(hosts, output)


def other_code(case: Case, hosts: Hosts, ray: Ray, output: Path) -> Running:
    """Node 3 has an embedfleet with one more comment where the others have theirs."""
    copy = output.parent / "copy"
    shutil.copytree(ROOT / "data_prep", copy / "data_prep")
    with open(copy / "data_prep" / "records.py", "a") as file:
        file.write("# changed\n")
    ray.kill(3)
    hide = f'mount --bind {copy}/data_prep {ROOT}/data_prep && exec "$@"'
    ray.start(3, "unshare", "--mount", "bash", "-c", hide, "_")
    return case.start(hosts, output)


def full_disk(case: Case, hosts: Hosts, ray: Ray, output: Path) -> Running:
    """The disk of node 3's raylet is full from the moment it runs a task."""
    ray.kill(3)
    with small_disk(output.parent / "small", "200m") as small:
        ray.start(3, temp=small)
        running = case.start(hosts, output)
        until(running, lambda: running_tasks(ray.nodes[3]))
        subprocess.run(["dd", "if=/dev/zero", f"of={small}/fill", "bs=1M"], capture_output=True)
        ray.seen["tasks_on_the_full_node"] = _count_tasks(running, ray.nodes[3])
        ray.kill(3)
        time.sleep(2)
    return running


def _count_tasks(running: Running, node: Running) -> int:
    """Looks at a node until the command ends. Returns the looks, 20 a second, at which it ran a task."""
    looks, end = 0, time.monotonic() + PATIENCE
    while running.process.poll() is None and time.monotonic() < end:
        looks += bool(running_tasks(node))
        time.sleep(0.05)
    return looks


def full_output(case: Case, hosts: Hosts, ray: Ray, output: Path) -> Running:
    """The disk of the output, which all nodes see, holds less than the spool."""
    ray.stop()
    with small_disk(output.parent / "small", "8m") as small:
        for host in (1, 2, 3):  # a raylet sees no disk that is mounted later
            ray.start(host)
        running = case.start(hosts, small / "shards")
        running.end(PATIENCE)
        ray.seen["files_left"] = len(list(small.iterdir()))
        ray.stop()
        time.sleep(2)
    return running


def interrupted(case: Case, hosts: Hosts, ray: Ray, output: Path) -> Running:
    running = case.start(hosts, output)
    reading(output, running)
    running.process.send_signal(signal.SIGINT)  # every script before the command was replaced by it
    return running


def head_killed(case: Case, hosts: Hosts, ray: Ray, output: Path) -> Running:
    running = case.start(hosts, output)
    reading(output, running)
    ray.kill(1)
    return running


FAULTS = {
    "Ctrl-C": interrupted,
    "killed while reading and back": killed(reading, True),
    "killed while writing": killed(writing, False),
    "killed while writing and back": killed(writing, True),
    "killed while tokenising": killed(tokenising, False),
    "killed while tokenising and back": killed(tokenising, True),
    EVERY_PHASE: killed_in_every_phase,
    "without the folder": without_the_folder,
    "other code": other_code,
    "full disk": full_disk,
    "full disk of the output": full_output,
    "cut off for 90 seconds": cut_off,
    "killed while reading": killed(reading, False),
    "head killed": head_killed,
}


def fault(ray: Ray, case: Case, name: str) -> None:
    place = case.folder / name.replace(" ", "-")
    place.mkdir()
    output = place / "shards"
    ray.renew()
    ray.seen = {}
    began = time.monotonic()
    running = FAULTS[name](case, ray.hosts, ray, output)
    struck = time.monotonic()
    code = running.end(PATIENCE)
    last = [text for _, text in running.lines if not text.startswith(("reading", "writing", "Ray: "))][-2:]
    ended = time.monotonic()
    line = {"code": code, "seconds": round(ended - began), "seconds_after": round(ended - struck, 1), "last": last}
    line |= {"nodes": [text for _, text in running.lines if text.startswith("Ray: node")]}
    line |= {"same_bytes": case.same(output)} if code == 0 else {}
    line |= {"left": sorted(path.name for path in place.iterdir() if "shards" in path.name)}
    show(case=name, **line, **ray.seen, tasks=len(running_tasks()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=40, help="of a positive")
    parser.add_argument("--only", nargs="*", help="these faults, by a part of their names")
    parser.add_argument("--no-speed", action="store_true", help="only the faults")
    args = parser.parse_args()
    if reason := missing(tools=("ip",)):
        sys.exit(reason)
    with tempfile.TemporaryDirectory(prefix="ef-ray-") as name:
        folder = Path(name)
        case = Case(folder, args.rows, args.words)
        if args.no_speed:
            show(case="--workers 2", rows=args.rows, seconds=round(case.alone(2), 1))
        else:
            with Hosts(3) as hosts:
                speed(folder, case, hosts)
        with Hosts(3) as hosts:
            ray = Ray(hosts, folder)
            try:
                for one in FAULTS:
                    if args.only is None and one == EVERY_PHASE and args.rows < LONG:
                        show(case=one, skipped=f"needs --rows {LONG} or more")
                    elif args.only is None or any(part in one for part in args.only):
                        fault(ray, case, one)
            finally:
                ray.stop()


if __name__ == "__main__":
    main()
