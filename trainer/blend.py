"""Weights between a base and a tuned model: python -m trainer.blend BASE TUNED --data SET --output FOLDER."""

import argparse
import sys
from pathlib import Path

from data_prep.common.console import result as print_result
from data_prep.common.console import say, say_next
from data_prep.common.errors import guarded
from data_prep.common.files import check, check_output_file, write_json
from data_prep.common.parser import Parser
from data_prep.common.paths import with_homes
from data_prep.reading.retrieval_sets import load_set
from data_prep.remote.location import location
from trainer.blending.rules import Rules
from trainer.inference.flags import add_model, model_of


def _print(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    sides = [side for side in ("domain", "general") if result[side]]
    heads = [f"{result[side]['data']} {half}" for side in sides for half in ("chooses", "reports")]
    table = Table("share", *heads, "", title=f"{result['metric']} from {result['base']} (0) to {result['tuned']} (1)")
    for row in result["shares"]:
        cells = [f"{row[side][half]:.4f}" for side in sides for half in ("chooses", "reports")]
        note = "chosen" if row["share"] == result["chosen"] else row["refused"] or ""
        table.add_row(f"{row['share']:g}", *cells, note)
    Console().print(table)
    print_result(f"chosen: share {result['chosen']:g}{_meaning(result['chosen'])}")
    for side in sides:
        print_result(_line(side, result))


def _meaning(share: float) -> str:
    return {0.0: ", the base itself: no other share is better", 1.0: ", the tuned model itself"}.get(share, "")


def _line(side: str, result: dict) -> str:
    facts, metric = result[side], result["metric"]
    row = facts["against_base"][metric]
    low, high = row["interval_95"]
    kept = result["gain_kept"] if side == "domain" else None
    return (
        f"{side} {facts['data']}, the {facts['queries_that_report']:,} queries that report: {metric} "
        f"{row['base']:.4f} -> {row['chosen']:.4f}, {row['difference']:+.4f} (95 % interval {low:+.4f} … {high:+.4f})"
        + (f", {kept:.0%} of the tuned model's gain" if kept is not None else "")
    )


def run(args: argparse.Namespace) -> int:
    from trainer.blending.blend import blend  # imports torch
    from trainer.exporting.proof import prove

    rules = Rules(args.shares, args.most_lost, args.seed)
    if args.json:
        sets = [location(path) for path in (args.data, args.general) if path]
        check(check_output_file(Path(args.json), sets, suffix=".json", flag="--json"))
    domain, general = load_set(args.data), load_set(args.general) if args.general else None
    for note in [*domain.notes, *(general.notes if general else [])]:
        say(note)
    if general is None:
        say("no --general SET: what the tuned model forgot is neither measured nor bounded")
    base, tuned = model_of(args.base, args), model_of(args.tuned, args)
    result = blend(base, tuned, domain, general, Path(args.output), rules, args.device, prove)
    _print(result)
    if args.json:
        write_json(Path(args.json), result)
    search = ["python", "-m", "trainer.search", "QUERY", "--model", args.output]
    say_next(*search, "--compare", args.base, "--data", args.data)
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        "python -m trainer.blend",
        "Writes the best model between a base and the model that was trained from it.",
        "python -m trainer.blend MODEL runs/mine/final --data shards --general general --output runs/mine/blended",
    )
    parser.add_argument("base", metavar="BASE", help="folder or hub id of the model before training")
    parser.add_argument("tuned", metavar="TUNED", help="the trained model, e.g. final/ of a run: whole, or an adapter")
    parser.add_argument("--data", required=True, metavar="SET", help="retrieval set, or shard folder, of the domain")
    parser.add_argument("--general", metavar="SET", help="retrieval set of what the model must not forget")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="new folder for the model")
    text = "shares of the tuned model to try (default: 0, 0.1 … 1); 0 and 1 are measured in any case"
    parser.add_argument("--shares", type=float, nargs="+", metavar="S", default=Rules.shares, help=text)
    text = "nDCG@10 that a share may lose on --general (default 0.005)"
    parser.add_argument("--most-lost", type=float, metavar="X", default=Rules.most_lost, help=text)
    parser.add_argument("--seed", type=int, default=Rules.seed, metavar="S", help="seed that halves the queries")
    parser.add_argument("--json", metavar="FILE", help="write the result here as well; the folder holds it too")
    add_model(parser)
    return guarded(lambda: run(with_homes(parser.parse_args(argv))))


if __name__ == "__main__":
    sys.exit(main())
