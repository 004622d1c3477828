"""A run as one HTML page that needs no network: python -m trainer.report RUN [--output report.html]."""

import argparse
import sys
from pathlib import Path

from data_prep.common.console import result
from data_prep.common.errors import guarded
from data_prep.common.files import check, check_output_file, whole_file
from data_prep.common.parser import Parser
from data_prep.common.paths import with_homes
from trainer.config.sections import ModelConfig
from trainer.inference.flags import add_device, add_trust
from trainer.query_side.encoder import AdaptedEncoder
from trainer.query_side.flags import add_adapter
from trainer.reporting.comparison import Adapted
from trainer.reporting.facts import read_facts
from trainer.reporting.hits import show_changed
from trainer.reporting.page import write_report


def adapted(folder: Path) -> Adapted:
    """Returns the query adapter of a folder, for a report."""

    def load(config: ModelConfig, device: str) -> AdaptedEncoder:
        encoder = AdaptedEncoder(config, folder, device)
        encoder.cut_documents()
        return encoder

    return Adapted(folder, load)


def run(args: argparse.Namespace) -> int:
    folder = Path(args.run)
    output = Path(args.output) if args.output else folder / "report.html"
    check(check_output_file(output, suffix=".html"))
    options = args.device, args.trust_remote_code, args.query_adapter and adapted(args.query_adapter)
    facts = read_facts(folder, args.baseline, args.data, *options)
    text = write_report(facts)
    with whole_file(output) as file:
        file.write(text)
    if facts.comparison:
        show_changed(facts.comparison)
    result(f"{output}: {len(text) / 1024:.0f} KiB, one file that needs no network; open it in a browser")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        "python -m trainer.report",
        "Writes one HTML page about a run: curves, the model before and after, queries that gained and lost.",
        "python -m trainer.report runs/first",
    )
    parser.add_argument("run", metavar="RUN", help="a run's output_dir")
    parser.add_argument("--output", metavar="FILE", help="default: RUN/report.html")
    parser.add_argument("--baseline", metavar="M", help="model before training; default: the run's model.path")
    parser.add_argument("--data", metavar="SET", help="retrieval set; default: the run's own evaluation set")
    add_adapter(parser, "the run's model")
    add_device(parser)
    add_trust(parser)
    return guarded(lambda: run(with_homes(parser.parse_args(argv))))


if __name__ == "__main__":
    sys.exit(main())
