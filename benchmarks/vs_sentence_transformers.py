"""Training speed and memory at equal settings: embedfleet against sentence-transformers' trainer, on CPU cores.

    python benchmarks/vs_sentence_transformers.py                                # the quickstart's pairs, fp32
    python benchmarks/vs_sentence_transformers.py --precision fp32 bf16 --pairs a.jsonl --pairs b.csv
    python benchmarks/vs_sentence_transformers.py --cached                       # bounded memory at batch 512

Both train the same pairs in the same batches (our plan's), cut at the same length, with the same model, precision,
AdamW and schedule: we by `python -m trainer` and its logs, they by SentenceTransformerTrainer with
MultipleNegativesRankingLoss. --cached: their CachedMultipleNegativesRankingLoss with mini-batches of 32 texts, we under
micro_batch_tokens that hold as much (32 of the longest text). Each round starts each side in a fresh process, in turns.
Their trainer leaves the model's own dropout on: `--dropout model` does the same on our side and is the main figure,
`--dropout 0` is our default against theirs.

One JSON line for the machine, one per case and side (medians over rounds; the timed steps only), one with the ratios:
  pairs_per_second      pairs of a step / seconds of a step, waiting for the batch included
  tokens_per_second     real tokens, counted once here with the model's tokenizer, for both sides
  real_token_share      real tokens / tokens that the model computed on (padding included)
  gflops                work on real tokens per second. Of a text of L tokens, forward and backward, it is
                        6 * M * L + 12 * layers * hidden * L * L, with M the elements of the layers' matrices;
                        embedding a text a second time counts as no work
  share_of_peak         gflops / the best matrix product of that precision, measured on this machine in the same run
  peak_gib_above_idle   most resident memory while training, above the process with the model loaded and no step begun
  first_step_seconds    from the command to the end of the first optimizer step
"""

import json
import math
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from common import (
    Trained,
    as_config,
    emit,
    environment,
    in_plan_order,
    machine,
    matrix_peak,
    medians,
    pair_shards,
    parse,
    run_values,
    tensor_shapes,
    train_ours,
    training_arguments,
    watch,
)

from trainer.config.sections import ModelConfig
from trainer.model.tokenizer import load_tokenizer, tokenize
from trainer.model_folder.spec import read_spec

MINI_BATCH = 32  # texts; what their cached loss takes by default
THEIRS = "theirs"


@dataclass
class Work:
    """Work of both sides. pairs: of all steps, in order, with prompts; lengths: (query, document) tokens."""

    pairs: list[tuple[str, str]]
    lengths: list[tuple[int, int]]
    rows: int
    layers: int
    hidden: int
    matrices: int

    def steps_tokens(self) -> list[int]:
        sums = [sum(pair) for pair in self.lengths]
        return [sum(sums[start : start + self.rows]) for start in range(0, len(sums), self.rows)]

    def gflop(self, warmup: int) -> float:
        """Returns the work of the timed steps; see the formula above."""
        timed = [length for pair in self.lengths[warmup * self.rows :] for length in pair]
        return sum(6 * self.matrices * n + 12 * self.layers * self.hidden * n * n for n in timed) / 1e9


def plan_work(args, shards: Path, rows: int) -> Work:
    values = run_values(args, shards, rows)
    records = in_plan_order(as_config(values), args.warmup + args.steps)
    model = ModelConfig(**values["model"])
    spec, tokenizer = read_spec(model, args.model), load_tokenizer(model, args.model)
    queries, _ = tokenize([r.query for r in records], spec.rules.query_prompt, args.max_len, tokenizer)
    documents, _ = tokenize([r.positives[0] for r in records], spec.rules.passage_prompt, args.max_len, tokenizer)
    settings = json.loads((Path(args.model) / "config.json").read_text())
    return Work(
        pairs=[(spec.rules.query_prompt + r.query, spec.rules.passage_prompt + r.positives[0]) for r in records],
        lengths=[(len(q), len(d)) for q, d in zip(queries, documents)],
        rows=rows,
        layers=settings["num_hidden_layers"],
        hidden=settings["hidden_size"],
        matrices=sum(math.prod(s) for name, s in tensor_shapes(args.model).items() if "layer" in name and len(s) == 2),
    )


def our_run(args, shards: Path, work: Work, precision: str, dropout: str) -> dict:
    values = run_values(args, shards, work.rows, precision=precision)
    values["model"]["dropout"] = "model" if dropout == "model" else 0
    if args.cached:
        values["train"]["micro_batch_tokens"] = MINI_BATCH * max(max(pair) for pair in work.lengths)
    return values


