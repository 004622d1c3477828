"""The way back into the store, on real text: python -m tests.soak.store_search --data SET --base M0 [--tuned M].

A retrieval set goes into Chroma and into Qdrant's local mode, is re-embedded there with the model before and after
training, and the stores' own search is scored on its queries. Without --tuned the whole loop is run first, by the
commands of its users: the set's train.jsonl is sharded, adapters are trained on it, merged and exported. Exit code 1
where a store's top 10 is not that of the exact search, or the tuned model is not better with its 95 % interval above
zero. See docs/evidence/results.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_prep.reading.retrieval_sets import RetrievalSet, load_set
from data_prep.stores.base import Chunk, StoreConfig
from data_prep.stores.open import open_collection, open_store
from trainer.config.sections import ModelConfig
from trainer.evaluation.compare import paired_bootstrap
from trainer.evaluation.ranking_metrics import score_run
from trainer.inference.metrics import rank_documents
from trainer.inference.text_encoder import TextEncoder
from trainer.reindexing.reindex import reindex

K = 10
TIE = 1e-6  # cosines that differ by less are one: texts that are cut to the same tokens, sums in another order
AGREE = 0.999  # share of the exact top 10 that the store's own search must find (Chroma's index is approximate)


class Once(TextEncoder):
    """Embeds each text once: the same texts go into both stores and into the exact search."""

    def _encode(self, texts: list[str], prompt: str, max_len: int) -> np.ndarray:
        known = self.__dict__.setdefault("known", {})
        new = [text for text in dict.fromkeys(texts) if (prompt, text) not in known]
        if new:
            known |= zip([(prompt, text) for text in new], super()._encode(new, prompt, max_len))
        return np.array([known[prompt, text] for text in texts])


def fill(config: StoreConfig, data: RetrievalSet) -> None:
    """The documents, without vectors where the store allows it. Qdrant takes numbers as ids: the position."""
    with open_store(config, create=True) as store:
        size = None if config.kind == "chroma" else 1
        chunks = [Chunk(str(i), text, {"doc": data.doc_ids[i]}) for i, text in enumerate(data.doc_texts)]
        if size:
            chunks = [replace(chunk, embedding=np.ones(1, dtype=np.float32)) for chunk in chunks]
        store.create("docs", size, {}).upsert(chunks)


def searched(config: StoreConfig, encoder: TextEncoder, data: RetrievalSet) -> dict[str, dict[str, float]]:
    """query id -> document id -> score, best K, by the store's own search."""
    vectors = encoder.queries(data.query_texts)
    with open_collection(config) as collection:
        answers = collection.query(vectors, K)
    return {
        query: {chunk.metadata["doc"]: float(chunk.embedding @ vector) for chunk in answer}
        for query, vector, answer in zip(data.query_ids, vectors, answers)
    }


def trained(data: Path, base: str, lengths: dict, folder: Path, options: list[str]) -> Path:
    """Pairs -> shards -> adapters -> an export that proved itself."""
    config = {"output_dir": str(folder / "run"), "model": {"path": base, "finetune": "lora"} | lengths, "data": {}}
    config["data"]["train"], config["train"] = str(folder / "shards"), {"batch_size": 64, "epochs": 2}
    config["optim"] = {"lr": 1e-3}
    (folder / "run.json").write_text(json.dumps(config))
    for command in (
        ["data_prep", "shard", str(data / "train.jsonl"), "--output", str(folder / "shards"), "--eval-fraction", "0"],
        ["trainer", "--config", str(folder / "run.json"), *options],
        ["trainer.export", str(folder / "run"), "--output", str(folder / "exported"), "--merge"],
    ):
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", *command], check=True)
        print(f"{' '.join(command[:2])}: {time.monotonic() - began:.0f} s", flush=True)
    return folder / "exported"


def top(run: dict[str, float]) -> set[str]:
    return set(sorted(run, key=run.get, reverse=True)[:K])


def agreement(answer: dict[str, float], exact: dict[str, float]) -> float:
    """Share of an answer that is among the exact K best; documents of one score, up to rounding, are as good."""
    last = sorted(exact.values(), reverse=True)[K - 1] - TIE
    return sum(exact[document] >= last for document in answer) / K


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.store_search")
    parser.add_argument("--data", required=True, help="retrieval set")
    parser.add_argument("--base", required=True, help="model folder before training")
    parser.add_argument("--tuned", help="model folder after training; without it, one is trained and exported")
    parser.add_argument("--max-len", type=int, default=256)
    parser.add_argument("options", nargs="*", help="keys of the run file for that training, as KEY=VALUE")
    args = parser.parse_args()
    lengths = {"query_max_len": args.max_len, "passage_max_len": args.max_len}
    data, wrong = load_set(args.data), []
    print(f"{data.name}: {len(data.query_ids)} queries, {len(data.doc_ids)} documents")
    with tempfile.TemporaryDirectory() as folder:
        tuned = args.tuned or trained(Path(args.data), args.base, lengths, Path(folder), args.options)
        scores: dict[str, dict[str, np.ndarray]] = {}
        found: dict[str, float] = {}
        for side, path in (("base", args.base), ("tuned", str(tuned))):
            encoder = Once(ModelConfig(path=path, **lengths))
            exact = rank_documents(encoder.queries(data.query_texts), encoder.passages(data.doc_texts), data)
            runs = {"exact": {query: {d: exact[query][d] for d in top(exact[query])} for query in exact}}
            for kind in ("chroma", "qdrant"):
                place = StoreConfig(kind, "docs", path=Path(folder) / kind)
                if side == "base":
                    fill(place, data)
                reindex(place, f"docs-{side}", encoder)
                runs[kind] = searched(replace(place, collection=f"docs-{side}"), encoder, data)
            for name, run in runs.items():
                ndcg = [values["nDCG@10"] for values in score_run(data.qrels, run).values()]
                scores.setdefault(name, {})[side] = np.array(ndcg)
                share = np.mean([agreement(run[q], exact[q]) for q in exact])
                found[name] = min(share, found.get(name, 1.0))
    print(
        "| search | base nDCG@10 | tuned | difference | 95 % interval | exact top 10 found |\n|---|---|---|---|---|---|"
    )
    for name, sides in scores.items():
        low, high = paired_bootstrap(sides["base"], sides["tuned"])
        base, tuned = sides["base"].mean(), sides["tuned"].mean()
        interval = f"{low:+.4f} … {high:+.4f}"
        print(f"| {name} | {base:.4f} | {tuned:.4f} | {tuned - base:+.4f} | {interval} | {found[name]:.4f} |")
        wrong += [f"{name}: the tuned model is not better"] * bool(low <= 0)
        wrong += [f"{name}: finds {found[name]:.4f} of the exact top {K}"] * bool(found[name] < AGREE)
    for problem in wrong:
        print(problem)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
