"""python -m tests.soak.kills: SIGKILLs at random instants over short runs; every run must end in the undisturbed bytes.

Three ranks by default, engines and {full, lora} in turn, a checkpoint after every second step. Every third kill waits
for one that is being written. After each kill the same command is started with --resume. Prints one JSON line per
engine and mode.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests import tiny
from tests.end_to_end.runs import digest, events, losses, write_run
from tests.launching import ROOT, environment

EPOCHS = 3
AIMED = 3  # every so many kills, one waits for a checkpoint that is being written


def command(run_file: Path, out: Path, engine: str, mode: str, processes: int) -> list[str]:
    argv = [sys.executable, "-m", "launch", "run", "--config", str(run_file), "--engine", engine]
    argv += ["--processes", str(processes)] if engine != "cpu" else []
    return [*argv, "--resume", f"output_dir={out}", "checkpoint.every_steps=2", f"model.finetune={mode}"]


def kill_all(process: subprocess.Popen, out: Path) -> None:
    """The launcher and every rank, at once."""
    os.killpg(process.pid, signal.SIGKILL)
    for left in psutil.process_iter(["cmdline"]):
        if f"output_dir={out}" in (left.info["cmdline"] or []):
            left.kill()
    process.wait()


def writing(out: Path) -> bool:
    return any(out.glob(".writing-*"))


def disturbed(argv: list[str], out: Path, longest: float, kills: int, draw: random.Random) -> tuple[int, int]:
    """Runs to the end with up to `kills` kills; (kills made, of them while a checkpoint was being written)."""
    made = inside = 0
    while True:
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                argv, env=environment(), cwd=ROOT, start_new_session=True, stdout=said, stderr=subprocess.STDOUT
            )
            if made == kills:
                process.wait(timeout=600)
            aimed = made % AIMED == AIMED - 1
            at = time.monotonic() + (0 if aimed else draw.uniform(0, longest))
            while process.poll() is None and (time.monotonic() < at or (aimed and not writing(out))):
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.02) if aimed else 0)
            if process.poll() is not None:
                said.seek(0)
                assert process.returncode == 0, said.read().decode()[-3000:]
                return made, inside
            inside += writing(out)
            kill_all(process, out)
            made += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="over all engines and modes (default 100)")
    parser.add_argument("--engines", nargs="+", default=["ddp", "zero2", "zero3"])
    parser.add_argument("--modes", nargs="+", default=["full", "lora"])
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the lines here as well")
    args = parser.parse_args()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        model, shards = tiny.model(Path(folder) / "bert"), tiny.shards(Path(folder) / "shards", 82)
        run_file = write_run(Path(folder), model, shards, epochs=EPOCHS)
        cases = [(engine, mode) for engine in args.engines for mode in args.modes]
        for place, (engine, mode) in enumerate(cases):
            kills = args.kills // len(cases) + (place < args.kills % len(cases))
            line = soak(Path(folder), run_file, engine, mode, args.processes, kills, draw)
            print(json.dumps(line), flush=True)
            if args.json:
                with args.json.open("a") as file:
                    file.write(json.dumps(line) + "\n")


def soak(folder: Path, run_file: Path, engine: str, mode: str, processes: int, kills: int, draw: random.Random) -> dict:
    whole, began = folder / f"{engine}-{mode}-whole", time.monotonic()
    subprocess.run(command(run_file, whole, engine, mode, processes), env=environment(), cwd=ROOT, check=True,
        capture_output=True)  # fmt: skip
    longest = time.monotonic() - began
    expected, made, inside, runs = losses(whole), 0, 0, 0
    while made < kills:
        out = folder / f"{engine}-{mode}-{runs}"
        argv = command(run_file, out, engine, mode, processes)
        more, within = disturbed(argv, out, longest, min(10, kills - made), draw)
        made, inside, runs = made + more, inside + within, runs + 1
        assert losses(out) == expected, f"{out}: other losses"  # every step logged once, in order
        assert digest(out) == digest(whole), f"{out}: other weights"
        assert [event["epoch"] for event in events(out, "epoch")] == list(range(1, EPOCHS + 1))
    return {
        "engine": engine, "mode": mode, "processes": processes, "kills": made, "while_writing": inside, "runs": runs,
        "byte_identical": runs, "seconds": round(time.monotonic() - began),
    }  # fmt: skip


if __name__ == "__main__":
    main()
