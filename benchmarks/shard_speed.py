"""`data_prep shard --tokenizer` beside datasets.Dataset.map(batched=True), on the same records, tokenizer and cores.

    python benchmarks/shard_speed.py
    python benchmarks/shard_speed.py --rows 1000000

Each side reads one JSONL file, tokenises queries and passages with the same fast tokenizer (ids only, no padding, no
masks) and leaves a folder that `datasets.load_from_disk` opens; each is one command in processes of its own, timed from
its start to its end. Theirs runs at every setting of SETTINGS, ours is compared with the fastest of them. One JSON line
per case: then ours again (same bytes?), ours killed half-way (refused? does the rerun succeed?), and the ratios.

Rows are made of the words of Python's own help topics, drawn as often as they stand there: a query of 8 words and a
number, a passage of 60. Memory is the most that the command's processes had resident at one moment, summed, sampled
every 50 ms; pages that they share count once for each. Ours does more than theirs: it checks every row, removes
duplicates, finds which rows share a text, hashes its files and brings them to the disk (fsync).
"""

import argparse
import hashlib
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

import psutil
from common import ROOT, cores, emit, environment, machine, parse, use_cores

QUERY_WORDS, PASSAGE_WORDS = 8, 60
MAX_LEN = 256
SAMPLE_SECONDS = 0.05
COMPARED_ROWS = 2000
# num_proc of Dataset.map. None: one process, in which the tokenizer uses a thread per core
SETTINGS = {"one process, tokenizer threads": None, "a process per core": 2}


def write_rows(path: Path, rows: int, seed: int) -> None:
    from pydoc_data import topics

    counts = Counter(re.findall(r"\w+[.,;:]?", " ".join(topics.topics.values())))
    words, weights = list(counts), list(accumulate(counts.values()))
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            drawn = draw.choices(words, cum_weights=weights, k=QUERY_WORDS + PASSAGE_WORDS)
            query, passage = " ".join(drawn[:QUERY_WORDS]), " ".join(drawn[QUERY_WORDS:])
            file.write(json.dumps({"query": f"{query} {row}", "positive": f"{passage}."}) + "\n")


# --- theirs, in a process of its own ---


def theirs(path: str, output: str, model: str, num_proc: int | None) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    how = {"truncation": True, "max_length": MAX_LEN, "padding": False}
    only_ids = {"return_attention_mask": False, "return_token_type_ids": False}

    def tokenise(batch: dict) -> dict:
        return {f"{name}_ids": tokenizer(batch[name], **how, **only_ids)["input_ids"] for name in ("query", "positive")}

    began = time.perf_counter()
    data = Dataset.from_json(path, cache_dir=f"{output}.cache")
    read = time.perf_counter()
    data = data.map(tokenise, batched=True, num_proc=num_proc)
    mapped = time.perf_counter()
    data.save_to_disk(output)
    seconds = {"read": read - began, "map": mapped - read, "save": time.perf_counter() - mapped}
    print(json.dumps(seconds))


# --- a command and all of its processes under observation ---


def watched(command: list[str], threads: int, kill_after: float | None = None) -> dict:
    """Runs a command to its end: wall-clock seconds, peak memory in GiB, what it printed. kill_after: seconds after
    which its first process gets SIGKILL."""
    env = environment(threads) | {"TOKENIZERS_PARALLELISM": "true" if "None" in command else "false"}
    env["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    peak = 0
    with tempfile.TemporaryFile("w+") as output:
        began = time.perf_counter()
        process = psutil.Popen(command, env=env, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, _resident(process))
            if kill_after and time.perf_counter() - began > kill_after:
                process.send_signal(signal.SIGKILL)
            time.sleep(SAMPLE_SECONDS)
        seconds = time.perf_counter() - began
        output.seek(0)
        printed = output.read()
    if process.returncode and not kill_after:
        sys.exit(f"{' '.join(command)} failed:\n{printed[-4000:]}")
    return {"seconds": seconds, "peak_gib": peak / 2**30, "printed": printed}


def _resident(process: psutil.Process) -> int:
    total = 0
    with suppress(psutil.NoSuchProcess):
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += each.memory_info().rss
    return total


def run_theirs(path: Path, folder: Path, model: str, num_proc: int | None, threads: int, rows: int) -> dict:
    output = folder / "theirs"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, __file__, "--theirs", str(path), str(output), model, str(num_proc)]
    found = watched(command, threads)
    parts = json.loads(found.pop("printed").splitlines()[-1])
    shutil.rmtree(f"{output}.cache")
    return found | {"parts": parts, "rows_per_second": rows / found["seconds"]}


