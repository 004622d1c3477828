"""python -m tests.soak.slurm: the scripts of `launch slurm` on a real SLURM of two nodes, each a network host.

Runs on 2 nodes x 2 ranks that nobody disturbs; the same run ended by SIGUSR1 before its time limit and requeued; the
same run on a node that is killed; an array. Prints one JSON line per case. Needs root, SLURM (slurmctld, slurmd, munge)
and the scripts that start it, beside the checkout or at EMBEDFLEET_TEST_CLUSTER.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests import tiny
from tests.end_to_end.runs import digest, events, losses, write_run
from tests.launching import environment
from tests.soak.hosts import CLUSTER, COMPILED, missing, show

SLOW_LOSS = '''
import os, time

def slow(queries, positives, batch):
    """A step takes as long as EMBEDFLEET_SOAK_SLEEP says: the run meets its limit on a fast machine too."""
    time.sleep(float(os.environ.get("EMBEDFLEET_SOAK_SLEEP", "0")))
    return (queries - positives).square().sum(dim=1).mean()
'''
LAUNCHERS = {"ddp": "torchrun", "zero2": "accelerate"}
PATIENCE = 1500  # seconds for a job
REBOOT = 60  # seconds that a killed node is away; one that is back at once gets the order to kill what it ran before


class Slurm:
    """A controller and two nodes with four CPUs each."""

    def __init__(self, root: Path):
        self.root = root

    def __enter__(self):
        up = ["bash", str(CLUSTER / "slurm" / "up_netns.sh"), str(self.root), "2", "8", "0"]
        subprocess.run(up, check=True, stdout=subprocess.DEVNULL, timeout=120)
        return self

    def __exit__(self, *_):
        down = ["bash", str(CLUSTER / "slurm" / "down_netns.sh"), str(self.root)]
        subprocess.run(down, stdout=subprocess.DEVNULL, timeout=120, check=False)

    def start(self, cwd: Path, *argv: str, **extra: str) -> subprocess.Popen:
        """`python -m launch slurm …` on the controller's host."""
        command = [str(self.root / "on"), "ctl", sys.executable, "-m", "launch", "slurm", *argv]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=environment(**COMPILED, **extra), cwd=cwd, start_new_session=True, **pipes)

    def ask(self, *argv: str) -> str:
        done = subprocess.run([str(self.root / "on"), "ctl", *argv], capture_output=True, text=True, check=False)
        return done.stdout

    def restarts(self, job: str) -> int:
        found = re.search(r"Restarts=(\d+)", self.ask("scontrol", "show", "job", job))
        return int(found[1]) if found else -1

    def kill_node(self, number: int) -> None:
        """Everything of SLURM on a node, as when it loses power."""
        daemon = psutil.Process(int((self.root / "run" / f"slurmd.node{number}.pid").read_text()))
        where = os.stat(f"/proc/{daemon.pid}/ns/net").st_ino
        for process in psutil.process_iter():
            try:
                if os.stat(f"/proc/{process.pid}/ns/net").st_ino == where:
                    process.kill()
            except (OSError, psutil.Error):
                continue
        end = time.monotonic() + 60
        while daemon.is_running() and daemon.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end, f"slurmd of node{number} does not die"
            time.sleep(0.05)

    def revive_node(self, number: int) -> None:
        subprocess.run(
            [str(self.root / "on"), f"node{number}", "slurmd", "-f", str(self.root / "slurm.conf")], check=True
        )


def flags(run_file: Path, engine: str, launcher: str, out: Path, *more: str) -> list[str]:
    size = ["--nodes", "2", "--ranks-per-node", "2", "--cpus-per-rank", "1"]
    argv = ["--config", str(run_file), "--engine", engine, "--launcher", launcher, *size, "--submit"]
    return [*argv, "--output", str(out.with_suffix(".sbatch")), *more, f"output_dir={out}"]


def finish(job: subprocess.Popen) -> str:
    """Returns the command's output; the run must be finished."""
    try:
        said, _ = job.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        raise AssertionError(f"no end: {job.communicate()[0][-4000:]}") from None
    assert job.returncode == 0, said[-6000:]
    return said


def job_number(out: Path) -> str:
    """Returns the job that runs into this folder."""
    return next(Path(f"{out}-logs").iterdir()).name


def wait_for_steps(job: subprocess.Popen, out: Path, steps: int) -> None:
    end = time.monotonic() + PATIENCE
    while not (out / "logs.jsonl").exists() or len(events(out)) < steps:
        assert job.poll() is None, job.communicate()[0][-4000:]
        assert time.monotonic() < end, "not reached"
        time.sleep(0.2)


def undisturbed(slurm: Slurm, folder: Path, run_file: Path, engine: str, launcher: str) -> Path:
    out, began = folder / f"{engine}-whole", time.monotonic()
    finish(slurm.start(folder, *flags(run_file, engine, launcher, out, "--time", "30")))
    assert events(out, "start")[0]["processes"] == 4
    assert len(list(Path(f"{out}-logs").rglob("stdout.log"))) == 4, "a log of each rank"
    show(case="2 nodes x 2 ranks", engine=engine, launcher=launcher, steps=len(losses(out)),
         seconds=round(time.monotonic() - began))  # fmt: skip
    return out


