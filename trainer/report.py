"""A run as one HTML page that needs no network: python -m trainer.report RUN [--output report.html]."""

import argparse
import sys
from pathlib import Path

from data_prep.common.console import result
from data_prep.common.errors import guarded
from data_prep.common.files import check, check_output_file, whole_file
from data_prep.common.paths import with_homes
from trainer.inference.flags import add_trust
from trainer.reporting.facts import read_facts
from trainer.reporting.page import write_report


def run(args: argparse.Namespace) -> int:
    folder = Path(args.run)
    output = Path(args.output) if args.output else folder / "report.html"
    check(check_output_file(output, suffix=".html"))
    text = write_report(read_facts(folder, args.baseline, args.data, args.device, args.trust_remote_code))
    with whole_file(output) as file:
        file.write(text)
    result(f"{output}: {len(text) / 1024:.0f} KiB, needs no network")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.report",
        description="One HTML page of a run: losses and metrics over its steps, the model before and after on held-out "
        "queries, which of them gained and lost, the data, the speed, and how to do it again.",
        epilog="example: python -m trainer.report runs/first",
    )
    parser.add_argument("run", metavar="RUN", help="a run's output_dir")
    parser.add_argument("--output", metavar="FILE", help="default: RUN/report.html")
    parser.add_argument("--baseline", metavar="M", help="model before training; default: the run's model.path")
    parser.add_argument("--data", metavar="SET", help="retrieval set; default: the run's own evaluation set")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "mps", "cuda"])
    add_trust(parser)
    return guarded(lambda: run(with_homes(parser.parse_args(argv))))


if __name__ == "__main__":
    sys.exit(main())
