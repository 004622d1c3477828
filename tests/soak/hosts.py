"""python -m tests.soak.hosts: several hosts, each a network namespace with an address and a name, and what goes wrong.

First the same run on two and three hosts under torchrun (c10d) and `launch run` (accelerate launch): losses against
those of one process. Then faults on two hosts, under `launch run --max-restarts`: each run must end in the bytes of the
run that nobody disturbed. Prints one JSON line per case. Needs root, iproute2, ethtool, nftables, and the scripts that
make the hosts, beside the checkout or at EMBEDFLEET_TEST_CLUSTER.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests import tiny
from tests.end_to_end.runs import digest, losses, write_run
from tests.launching import ROOT, environment
from trainer.distributed.compile_lock import operator_folder

CLUSTER = Path(os.environ.get("EMBEDFLEET_TEST_CLUSTER", ROOT.parent / "shared" / "cluster"))
# One folder for all hosts, which would each compile DeepSpeed's operator into one of its own.
COMPILED = {"TORCH_EXTENSIONS_DIR": str(operator_folder())}
MASTER = "node1"
TIMEOUT_MINUTES = 1.0  # how long a rank waits for the others
OFFLOADS = ("tx", "off", "tso", "off", "gso", "off", "gro", "off")
PATIENCE = 600  # seconds for a case


def missing(scripts: str = "netns", what: str = "network hosts", tools=("ip", "tc", "nft", "ethtool")) -> str:
    """Why hosts (or what else the cluster's scripts start) cannot be made here, or an empty text."""
    if not (CLUSTER / scripts).is_dir():
        return f"no scripts for {what} at {CLUSTER}"
    if not hasattr(os, "geteuid") or os.geteuid():
        return f"{what} need root"
    absent = [name for name in tools if not shutil.which(name)]
    return f"{', '.join(absent)} not installed" if absent else ""


class Hosts:
    """Hosts 1 … count on a bridge; what happens to their network."""

    def __init__(self, count: int):
        self.count, self.name = count, f"ef{os.getpid()}-"
        self.env = os.environ | {"PREFIX_NS": self.name}
        self._slow: subprocess.Popen | None = None

    def __enter__(self):
        self._script("net_up.sh", str(self.count))
        return self

    def __exit__(self, *_):
        if self._slow:
            self._slow.kill()
        self._script("net_down.sh", str(self.count))

    def _script(self, name: str, *args: str) -> None:
        subprocess.run(["bash", str(CLUSTER / "netns" / name), *args], env=self.env, check=True, capture_output=True)

    def _ip(self, place: str, *args: str) -> None:
        subprocess.run(["ip", "-n", f"{self.name}{place}", *args], check=True)

    def _within(self, place: str, *args: str) -> None:
        subprocess.run(["ip", "netns", "exec", f"{self.name}{place}", *args], check=True)

    def start(self, host: int, argv: list[str]) -> "Running":
        return Running(["bash", str(CLUSTER / "netns" / "on.sh"), str(host), *argv], self.env)

    def link(self, host: int, state: str) -> None:
        """up or down."""
        self._ip("sw", "link", "set", f"p{host}", state)

    def loss(self, host: int, percent: int) -> None:
        self._script("loss.sh", f"{self.name}{host}", str(percent))

    def delay(self, milliseconds: int) -> None:
        """Between hosts 1 and 2, each way."""
        for host in (1, 2):
            self._ip("sw", "link", "set", f"p{host}", "nomaster")
            self._within(str(host), "ethtool", "-K", "eth0", *OFFLOADS)
        script = [str(CLUSTER / "netns" / "delay.py"), "p1", "p2", str(milliseconds)]
        self._slow = subprocess.Popen(["ip", "netns", "exec", f"{self.name}sw", sys.executable, *script])

    def bandwidth(self, megabits: int) -> None:
        for host in range(1, self.count + 1):
            shape = f"tc qdisc add dev eth0 root tbf rate {megabits}mbit burst 64kb latency 400ms"
            self._within(str(host), *shape.split())


class Running:
    """A command on a host; its lines with the time they came."""

    def __init__(self, argv: list[str], env: dict):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        env = environment(**COMPILED) | {"PREFIX_NS": env["PREFIX_NS"]}
        self.process = subprocess.Popen(argv, env=env, cwd=ROOT, start_new_session=True, **pipes)
        self.lines: list[tuple[float, str]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))

    def end(self, seconds: float) -> int:
        code = self.process.wait(timeout=seconds)
        self._reader.join(timeout=5)
        return code

    def said(self) -> str:
        return "\n".join(text for _, text in self.lines)

    def first(self, words: tuple[str, ...], after: float) -> float | None:
        """When a line with one of the words came first, after a time."""
        return next((at for at, text in self.lines if at > after and any(word in text for word in words)), None)

    def ranks(self) -> list[psutil.Process]:
        return [p for p in psutil.Process(self.process.pid).children(recursive=True) if _is_rank(p)]

    def launcher(self) -> psutil.Process:
        below = psutil.Process(self.process.pid).children()
        return next(p for p in below if "accelerate.commands.launch" in p.cmdline())

    def kill(self) -> None:
        if self.process.poll() is None:
            for process in [
                *psutil.Process(self.process.pid).children(recursive=True),
                psutil.Process(self.process.pid),
            ]:
                process.kill()


