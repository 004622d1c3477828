"""Commands as people type them, in processes of their own: engines, an interrupted run, the plan."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from data_prep.common.files import sha256_of

ROOT = Path(__file__).resolve().parents[2]
ROWS = 256


def start(*argv: str) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-m", *argv], cwd=ROOT, text=True, **pipes)


def _run(*argv: str, timeout: float = 240) -> subprocess.CompletedProcess:
    process = start(*argv)
    try:
        said = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(argv, process.returncode, *said)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def _device(bench) -> str:
    return f"train.device={bench.device.type}"


def engines(bench) -> dict:
    """`launch doctor --exactness` for every engine that one device can run: its line of the table."""
    names = ["cpu"] if bench.dry else ["single_gpu", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"]
    found = {}
    for name in names:
        one = () if name in ("cpu", "single_gpu") else ("--processes", "1")
        done = _run("launch", "doctor", "--exactness", "--engine", name, *one)
        lines = [line for line in done.stdout.splitlines() if line.startswith(name)]
        found[name] = {"exit_code": done.returncode, "line": lines[-1:] or done.stderr.splitlines()[-3:]}
    return found


def _run_file(bench, name: str) -> Path:
    """A run file of twelve steps on random rows; the shards are made once."""
    shards = bench.folder / "shards"
    if not shards.exists():
        rng = random.Random(0)
        rows = [{"query": _text(rng, 8), "positive": _text(rng, 40)} for _ in range(ROWS)]
        pairs = bench.folder / "pairs.jsonl"
        pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
        done = _run("data_prep", "shard", str(pairs), "--output", str(shards), "--eval-fraction", "0")
        assert done.returncode == 0, done.stderr
    values = {
        "output_dir": str(bench.folder / name), "data": {"train": str(shards)},
        "model": {"path": str(bench.models["encoder"]), "pooling": "mean", "normalize": True, "passage_max_len": 64},
        "train": {"batch_size": 32, "max_steps": 12, "epochs": 2, "deterministic": True, "micro_batch_tokens": 2048},
        "checkpoint": {"every_steps": 2},
    }  # fmt: skip
    file = bench.folder / f"{name}.json"
    file.write_text(json.dumps(values))
    return file


def _text(rng: random.Random, words: int) -> str:
    return " ".join(f"w{rng.randrange(2000)}" for _ in range(words))


def resume(bench) -> dict:
    """A run that is killed after its first checkpoint and resumed: has it the bytes of one that was not?"""
    whole = _run("trainer", "--config", str(_run_file(bench, "whole")), _device(bench))
    file, out = _run_file(bench, "cut"), bench.folder / "cut"
    process = start("trainer", "--config", str(file), _device(bench))
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until and not list(out.glob("checkpoint-step-*")):
        time.sleep(0.02)
    process.kill()
    process.communicate()
    again = _run("trainer", "--config", str(file), _device(bench), "--resume")
    if whole.returncode or again.returncode:
        return {"error": (whole.stderr + again.stderr)[-800:]}
    whole, cut = (sha256_of(run / "final" / "model.safetensors") for run in (bench.folder / "whole", out))
    return {"killed": process.returncode == -signal.SIGKILL, "same_bytes": whole == cut}


def plan(bench) -> dict:
    """`launch plan` of the run that `resume` makes."""
    done = _run("launch", "plan", "--config", str(_run_file(bench, "planned")), "--json", _device(bench))
    return {
        "exit_code": done.returncode,
        "plan": json.loads(done.stdout) if done.returncode == 0 else done.stderr[-800:],
    }
