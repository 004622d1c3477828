"""Evaluation, mining and re-indexing by two ranks of one thread each, against one rank of one thread.

    python benchmarks/embedding_ranks.py --data k8s_docs [--max-len 128] [--rounds 2]

Each round starts one rank, then two. Loading is not timed. Mining takes the set's judged pairs and its documents,
re-indexing the documents in a Chroma server, which is a third process on the same cores. The check at the end of
re-indexing embeds 64 chunks on rank 0 only: `reindex` is timed without it.

`ratio` is one rank's seconds over two ranks', the least of the rounds. `busy_ratio` is the same of the seconds that the
busiest rank computed: other work on the cores changes it less, and it leaves out what ranks wait for each other. The
results must be equal: ids and order to the letter, scores to 1e-6.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import ROOT, emit, environment, machine, parse

from data_prep.mining.choice import Choice
from data_prep.mining.mine import Mining, mine
from data_prep.reading.retrieval_sets import RetrievalSet, load_set
from data_prep.stores.base import Chunk, StoreConfig
from data_prep.stores.open import open_collection, open_store
from tests.servers import chroma_server
from trainer.config.sections import ModelConfig
from trainer.engine.join import joined
from trainer.inference.metrics import DEPTH
from trainer.inference.team import Team
from trainer.inference.text_encoder import TextEncoder
from trainer.ranking.retrieval import rank_set
from trainer.reindexing.copying import Copy
from trainer.reindexing.reindex import reindex

RANKS = (1, 2)
BATCH = 16  # chunks of a re-indexing batch: 480 documents are then 15 batches for each of two ranks
CLOSE = 1e-6


def chunks_of(data: RetrievalSet) -> list[Chunk]:
    return [Chunk(i, text, {"set": data.name}) for i, text in zip(data.doc_ids, data.doc_texts)]


class Clock:
    """Seconds of this process while it is open: on the wall, and computing."""

    wall = busy = 0.0

    def __enter__(self):
        self._began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_) -> None:
        self.wall += time.perf_counter() - self._began[0]
        self.busy += time.process_time() - self._began[1]


def evaluate(encoder: TextEncoder, data: RetrievalSet, folder: Path, clock: Clock) -> None:
    """Writes the ranking, as trainer.evaluation.measure makes it."""
    with clock:
        run = ranking(encoder, data)
    if encoder.loaded[0].world.rank == 0:
        (folder / "evaluate.json").write_text(json.dumps({query: list(hits.items()) for query, hits in run.items()}))


def ranking(encoder: TextEncoder, data: RetrievalSet) -> dict[str, dict[str, float]]:
    import torch

    queries, documents = torch.from_numpy(encoder.queries(data.query_texts)), encoder.passage_share(data.doc_texts)
    engine, run = encoder.loaded[0], {}
    for part in rank_set(engine.world, queries, documents.vectors, documents.rows, data, engine.device, DEPTH):
        run |= part
    return run


def mined(encoder: TextEncoder, data: RetrievalSet, folder: Path, clock: Clock) -> None:
    team, given = Team(encoder), folder / "rows.jsonl"
    text_of = dict(zip(data.doc_ids, data.doc_texts))
    asked = dict(zip(data.query_ids, data.query_texts))
    rows = [{"query": asked[q], "positive": text_of[d]} for q, judged in data.qrels.items() for d in judged]
    if encoder.loaded[0].world.rank == 0:
        given.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    rule = Mining("dense", Choice(4, relative_margin=0.05))
    options = {"corpus": chunks_of(data), "encoder": team, "searcher": team}
    with clock:
        team.lead(lambda: mine([given], folder / "mined.jsonl", rule, **options))


def reindexed(encoder: TextEncoder, config: StoreConfig, target: str, clock: Clock) -> None:
    """Times the rounds that embed and write. The other ranks do nothing else."""
    once = Copy.once

    def timed(copy: Copy) -> int:
        with clock:
            return once(copy)

    if encoder.loaded[0].world.rank:
        with clock:
            reindex(config, target, encoder, batch=BATCH)
        return
    Copy.once = timed
    reindex(config, target, encoder, batch=BATCH)
    Copy.once = once


def worker(values: dict) -> None:
    """One rank: every work once, each from a barrier on."""
    folder, data = Path(values["folder"]), load_set(values["data"])
    lengths = {"query_max_len": values["max_len"], "passage_max_len": values["max_len"]}
    config = StoreConfig("chroma", "docs", host="127.0.0.1", port=values["port"])
    with joined("cpu", "fp32") as runtime:
        encoder = TextEncoder(ModelConfig(path=values["model"], **lengths), runtime=runtime)
        encoder.passages(data.doc_texts[:32])  # loads the model, and the kernels
        works: dict[str, Callable[[Clock], None]] = {
            "evaluate": lambda clock: evaluate(encoder, data, folder, clock),
            "mine": lambda clock: mined(encoder, data, folder, clock),
            "reindex": lambda clock: reindexed(encoder, config, values["target"], clock),
        }
        seconds = {}
        for name, work in works.items():
            clock = Clock()
            runtime.world.barrier()
            work(clock)
            seconds[name] = {"wall": clock.wall, "busy": max(runtime.world.gather_objects(clock.busy))}
        if runtime.is_main:
            (folder / "seconds.json").write_text(json.dumps(seconds))


def start(args: argparse.Namespace, ranks: int, folder: Path, port: int, target: str) -> dict[str, dict[str, float]]:
    """Returns the seconds of each work."""
    folder.mkdir()
    values = {"folder": str(folder), "data": args.data, "model": args.model, "max_len": args.max_len}
    values |= {"port": port, "target": target}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += [__file__, "--worker", json.dumps(values)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    done = subprocess.run(command, env=environment(1) | {"PYTHONPATH": path}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads((folder / "seconds.json").read_text())


def differences(folders: list[Path], config: StoreConfig, targets: list[str]) -> list[str]:
    """Compares the results of all starts with the first one's."""
    wrong = []
    runs = [json.loads((folder / "evaluate.json").read_text()) for folder in folders]
    negatives = [(folder / "mined.jsonl").read_bytes() for folder in folders]
    stored = [vectors_of(config, target) for target in targets]
    for number in range(1, len(folders)):
        for query, hits in runs[0].items():
            ids, scores = zip(*hits)
            other_ids, other_scores = zip(*runs[number][query])
            if ids != other_ids or np.abs(np.subtract(scores, other_scores)).max() > CLOSE:
                wrong.append(f"evaluate, start {number}: another ranking for {query}")
        if negatives[number] != negatives[0]:
            wrong.append(f"mine, start {number}: other negatives")
        apart = [np.abs(stored[0][i] - vector).max() for i, vector in stored[number].items() if i in stored[0]]
        if stored[number].keys() != stored[0].keys() or max(apart) > CLOSE:
            wrong.append(f"reindex, start {number}: other chunks or vectors")
    return wrong