def _is_rank(process: psutil.Process) -> bool:
    try:
        return "RANK" in process.environ() and "trainer" in process.cmdline()
    except psutil.Error:
        return False


def torchrun(hosts: Hosts, run_file: Path, engine: str, out: Path) -> list[Running]:
    meeting = ["--nnodes", str(hosts.count), "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    meeting += ["--rdzv-endpoint", f"{MASTER}:29500", "--rdzv-id", "soak"]
    trainer = ["-m", "trainer", "--config", str(run_file), "--engine", engine, "--processes", str(hosts.count)]
    argv = [sys.executable, "-m", "torch.distributed.run", *meeting, *trainer, f"output_dir={out}", "train.device=cpu"]
    return [hosts.start(host, argv) for host in range(1, hosts.count + 1)]


def launch_run(hosts: Hosts, run_file: Path, engine: str, out: Path, *more: str) -> list[Running]:
    argv = [sys.executable, "-m", "launch", "run", "--config", str(run_file), "--engine", engine, "--processes", "1"]
    argv += ["--nnodes", str(hosts.count), "--master", MASTER, *more, f"output_dir={out}"]
    return [hosts.start(host, [*argv, "--node-rank", str(host - 1)]) for host in range(1, hosts.count + 1)]


def finish(started: list[Running]) -> None:
    """Waits for the end of all; each must be 0."""
    end = time.monotonic() + PATIENCE
    try:
        codes = [one.end(max(1.0, end - time.monotonic())) for one in started]
    except subprocess.TimeoutExpired:
        raise AssertionError("no end:\n" + "\n--\n".join(one.said()[-3000:] for one in started)) from None
    finally:
        for one in started:
            one.kill()
    assert codes == [0] * len(started), "\n--\n".join(one.said()[-3000:] for one in started)


def one_host(run_file: Path, out: Path, engine: str, ranks: int) -> Path:
    argv = [sys.executable, "-m", "launch", "run", "--config", str(run_file), "--engine", engine]
    argv += ["--processes", str(ranks), f"output_dir={out}"]
    subprocess.run(argv, env=environment(), cwd=ROOT, check=True, capture_output=True)
    return out


LAUNCHES: dict[str, tuple[Callable, str]] = {
    "torchrun c10d, ddp": (torchrun, "ddp"),
    "launch run, ddp": (launch_run, "ddp"),
    "launch run, zero2": (launch_run, "zero2"),
    "launch run, zero3": (launch_run, "zero3"),
}


def equality(folder: Path, run_file: Path, counts: list[int]) -> None:
    """The same losses on one process and on several hosts."""
    expected = losses(one_host(run_file, folder / "one", "cpu", 1))
    for count in counts:
        for name, (launch, engine) in LAUNCHES.items():
            out, began = folder / f"{count}-{name}", time.monotonic()
            with Hosts(count) as hosts:
                finish(launch(hosts, run_file, engine, out))
            got = losses(out)
            assert got.keys() == expected.keys()
            off = max(abs(got[step] - loss) for step, loss in expected.items())
            assert off < 1e-4, f"{name} on {count} hosts: losses off by {off}"
            show(case=name, hosts=count, steps=len(got), largest_difference=off, seconds=_since(began))


def _since(began: float) -> float:
    return round(time.monotonic() - began, 1)


def show(**line) -> None:
    print(json.dumps(line), flush=True)


NOTICED = ("lost the others", "failed with exit code", "Connection reset", "Connection closed")


def kill_worker(hosts: Hosts, started: list[Running]) -> None:
    started[1].ranks()[0].send_signal(signal.SIGKILL)


def kill_agent(hosts: Hosts, started: list[Running]) -> None:
    started[1].launcher().send_signal(signal.SIGKILL)


def cut(hosts: Hosts, started: list[Running]) -> None:
    """Waits until every host has noticed; then the link is mended."""
    began = time.monotonic()
    hosts.link(2, "down")
    wait_for(lambda: all(one.first(("failed with exit code",), began) for one in started), started, 300)
    hosts.link(2, "up")


def blip(hosts: Hosts, started: list[Running]) -> None:
    hosts.link(2, "down")
    time.sleep(8)
    hosts.link(2, "up")


FAULTS: dict[str, Callable] = {
    "SIGKILL of a rank": kill_worker,
    "SIGKILL of a node's launcher": kill_agent,
    "link cut, mended once noticed": cut,
    "link gone for 8 s": blip,
}
SLOW: dict[str, Callable] = {
    "20 % of the packets lost": lambda hosts: hosts.loss(2, 20),
    "50 ms latency each way": lambda hosts: hosts.delay(50),
    "50 Mbit/s": lambda hosts: hosts.bandwidth(50),
}


def wait_for(reached: Callable, started: list[Running], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not reached():
        for one in started:
            assert one.process.poll() is None, one.said()[-3000:]
        assert time.monotonic() < end, "not reached:\n" + "\n--\n".join(one.said()[-3000:] for one in started)
        time.sleep(0.05)


def steps_said(one: Running) -> int:
    return sum(text.startswith("step ") and "/" in text for _, text in one.lines)


SUPERVISED = ["--max-restarts", "4", "checkpoint.every_steps=5", f"train.timeout_minutes={TIMEOUT_MINUTES}"]


def whole_run(folder: Path, run_file: Path, engine: str) -> Path:
    """On two hosts as well: a rank on a host of its own has more threads than one of two, and sums in another order."""
    out = folder / f"{engine}-whole"
    with Hosts(2) as hosts:
        finish(launch_run(hosts, run_file, engine, out, *SUPERVISED))
    return out


def fault(folder: Path, run_file: Path, engine: str, name: str, undisturbed: Path) -> None:
    out = folder / f"{engine}-{name}".replace(" ", "-").replace("'", "")
    with Hosts(2) as hosts:
        started = launch_run(hosts, run_file, engine, out, *SUPERVISED)
        try:
            wait_for(lambda: steps_said(started[0]) >= 8, started, 300)
            struck = time.monotonic()
            FAULTS[name](hosts, started)
            mended = time.monotonic()
            finish(started)
        finally:
            for one in started:
                one.kill()
    noticed = [one.first(NOTICED, struck) for one in started]
    restarted = started[0].first(("restart 1",), struck)
    going_on = started[0].first(("step ",), restarted or mended)
    line = {
        "case": name, "engine": engine,
        "noticed_after": [round(at - struck, 1) if at else None for at in noticed],
        "restarts": [sum("restart " in text and " of " in text for _, text in one.lines) for one in started],
        "next_step_after": round(going_on - struck, 1) if going_on else None,
        "same_bytes": digest(out) == digest(undisturbed) and losses(out) == losses(undisturbed),
    }  # fmt: skip
    show(**line)
    assert line["same_bytes"], out


def slow(folder: Path, run_file: Path, engine: str, name: str, undisturbed: Path) -> None:
    out, began = folder / f"{engine}-{list(SLOW).index(name)}", time.monotonic()
    with Hosts(2) as hosts:
        SLOW[name](hosts)
        started = launch_run(hosts, run_file, engine, out, *SUPERVISED)
        finish(started)
    steps = [at for at, text in started[0].lines if text.startswith("step ") and "checkpoint" not in text]
    line = {
        "case": name, "engine": engine, "steps": len(steps),
        "seconds_per_step": round((steps[-1] - steps[0]) / (len(steps) - 1), 3),
        "restarts": [sum("restart " in text and " of " in text for _, text in one.lines) for one in started],
        "seconds": _since(began),
        "same_bytes": digest(out) == digest(undisturbed) and losses(out) == losses(undisturbed),
    }  # fmt: skip
    show(**line)
    assert line["same_bytes"], out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, nargs="*", default=[2, 3], help="how many, for the losses")
    parser.add_argument("--engine", default="ddp", help="of the faults (default ddp)")
    parser.add_argument("--epochs", type=int, default=4, help="of 32 steps, of the runs with faults (default 4)")
    parser.add_argument("--only", nargs="*", help="these faults, by a part of their names")
    args = parser.parse_args()
    if missing():
        sys.exit(missing())
    with tempfile.TemporaryDirectory(prefix="embedfleet-hosts-") as name:
        folder = Path(name)
        run_file = write_run(folder, tiny.model(folder / "bert"), tiny.shards(folder / "shards", 500), epochs=1)
        if args.hosts:
            equality(folder, run_file, args.hosts)
        wanted = [name for name in (*FAULTS, *SLOW) if args.only is None or any(part in name for part in args.only)]
        if not wanted:
            return
        SUPERVISED.append(f"train.epochs={args.epochs}")
        whole = whole_run(folder, run_file, args.engine)
        for one in wanted:
            (fault if one in FAULTS else slow)(folder, run_file, args.engine, one, whole)


if __name__ == "__main__":
    main()