def stopped(
    slurm: Slurm, folder: Path, run_file: Path, engine: str, launcher: str, whole: Path, pace: str, minutes: str | None
) -> None:
    """SIGUSR1 to the batch script, by the time limit or (minutes None) asked for: a checkpoint, requeued, finished."""
    out, began = folder / f"{engine}-stopped", time.monotonic()
    more = ["--time", minutes or "30", "--signal", "60", "--requeue"]
    job = slurm.start(folder, *flags(run_file, engine, launcher, out, *more), EMBEDFLEET_SOAK_SLEEP=pace)
    if minutes is None:
        wait_for_steps(job, out, 5)
        slurm.ask("scancel", "--signal=USR1", "--batch", job_number(out))
    said = finish(job)
    again = slurm.restarts(job_number(out))
    starts = [event["step"] for event in events(out, "start")]
    line = {
        "case": f"SIGUSR1 {'before the time limit' if minutes else 'to the batch script'}", "engine": engine,
        "launcher": launcher, "requeued": again, "went_on_after_steps": starts, "steps": len(losses(out)),
        "seconds": round(time.monotonic() - began),
        "same_bytes": digest(out) == digest(whole) and losses(out) == losses(whole),
    }  # fmt: skip
    show(**line)
    assert again >= 1 and line["same_bytes"], said[-4000:]


def node_failure(slurm: Slurm, folder: Path, run_file: Path, engine: str, launcher: str, whole: Path) -> None:
    out = folder / f"{engine}-failure"
    more = ["--time", "30", "--requeue"]
    override = [*flags(run_file, engine, launcher, out, *more), "checkpoint.every_steps=5"]
    job = slurm.start(folder, *override, EMBEDFLEET_SOAK_SLEEP="0.3")
    wait_for_steps(job, out, 15)
    struck = time.monotonic()
    slurm.kill_node(2)
    number = job_number(out)
    while slurm.restarts(number) < 1:
        assert job.poll() is None, job.communicate()[0][-4000:]
        assert time.monotonic() - struck < 300, "not requeued"
        time.sleep(0.5)
    requeued = time.monotonic()
    time.sleep(REBOOT)
    slurm.revive_node(2)
    said = finish(job)
    stops = [event["step"] for event in events(out, "start")]
    line = {
        "case": "a node is killed", "engine": engine, "launcher": launcher,
        "requeued_after": round(requeued - struck, 1), "went_on_after_steps": stops,
        "finished_after": round(time.monotonic() - struck),
        "same_bytes": digest(out) == digest(whole) and losses(out) == losses(whole),
    }  # fmt: skip
    show(**line)
    assert line["same_bytes"], said[-4000:]


def array(slurm: Slurm, folder: Path, run_file: Path) -> None:
    out = folder / "sweep"
    size = ["--engine", "ddp", "--ranks-per-node", "2", "--cpus-per-rank", "1", "--time", "30", "--submit"]
    argv = ["--config", str(run_file), *size, "--sweep", "optim.lr=1e-3,1e-4", "--output", str(folder / "sweep.sbatch")]
    finish(slurm.start(folder, *argv, f"output_dir={out}"))
    rates = [json.loads((out / str(n) / "run.json").read_text())["config"]["optim"]["lr"] for n in (0, 1)]
    show(case="an array sweeps", runs=2, rates=rates, different=digest(out / "0") != digest(out / "1"))
    assert rates == [1e-3, 1e-4] and digest(out / "0") != digest(out / "1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4, help="of 32 steps (default 4)")
    parser.add_argument("--pace", default="0.5", help="seconds that a step takes at least of the run that is stopped")
    parser.add_argument("--minutes", help="stop by this time limit, which must fall into the steps (default: scancel)")
    parser.add_argument("--engines", nargs="+", choices=LAUNCHERS, default=[*LAUNCHERS])
    args = parser.parse_args()
    if why := missing("slurm", "SLURM's daemons", ("slurmctld", "slurmd", "munged", "ip")):
        sys.exit(why)
    with tempfile.TemporaryDirectory(prefix="embedfleet-slurm-") as name, Slurm(Path(name) / "slurm") as slurm:
        folder = Path(name)
        (folder / "slow_loss.py").write_text(SLOW_LOSS)
        run_file = write_run(
            folder, tiny.model(folder / "bert"), tiny.shards(folder / "shards", 500), epochs=args.epochs
        )
        values = json.loads(run_file.read_text()) | {"loss": {"name": "slow_loss:slow"}}
        run_file.write_text(json.dumps(values))
        for engine, launcher in ((engine, LAUNCHERS[engine]) for engine in args.engines):
            whole = undisturbed(slurm, folder, run_file, engine, launcher)
            stopped(slurm, folder, run_file, engine, launcher, whole, args.pace, args.minutes)
            if engine == "ddp":  # what starts again is the same for every engine
                node_failure(slurm, folder, run_file, engine, launcher, whole)
        array(slurm, folder, run_file)


if __name__ == "__main__":
    main()
