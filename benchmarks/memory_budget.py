"""Cost of bounded memory: one batch under ever smaller micro_batch_tokens, one JSON line per budget.

    python benchmarks/memory_budget.py
    python benchmarks/memory_budget.py --pairs pairs.jsonl --batch-size 512 --share 0.05 0.5

The first run is unbounded and tells how many padded tokens the batch holds; the others get shares of that. Texts over
the budget are embedded twice, which is a third more work for each. Dropout 0, fp32; the budgets take turns.
seconds_per_pair_to_unbounded, peak_gib_above_idle: medians over rounds, of the timed steps.
"""

import tempfile
from pathlib import Path

from common import emit, machine, medians, pair_shards, parse, run_values, train_ours, training_arguments

UNBOUNDED = 2**40


def measure(args, shards: Path, budget: int, folder: Path) -> tuple[dict, int]:
    """Figures of one run, and the most padded tokens that a step of it held."""
    values = run_values(args, shards, args.batch_size, micro_batch_tokens=budget)
    done = train_ours(values, folder, args.threads)
    speed = done.pairs_per_second(args.warmup)
    return {"seconds_per_pair": 1 / speed, "pairs_per_second": speed, **done.memory()}, max(done.padded)


def main() -> None:
    parser = training_arguments(__doc__, batch_size=256)
    parser.set_defaults(warmup=1, steps=4)
    parser.add_argument("--share", nargs="+", type=float, default=[0.125, 0.25, 0.5, 0.75], help="of the padded tokens")
    args = parse(parser)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shards = pair_shards(args, folder)
        emit(machine=machine(args.threads))
        found: dict[float, list[dict]] = {share: [] for share in [1.0, *args.share]}
        padded = 0
        for _ in range(args.rounds):
            for share, rounds in found.items():
                budget = UNBOUNDED if share == 1.0 else max(64, round(share * padded))
                figures, held = measure(args, shards, budget, folder)
                rounds.append(figures)
                padded = padded or held
    whole = medians(found[1.0])
    for share, rounds in found.items():
        line = medians(rounds)
        emit(
            batch_size=args.batch_size,
            share_of_padded_tokens=share,
            micro_batch_tokens=None if share == 1.0 else max(64, round(share * padded)),
            seconds_per_pair_to_unbounded=line["seconds_per_pair"] / whole["seconds_per_pair"],
            memory_to_unbounded=line["peak_gib_above_idle"] / whole["peak_gib_above_idle"],
            **line,
        )


if __name__ == "__main__":
    main()