def ours_command(path: Path, output: Path, model: str, threads: int) -> list[str]:
    command = [sys.executable, "-m", "data_prep", "shard", str(path), "--output", str(output), "--eval-fraction", "0"]
    lengths = [flag for side in ("query", "passage") for flag in (f"--{side}-max-len", str(MAX_LEN))]
    return [*command, "--tokenizer", model, *lengths, "--workers", str(threads), "--overwrite"]


def run_ours(path: Path, output: Path, model: str, threads: int, rows: int) -> dict:
    found = watched(ours_command(path, output, model, threads), threads)
    found.pop("printed")
    return found | {"rows_per_second": rows / found["seconds"]}


def contents(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def same_ids(ours: Path, other: Path) -> bool:
    """True if both sides gave the first rows the same tokens."""
    import datasets
    import numpy as np

    from data_prep.shards.folder import open_shards

    tokens = open_shards(ours).train_tokens()
    rows = datasets.load_from_disk(str(other)).select(range(COMPARED_ROWS))
    first = tokens.first_texts(list(range(COMPARED_ROWS)))
    made = [tokens.ids(first + place, MAX_LEN)[0] for place in range(2)]
    return made == [rows["query_ids"][:], rows["positive_ids"][:]] and np.all(np.diff(first) == 2)


def killed_half_way(path: Path, output: Path, args, seconds: float, expected: dict[str, str]) -> dict:
    from data_prep.common.errors import BadInput
    from data_prep.common.files import unfinished_name
    from data_prep.shards.folder import open_shards

    watched(ours_command(path, output, args.model, args.threads), args.threads, kill_after=seconds / 2)
    refused = {}
    for folder in (output, unfinished_name(output)):
        try:
            open_shards(folder)
        except BadInput as error:
            refused[folder.name] = str(error).replace(f"{output.parent}/", "")
    again = watched(ours_command(path, output, args.model, args.threads), args.threads)
    told = [line for line in again["printed"].splitlines() if "interrupted" in line]
    return {"refused": refused, "rerun_says": told, "rerun_same_bytes": contents(output) == expected}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="model folder or hub id (default: the MiniLM wheel)")
    parser.add_argument("--threads", type=int, default=min(2, len(cores())), help="cores to use (default: two)")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--theirs", nargs=4, help=argparse.SUPPRESS)
    args = parse(parser)
    if args.theirs:
        *paths, num_proc = args.theirs
        theirs(*paths, None if num_proc == "None" else int(num_proc))
        return
    use_cores(args.threads)
    emit(machine=machine(args.threads))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        measure(args, Path(folder))


def measure(args: argparse.Namespace, folder: Path) -> None:
    path, output = folder / "rows.jsonl", folder / "ours"
    write_rows(path, args.rows, args.seed)
    about = {"rows": args.rows, "input_mib": path.stat().st_size / 2**20}
    ours = run_ours(path, output, args.model, args.threads, args.rows)
    tokens = json.loads((output / "manifest.json").read_text())["tokenizer"]["tokens"]
    emit(case="ours", **about, tokens_per_row=tokens / args.rows, **ours)
    fastest = 0.0
    for name, num_proc in SETTINGS.items():
        found = run_theirs(path, folder, args.model, num_proc, args.threads, args.rows)
        fastest = max(fastest, found["rows_per_second"])
        emit(case=f"datasets, {name}", **about, **found, same_ids=bool(same_ids(output, folder / "theirs")))
    shutil.rmtree(folder / "theirs")
    expected = contents(output)
    again = run_ours(path, folder / "again", args.model, args.threads, args.rows)
    emit(case="ours again", **about, **again, same_bytes=contents(folder / "again") == expected)
    shutil.rmtree(folder / "again")
    emit(case="ours killed half-way", **killed_half_way(path, folder / "killed", args, again["seconds"], expected))
    emit(case="ratio", rows=args.rows, ours_to_fastest_of_theirs=ours["rows_per_second"] / fastest)


if __name__ == "__main__":
    main()
