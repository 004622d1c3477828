"""Fuzzes everything that reads what people bring: python -m tests.soak.fuzz 60 (minutes, by default 60).

Targets take turns, each with the same time, in a process of its own for a few minutes. Every finding is written into
--out as a file, as small as the turn has time for; python -m tests.soak.fuzz --replay FILE runs it again.
"""

import argparse
import collections
import faulthandler
import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import seed as seeded
from hypothesis.errors import Flaky

from tests.fuzzing import TARGETS, target
from tests.fuzzing.case import CPU_SECONDS, Case, TooSlow, file_name, run_case, signature

TURN = 150  # seconds
EXAMPLES = 300  # of one seed
BYTES = 12 << 30  # of address space
CURRENT = ".current"  # the case that runs: what is left where a process died


class TurnOver(KeyboardInterrupt):
    """The turn's time is over; hypothesis lets it pass."""


class Turn:
    """One target for some seconds. Findings whose file is there already are not counted again."""

    def __init__(self, name: str, seconds: float, out: Path):
        self.name, self.module, self.out = name, target(name), out
        self.ends = time.monotonic() + seconds
        self.count = 0
        self.known = {path.name for path in out.glob(f"{name}-*.json")}
        self.found: dict[str, int] = {}  # file name -> size of the smallest case

    def run(self, seed: int) -> int:
        """Runs seeds until the time is over; returns the number of cases."""
        options = settings(
            max_examples=EXAMPLES, database=None, deadline=None, derandomize=False, print_blob=False,
            verbosity=Verbosity.quiet, phases=(Phase.generate, Phase.shrink), report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        try:
            while True:
                try:
                    seeded(seed)(options(given(self.module.cases())(self.one)))()
                except (Exception, BaseExceptionGroup) as error:
                    if not self.found and not isinstance(error, Flaky):
                        print(f"fault of the fuzzer, seed {seed}: {signature(error)}", file=sys.stderr, flush=True)
                self.known |= self.found.keys()
                self.found = {}
                seed += 1
        except TurnOver:
            return self.count

    def one(self, case: Case) -> None:
        if time.monotonic() > self.ends:
            raise TurnOver
        self.count += 1
        (self.out / CURRENT).write_text(case.to_json())
        faulthandler.dump_traceback_later(12 * CPU_SECONDS, exit=True)
        try:
            run_case(case, self.module.check)
        except Exception as error:
            name = file_name(case, signature(error))
            if name not in self.known:
                self.record(name, case, error)
                if isinstance(error, TooSlow):  # each step of shrinking would take as long
                    self.known.add(name)
                else:
                    raise
        finally:
            faulthandler.cancel_dump_traceback_later()

    def record(self, name: str, case: Case, error: Exception) -> None:
        written = json.loads(case.to_json()) | {"finding": signature(error), "error": str(error)[:2000]}
        size = len(case.to_json())
        if size < self.found.get(name, 1 << 62):
            self.found[name] = size
            (self.out / name).write_text(json.dumps(written, indent=1))


def turn(name: str, seconds: float, seed: int, out: Path) -> int:
    """Runs one turn in a process of its own; returns the number of cases."""
    flags = ["--turn", name, "--seconds", str(seconds), "--seed", str(seed), "--out", str(out)]
    done = subprocess.run([sys.executable, "-m", "tests.soak.fuzz", *flags], stdout=subprocess.PIPE, text=True)
    if done.returncode == 0:
        return int(done.stdout.split()[-1])
    current = out / CURRENT
    kept = out / f"{name}-died-{seed}.json"
    print(f"the process died with {done.returncode}: {kept}", flush=True)
    if current.exists():
        os.replace(current, kept)
    return 0


def hour(minutes: float, names: list[str], seed: int, out: Path) -> int:
    print(f"seed {seed}, {minutes:g} minutes over {', '.join(names)}; findings go to {out}", flush=True)
    ends, counts, seconds = time.monotonic() + 60 * minutes, collections.Counter(), min(TURN, 60 * minutes / len(names))
    while (left := ends - time.monotonic()) > 1:
        for number, name in enumerate(names):
            share = min(seconds, max(1.0, left / len(names)))
            counts[name] += turn(name, share, seed + number, out)
            left = ends - time.monotonic()
            if left < 1:
                break
        seed += 1_000_000
        line = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        print(
            f"{max(0, left) / 60:.0f} minutes left; cases: {line}; findings: {len([*out.glob('*.json')])}", flush=True
        )
    findings = sorted(out.glob("*.json"))
    for path in findings:
        print(f"{path}: {json.loads(path.read_text()).get('finding', 'died')}")
    print(f"{sum(counts.values()):,} cases, {len(findings)} findings")
    return 1 if findings else 0


def replay(paths: list[Path]) -> int:
    left = 0
    for path in paths:
        case = Case.from_json(path.read_text())
        try:
            run_case(case, target(case.target).check)
            print(f"{path}: answered")
        except Exception as error:
            left += 1
            print(f"{path}: {signature(error)}: {str(error)[:300]}")
    return 1 if left else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minutes", type=float, nargs="?", default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    if args.replay:
        return replay(args.replay)
    args.out.mkdir(parents=True, exist_ok=True)
    seed = random.SystemRandom().randrange(1_000_000) if args.seed is None else args.seed
    if args.turn:
        print(Turn(args.turn, args.seconds, args.out.resolve()).run(seed))
        return 0
    return hour(args.minutes, args.targets, seed, args.out.resolve())


if __name__ == "__main__":
    sys.exit(main())