def train_theirs(args, shards: Path, work: Work, precision: str, folder: Path) -> Trained:
    config = as_config(run_values(args, shards, work.rows))
    settings = {
        "model": args.model,
        "max_len": args.max_len,
        "pairs": work.pairs,
        "batch_size": work.rows,
        "steps": args.warmup + args.steps,
        "optim": config.optim.model_dump(),
        "scale": 1 / config.loss.temperature,
        "mini_batch": MINI_BATCH if args.cached else None,
        "precision": precision,
        "seed": args.seed,
        "output_dir": str(folder / "theirs"),
    }
    settings_file, result_file = folder / "settings.json", folder / "result.json"
    settings_file.write_text(json.dumps(settings))
    script = Path(__file__).with_name("sentence_transformers_side.py")
    command = [sys.executable, str(script), str(settings_file), str(result_file)]
    watched = watch(command, environment(args.threads), folder / "theirs.log")
    result = json.loads(result_file.read_text())
    moments = [result["ready"], *result["ends"]]
    passes = 2 if args.cached else 1  # their cached loss embeds every text twice
    return Trained(
        rows=work.rows,
        seconds=[after - before for before, after in pairwise(moments)],
        tokens=[n // passes for n in result["tokens"]],
        padded=[n // passes for n in result["padded"]],
        ready=result["ready"],
        ends=result["ends"],
        watched=watched,
        events=[],
    )


def figures(done: Trained, work: Work, warmup: int, peak: float) -> dict:
    if done.tokens != work.steps_tokens():
        sys.exit(f"the sides did not train the same texts: tokens {done.tokens}, planned {work.steps_tokens()}")
    seconds = sum(done.seconds[warmup:])
    gflops = work.gflop(warmup) / seconds
    return {
        "pairs_per_second": done.pairs_per_second(warmup),
        "tokens_per_second": sum(done.tokens[warmup:]) / seconds,
        "real_token_share": sum(done.tokens[warmup:]) / sum(done.padded[warmup:]),
        "gflops": gflops,
        "share_of_peak": gflops / peak,
        **done.memory(),
        "first_step_seconds": done.first_step_seconds(),
    }


def compare(args, shards: Path, work: Work, precision: str, peak: float, folder: Path) -> None:
    """All rounds of one precision: our side at each --dropout, then theirs, in turns."""
    sides = [*args.dropout, THEIRS]
    found: dict[str, list[dict]] = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side in sides:
            if side == THEIRS:
                done = train_theirs(args, shards, work, precision, folder)
            else:
                done = train_ours(our_run(args, shards, work, precision, side), folder, args.threads)
            found[side].append(figures(done, work, args.warmup, peak))
    case = {"precision": precision, "batch_size": work.rows, "max_len": args.max_len, "cached": args.cached}
    middle = {side: medians(rounds) for side, rounds in found.items()}
    theirs = middle[THEIRS]
    emit(**case, side="theirs", dropout="model", **theirs)
    for side in args.dropout:
        ours = middle[side]
        budget = as_config(our_run(args, shards, work, precision, side)).train.micro_batch_tokens
        emit(**case, side="ours", dropout=side, micro_batch_tokens=budget, **ours)
        emit(
            **case,
            side="ours against theirs",
            dropout=side,
            speed=ours["pairs_per_second"] / theirs["pairs_per_second"],
            memory=ours["peak_gib_above_idle"] / theirs["peak_gib_above_idle"],
            first_step=ours["first_step_seconds"] / theirs["first_step_seconds"],
        )


def main() -> None:
    parser = training_arguments(__doc__, batch_size=None)
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    parser.add_argument("--dropout", nargs="+", choices=["model", "0"], default=["model", "0"], help="on our side")
    parser.add_argument("--cached", action="store_true", help="bounded memory; the batch is then 512 by default")
    args = parse(parser)
    rows = args.batch_size or (512 if args.cached else 64)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shards = pair_shards(args, folder)
        work = plan_work(args, shards, rows)
        peak = matrix_peak(args.threads)
        emit(machine=machine(args.threads), peak_gflops=peak, pairs=args.pairs or ["quickstart/shards"])
        for precision in args.precision:
            compare(args, shards, work, precision, peak[precision], folder)


if __name__ == "__main__":
    main()
