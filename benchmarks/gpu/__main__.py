"""Tries everything on a GPU: is it exact, is it fast, does it fit. One JSON, rewritten after every phase.

    python -m benchmarks.gpu --output gpu.json              # about eight minutes, the most telling first
    python -m benchmarks.gpu --dry-run                      # the same phases with tiny models on a CPU

Needs no network, no data and no model: weights are random. A phase that fails says why and the others go on; after
--minutes no further phase begins, and those left out are listed.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu import commands, exact, speed
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.models import REAL, SMALL, Scale, write_models
from data_prep.common.files import write_json
from trainer.distributed.device import choose_kernels, pick_device


@dataclass
class Bench:
    """The things that every phase gets."""

    folder: Path  # temporary
    device: torch.device
    scale: Scale
    clock: Clock
    models: dict[str, Path]
    dry: bool


PHASES = {  # the most telling first
    "environment": exact.environment,
    "gradients": exact.gradients,
    "engines": commands.engines,
    "new_shapes": speed.new_shapes,
    "memory": speed.memory,
    "steps": speed.steps,
    "deterministic": exact.deterministic,
    "eight_bits": exact.eight_bits,
    "modes": speed.modes,
    "resume": commands.resume,
    "peers": speed.peers,
    "encoding": speed.encoding,
    "plan": commands.plan,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no further phase begins")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"), metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=PHASES, metavar="PHASE", help=f"of {', '.join(PHASES)}")
    parser.add_argument("--dry-run", action="store_true", help="tiny models on a CPU")
    args = parser.parse_args(argv)
    device = torch.device("cpu" if args.dry_run else pick_device("cuda"))
    choose_kernels(device.type)
    scale = SMALL if args.dry_run else REAL
    began, report = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bench = Bench(folder, device, scale, Clock(device, 1 if args.dry_run else 5), {}, args.dry_run)
        bench.models |= write_models(folder, scale)
        for name in args.only or PHASES:
            if time.monotonic() - began > 60 * args.minutes:
                report[name] = {"left_out": f"the {args.minutes:g} minutes are over"}
            else:
                report[name] = _run(name, bench)
            write_json(args.output, report)
            print(json.dumps({name: report[name]}), flush=True)
    failed = [name for name, found in report.items() if "error" in found]
    print(f"{args.output}: {len(report)} phases, failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def _run(name: str, bench: Bench) -> dict:
    """A phase's figures, or its error: the others go on, whatever it is."""
    began = time.monotonic()
    try:
        found = PHASES[name](bench)
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}", "where": traceback.format_exc().splitlines()[-6:]}
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    return found | {"seconds": round(time.monotonic() - began, 1)}


if __name__ == "__main__":
    sys.exit(main())
