"""Generation that is killed again and again loses nothing and pays nothing twice: python -m tests.soak.generation

`python -m data_prep generate` asks a server on loopback, which fails on a seeded schedule, about 2,000 chunks of a
Chroma folder. Five times it is killed with SIGKILL and started again. The server's log, the answer cache as it was
at each kill, and the output show whether every answerable chunk's pairs are there once, what was asked twice, and
whether the key got into any file. Prints one JSON line; exit code 1 where something does not hold.

--parts 4: so many workers share the chunks, with one cache; the kills hit them in turn, and the join once.
--on-ray: the parts are tasks of a Ray of this machine; the kills hit their processes, and one more the command itself.
--per-minute 240: the limit of requests that they share; the busiest minute of the server's log is reported.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from data_prep.common.files import unfinished_name
from data_prep.model_server.endpoint import MINUTE
from data_prep.stores.open import write_chunks
from tests.language_model import (
    FAULTS,
    FORMS,
    HOPELESS,
    KEY,
    MODEL,
    LanguageModel,
    chunk,
    expected,
    files_with_key,
    serving,
)
from tests.launching import ROOT, environment
from tests.ray_head import QUIET, ray_head, running_tasks

SHARE = 0.2  # of the calls that fail


@dataclass
class Report:
    """The results. asked_again: calls about chunks whose answer was on disk when the process was killed."""

    chunks: int
    kills: int
    concurrency: int
    calls: int
    failed_calls: dict[str, int]
    on_disk_at_kills: list[int]
    asked_again: int
    repeated: int
    repeated_at_most: int
    pairs: int
    pairs_right: bool
    rejected_right: bool
    calls_for_another_output: int
    parts: int
    per_minute: int | None
    busiest_minute: int
    files_with_key: list[str]
    seconds: float
    on_ray: bool = False

    def holds(self) -> bool:
        right = self.pairs_right and self.rejected_right and not self.files_with_key
        spared = not self.asked_again and not self.calls_for_another_output
        slow = self.per_minute is None or self.busiest_minute <= self.per_minute
        return right and spared and slow and self.repeated <= self.repeated_at_most


def start(command: list[str], folder: Path) -> subprocess.Popen:
    """Starts a command. Its output goes to a file of the folder, which is searched for the key."""
    with open(folder / "log.txt", "a") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment(OPENAI_API_KEY=KEY), stdout=log, stderr=log)


def _said(folder: Path) -> str:
    return "\n".join(path.read_text() for path in folder.glob("log*.txt"))


class Work(NamedTuple):
    """One generation, before it is killed. start: starts a command, see above."""

    server: LanguageModel
    command: list[str]  # that would do all in one process
    folder: Path
    chunks: int
    kills: int
    parts: int
    start: Callable[[list[str], Path], subprocess.Popen]

    def wait_for_kill(self, number: int, of: int) -> None:
        """Waits for so many answers that `of` kills are spread evenly over the run. number: from 0."""
        self.server.wait_for_answers((number + 1) * self.chunks // (of + 1), seconds=600)

    def struck(self) -> "Kill":
        return Kill(_on_disk(self.folder, self.chunks), len(self.server.calls))


class Kill(NamedTuple):
    durable: set[str]  # chunks whose answer was on disk
    calls: int  # that had arrived


class Ended(NamedTuple):
    kills: list[Kill]
    lost: int  # processes that were killed while they asked
    command: list[str]  # that writes the pairs


def killed_processes(work: Work) -> Ended:
    """One process, or one for each part and a join; they are killed in turn and started again."""
    parts, command = work.parts, work.command
    workers = [[*command, "--part", f"{n}/{parts}"] for n in range(1, parts + 1)] if parts > 1 else [command]
    processes = [work.start(worker, work.folder) for worker in workers]
    struck = []
    for kill in range(work.kills):
        work.wait_for_kill(kill, work.kills)
        running = [n for n in range(parts) if processes[n].poll() is None]
        assert running, "they ended before one was killed"
        process = processes[killed := running[kill % len(running)]]
        process.send_signal(signal.SIGKILL)
        process.wait()
        struck.append(work.struck())
        processes[killed] = work.start(workers[killed], work.folder)
    assert [process.wait() for process in processes] == [0] * parts, _said(work.folder)
    if parts > 1:
        command = [*command, "--join"]
        _kill_while_it_writes(work.start(command, work.folder), work.folder / "pairs.jsonl")
        assert work.start(command, work.folder).wait() == 0, _said(work.folder)
    return Ended(struck, work.kills, command)


def killed_on_ray(work: Work) -> Ended:
    """Tasks of a Ray with a core for each part; their processes are killed in turn, and at the end the command."""
    struck, command = [], [*work.command, "--on", "ray"]
    with ray_head(work.parts, OPENAI_API_KEY=KEY) as head:
        os.environ |= QUIET | {"RAY_ADDRESS": head.address}
        process = work.start(command, work.folder)
        for kill in range(work.kills):
            work.wait_for_kill(kill, work.kills + 1)
            while not (running := running_tasks(head)):
                assert process.poll() is None, _said(work.folder)
                time.sleep(0.05)
            running[kill % len(running)].kill()
            struck.append(work.struck())
        work.wait_for_kill(work.kills, work.kills + 1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        struck.append(work.struck())
        assert work.start(command, work.folder).wait() == 0, _said(work.folder)
        shutil.copytree(head.folder, work.folder / "ray", ignore=_no_socket)  # is the key in what Ray wrote?
    return Ended(struck, work.kills + work.parts, command)


def _no_socket(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not (Path(folder) / name).is_file() and not (Path(folder) / name).is_dir()]


def soak(
    folder: Path,
    chunks: int,
    kills: int,
    concurrency: int,
    seed: int = 0,
    slow: float = 6.0,
    parts: int = 1,
    per_minute: int | None = None,
    start=start,
    run: Callable[[Work], Ended] = killed_processes,
) -> Report:
    """One run in this folder, which is empty. start: starts a command, see above."""
    names = [f"c{number}" for number in range(chunks)]
    write_chunks(folder / "chroma", "docs", [chunk(number) for number in range(chunks)], "digest")
    server = LanguageModel(seed=seed, share=SHARE, faults=FAULTS, forms=FORMS, slow=slow, delay=0.02)
    began = time.monotonic()
    with serving(server) as url:
        command = _command(folder, url, concurrency, slow, per_minute)
        ended = run(Work(server, command, folder, chunks, kills, parts, start))
        asked_again = sum(call.chunk in kill.durable for kill in ended.kills for call in server.calls[kill.calls :])
        repeated, calls, failed = server.repeated(), len(server.calls), server.counts()
        pairs, other = (str(folder / name) for name in ("pairs.jsonl", "other.jsonl"))
        assert start([other if word == pairs else word for word in ended.command], folder).wait() == 0, _said(folder)
        extra = len(server.calls) - calls
    assert (folder / "other.jsonl").read_bytes() == (folder / "pairs.jsonl").read_bytes()
    del failed["answered"]
    lines = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    got = [(line["chunk_id"], line["question"], line["answer"]) for line in lines]
    rejected = {json.loads(line)["chunk_id"] for line in (folder / "pairs.rejected.jsonl").read_text().splitlines()}
    wanted = [(chunk(int(name[1:])).id, *pair) for name in names for pair in expected(name, server.form(name))]
    misfits = {chunk(int(name[1:])).id for name in names if server.form(name) in (*HOPELESS, "truncated")}
    return Report(
        chunks=chunks,
        kills=len(ended.kills),
        concurrency=concurrency,
        calls=calls,
        failed_calls=dict(failed),
        on_disk_at_kills=[len(kill.durable) for kill in ended.kills],
        asked_again=asked_again,
        repeated=len(repeated),
        repeated_at_most=ended.lost * concurrency,
        pairs=len(got),
        pairs_right=got == wanted,
        rejected_right=rejected == misfits,
        calls_for_another_output=extra,
        parts=parts,
        per_minute=per_minute,
        busiest_minute=_busiest_minute([call.at for call in server.calls]),
        files_with_key=files_with_key(folder),
        seconds=round(time.monotonic() - began, 1),
        on_ray=run is not killed_processes,
    )


def _kill_while_it_writes(process: subprocess.Popen, output: Path) -> None:
    while process.poll() is None and not unfinished_name(output).exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()


def _busiest_minute(times: list[float]) -> int:
    """The most calls that arrived within MINUTE."""
    return max(bisect_left(times, start + MINUTE) - first for first, start in enumerate(times))


def _command(folder: Path, url: str, concurrency: int, slow: float, per_minute: int | None) -> list[str]:
    where = ["--path", folder / "chroma", "--collection", "docs", "--cache", folder / "cache"]
    options = ["--model", MODEL, "--base-url", url, "--concurrency", concurrency, "--timeout", slow - 1]
    options += ["--requests-per-minute", per_minute] if per_minute else []
    command = [sys.executable, "-m", "data_prep", "generate", *where, *options, "--output", folder / "pairs.jsonl"]
    return [str(part) for part in command]


def _on_disk(folder: Path, chunks: int) -> set[str]:
    """The chunks whose answers lie in the cache in whole lines."""
    names = {hashlib.sha256(chunk(number).text.encode()).hexdigest(): f"c{number}" for number in range(chunks)}
    found = set()
    for path in (folder / "cache").glob("*.jsonl"):
        whole = path.read_bytes().rpartition(b"\n")[0]
        found |= {names[json.loads(line)["chunk"]] for line in whole.splitlines()[1:]}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--per-minute", type=int)
    parser.add_argument("--on-ray", action="store_true")
    args = parser.parse_args()
    shared = {"parts": args.parts, "per_minute": args.per_minute}
    if args.on_ray:
        shared["run"] = killed_on_ray
    with tempfile.TemporaryDirectory() as folder:
        report = soak(Path(folder), args.chunks, args.kills, args.concurrency, args.seed, **shared)
    print(json.dumps(asdict(report)))
    return 0 if report.holds() else 1


if __name__ == "__main__":
    sys.exit(main())