def vectors_of(config: StoreConfig, target: str) -> dict[str, np.ndarray]:
    with open_collection(StoreConfig("chroma", target, host=config.host, port=config.port)) as collection:
        return {chunk.id: chunk.embedding for chunk in collection.chunks(embeddings=True)}


def least(rounds: list[dict[str, dict[str, float]]], work: str, kind: str) -> float:
    return min(of_round[work][kind] for of_round in rounds)


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        worker(json.loads(sys.argv[2]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="SET", help="retrieval set")
    parser.add_argument("--model", help="model folder or hub id (default: the MiniLM wheel)")
    parser.add_argument("--max-len", type=int, default=256, help="tokens per text")
    parser.add_argument("--rounds", type=int, default=2, help="starts of one rank and of two, in turns")
    parser.set_defaults(threads=max(RANKS))
    args = parse(parser)
    data = load_set(args.data)
    seconds: dict[int, list[dict[str, dict[str, float]]]] = {ranks: [] for ranks in RANKS}
    with tempfile.TemporaryDirectory() as temporary, chroma_server(Path(temporary, "store")) as (port, _):
        config = StoreConfig("chroma", "docs", host="127.0.0.1", port=port)
        with open_store(config, create=True) as store:
            given = [Chunk(c.id, c.text, c.metadata, np.ones(4, np.float32)) for c in chunks_of(data)]
            store.create("docs", 4, {}).upsert(given)
        folders, targets = [], []
        emit(machine=machine(args.threads), data=data.name, documents=len(data.doc_ids), max_len=args.max_len)
        for number in range(args.rounds):
            for ranks in RANKS:
                folders.append(Path(temporary, f"{number}-{ranks}"))
                targets.append(f"docs-{number}-{ranks}")
                seconds[ranks].append(start(args, ranks, folders[-1], port, targets[-1]))
                emit(ranks=ranks, seconds=seconds[ranks][-1])
        wrong = differences(folders, config, targets)
    for work in seconds[1][0]:
        one, two = ({kind: least(seconds[ranks], work, kind) for kind in ("wall", "busy")} for ranks in RANKS)
        ratios = {"ratio": one["wall"] / two["wall"], "busy_ratio": one["busy"] / two["busy"]}
        emit(work=work, one_rank=one["wall"], two_ranks=two["wall"], **ratios)
    print("\n".join(wrong) or "equal results")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
