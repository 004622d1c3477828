"""A forecast of the gain from more pairs: python -m trainer.curve --config RUN.yaml --output FOLDER [--fractions …]

Trains on nested shares of the data, one ordinary run after the other, and says what more pairs are expected to bring.
"""

import argparse
import sys
from pathlib import Path

from data_prep.common.console import result as print_result
from data_prep.common.console import say, say_next
from data_prep.common.errors import guarded
from data_prep.common.files import check, existing_parent, whole_file, write_json
from data_prep.common.paths import with_homes
from trainer.config.run_parser import RunParser
from trainer.curves.child import wait_for_orphan
from trainer.curves.page import write_page
from trainer.curves.price import price_of
from trainer.curves.result import describe_curve, lines
from trainer.curves.runs import Runs, make, plan_runs, starter
from trainer.distributed.launcher_claims import world_size
from trainer.frontends.flat_json import load_run_file

FRACTIONS = (0.1, 0.25, 0.5, 1.0)
JSON, PAGE = "curve.json", "curve.html"


def run(args: argparse.Namespace) -> int:
    folder = Path(args.output)
    check(_problems(args, folder))
    price = price_of(Path(args.usage)) if args.usage else args.price_per_pair
    config = load_run_file(args.config, args.overrides)
    wait_for_orphan(folder)
    runs, warnings = plan_runs(config, args.fractions, args.seeds, folder)
    for line in warnings:
        say(line)
    make(runs, starter(folder, args.engine, args.processes))
    found = describe_curve(runs, args.next or [_default_next(runs)], price)
    write_json(folder / JSON, found)
    with whole_file(folder / PAGE) as file:
        file.write(write_page(found, folder))
    for line in lines(found):
        print_result(line)
    print_result(f"{folder / PAGE}, {folder / JSON}")
    say_next("python", "-m", "trainer.report", runs.in_order()[-1].folder)
    return 0


def _problems(args: argparse.Namespace, folder: Path) -> list[str]:
    problems = [f"--next {count}: must be 1 or more" for count in args.next or () if count < 1]
    if args.price_per_pair is not None and not 0 <= args.price_per_pair < float("inf"):
        problems.append(f"--price-per-pair {args.price_per_pair}: must be 0 or more")
    if args.price_per_pair is not None and args.usage:
        problems.append("--usage, --price-per-pair: both state the price of a pair; leave one out")
    if not existing_parent(folder).is_dir():
        problems.append(f"--output {folder}: {existing_parent(folder)} is a file; name a folder")
    if world_size() > 1:
        mend = "start it once and plainly, with --engine and --processes for its runs"
        problems.append(f"trainer.curve runs in {world_size()} ranks of a launcher: it starts the ranks itself; {mend}")
    return problems


def _default_next(runs: Runs) -> int:
    """Returns the rows that no run was trained on, or as many pairs again where all were."""
    largest = round(sum(of_seed[-1].pairs for of_seed in runs.by_seed) / len(runs.by_seed))
    return runs.rows - largest if runs.rows > largest else largest


def main(argv: list[str] | None = None) -> int:
    parser = RunParser(
        "python -m trainer.curve",
        "Trains on shares of the documents and forecasts the gain of more pairs, with a 95 % interval and a price.",
        "python -m trainer.curve --config run.yaml --seeds 2 --output runs/curve --price-per-pair 0.002",
    )
    parser.add_argument("--config", required=True, metavar="RUN.yaml", help="run file; its output_dir is not used")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the run file")
    text = "shares of the documents (default 0.1 0.25 0.5 1)"
    parser.add_argument("--fractions", type=float, nargs="+", default=[*FRACTIONS], metavar="F", help=text)
    text = "runs of each share, with seeds from train.seed on (default 2)"
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help=text)
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder of the runs, curve.json, curve.html")
    text = "numbers of further pairs to forecast (default: the rest of the data, or as many again)"
    parser.add_argument("--next", type=int, nargs="+", metavar="N", help=text)
    text = "usage file of `data_prep generate --price-in … --price-out …`, for the price of a pair"
    parser.add_argument("--usage", metavar="PAIRS.usage.json", help=text)
    parser.add_argument("--price-per-pair", type=float, metavar="X", help="price of a pair, in any currency")
    parser.add_argument("--engine", metavar="E", help="engine of each run, as for launch run (default: its own choice)")
    parser.add_argument("--processes", type=int, metavar="N", help="ranks of each run, on this machine")
    return guarded(lambda: run(with_homes(parser.parse_args(argv))))


if __name__ == "__main__":
    sys.exit(main())
