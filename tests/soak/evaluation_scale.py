"""Evaluation at scale: memory of each rank, and seconds.

    torchrun --nproc-per-node 2 -m tests.soak.evaluation_scale                     # 1,000,000 documents, 10,000 queries
    python -m tests.soak.evaluation_scale --documents 100000 --queries 1000

A tiny BERT with a dense layer of 384 numbers embeds texts of six words. Rank 0 prints one line of JSON: `set` is what
the texts and ids take on each rank, `share` are its vectors, and `beside` is the rest of the growth at its peak. The
digest of all metrics is the same on any number of ranks. Exit code 1 where a rank takes more than LIMIT beside.
"""

import argparse
import hashlib
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import psutil

from data_prep.reading.retrieval_sets import load_set
from tests import tiny
from tests.soak.mining_scale import Memory
from trainer.config.sections import ModelConfig
from trainer.engine.join import joined
from trainer.evaluation.compare import means
from trainer.evaluation.measure import evaluate_encoder
from trainer.inference.text_encoder import TextEncoder

SIZE = 384
LIMIT = 0.6  # GiB beside the share, of which 0.08 are the 1,000 best documents of 10,000 queries


def write_set(folder: Path, documents: int, queries: int) -> None:
    """Each query is the first words of a document."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(tiny.WORDS, k=6)) for _ in range(documents)]
    with open(folder / "corpus.jsonl", "w") as corpus:
        corpus.writelines(json.dumps({"id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(texts))
    chosen = [i * (documents // queries) for i in range(queries)]
    asked = [{"id": f"q{i}", "text": texts[i].rpartition(" ")[0]} for i in chosen]
    (folder / "queries.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in asked))
    (folder / "qrels.tsv").write_text("".join(f"q{i}\td{i}\t1\n" for i in chosen))


def model(folder: Path) -> Path:
    return tiny.with_dense(folder, "bert", "mean", [(SIZE, False, "Identity")], normalize=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=10_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as own, joined("cpu", "fp32") as runtime:
        world, folder = runtime.world, Path(own)
        if runtime.is_main:
            write_set(folder, args.documents, args.queries)
            model(folder / "model")
        folder = Path(world.from_first(str(folder)))
        encoder = TextEncoder(ModelConfig(path=str(folder / "model")), runtime=runtime)
        encoder.queries([" ".join(tiny.WORDS[:6])])
        before = psutil.Process().memory_info().rss
        data = load_set(folder)
        texts = (psutil.Process().memory_info().rss - before) / 2**30
        began = time.perf_counter()
        with Memory() as memory:
            scores = evaluate_encoder(encoder, data)
        seconds = time.perf_counter() - began
        share = 4 * SIZE * args.documents / world.size / 2**30
        ranks = world.gather_objects({"set": texts, "share": share, "beside": memory.gib - share})
        world.barrier()
        if not runtime.is_main:
            return 0
        digest = hashlib.sha256(json.dumps(scores, sort_keys=True).encode()).hexdigest()
        facts = {"documents": args.documents, "queries": args.queries, "ranks": world.size, "seconds": round(seconds)}
        facts |= {"gib": [{name: round(value, 2) for name, value in one.items()} for one in ranks]}
        print(json.dumps(facts | {"nDCG@10": means(scores)["nDCG@10"], "sha256": digest}), flush=True)
        return int(any(one["beside"] > LIMIT for one in ranks))


if __name__ == "__main__":
    sys.exit(main())
