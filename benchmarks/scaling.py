"""Several ranks against one on the same cores, the same global batch and the same pairs: one JSON line each.

    python benchmarks/scaling.py                       # one rank with all cores, two ranks with half of them each
    python benchmarks/scaling.py --ranks 1 2 4 8

Each rank gets --threads // ranks threads. `ratio` is the speed against the first entry of --ranks. Where the trainer
logs the bytes it sent, bytes_sent_per_step is what one rank sent, the median of the timed steps. least_bytes_per_step
is what a rank must send round a ring of W: the sum of the gradients, 2 * (W - 1) / W * 4 bytes for each parameter, and,
as the negatives come from the whole batch, as much for each element of its document embeddings (they go out, their
gradients come home).
"""

import json
import statistics
import tempfile
from pathlib import Path

from common import (
    Trained,
    emit,
    machine,
    medians,
    pair_shards,
    parameters,
    parse,
    run_values,
    train_ours,
    training_arguments,
)


def bytes_sent(done: Trained, warmup: int) -> dict[str, float]:
    """Returns the bytes sent of a step event (World.sent), or nothing where it has none."""
    counted = [event["bytes_sent"] for event in done.events[warmup:] if "bytes_sent" in event]
    return {"bytes_sent_per_step": statistics.median(counted)} if counted else {}


def least_bytes(model: str, ranks: int, documents: int) -> float:
    hidden = json.loads((Path(model) / "config.json").read_text())["hidden_size"]
    return 2 * (ranks - 1) / ranks * 4 * (parameters(model) + documents * hidden)


def measure(args, shards: Path, ranks: int, folder: Path) -> dict:
    values = run_values(args, shards, args.batch_size, precision=args.precision)
    done = train_ours(values, folder, max(1, args.threads // ranks), ranks)
    tokens = sum(done.tokens[args.warmup :]), sum(done.padded[args.warmup :])
    return {
        "pairs_per_second": done.pairs_per_second(args.warmup),
        "real_token_share": tokens[0] / tokens[1],
        **bytes_sent(done, args.warmup),
    }


def main() -> None:
    parser = training_arguments(__doc__, batch_size=64)
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    args = parse(parser)
    found: dict[int, list[dict]] = {ranks: [] for ranks in args.ranks}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shards = pair_shards(args, folder)
        emit(machine=machine(args.threads))
        for _ in range(args.rounds):
            for ranks, rounds in found.items():
                rounds.append(measure(args, shards, ranks, folder))
    middle = {ranks: medians(rounds) for ranks, rounds in found.items()}
    first = middle[args.ranks[0]]
    for ranks, line in middle.items():
        least = least_bytes(args.model, ranks, args.batch_size)
        emit(
            ranks=ranks,
            threads_per_rank=max(1, args.threads // ranks),
            precision=args.precision,
            batch_size=args.batch_size,
            **line,
            ratio=line["pairs_per_second"] / first["pairs_per_second"],
            least_bytes_per_step=least,
        )


if __name__ == "__main__":
    main()
