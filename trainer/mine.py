"""Hard negatives by a model, on any number of ranks: python -m trainer.mine INPUT… --output F.jsonl --model M."""

import argparse
import sys

from data_prep.cli.mine import add_flags, plan
from data_prep.common.errors import BadInput
from data_prep.common.parser import Parser
from data_prep.common.paths import with_homes
from trainer.config.loading import parse_section
from trainer.config.sections import ModelConfig
from trainer.engine.join import joined
from trainer.engine.leaving import guarded_ranks
from trainer.inference.flags import add_precision
from trainer.inference.team import Team
from trainer.inference.text_encoder import TextEncoder


def run(args: argparse.Namespace) -> None:
    if not args.model:
        raise BadInput("--model: is needed here; by words alone: python -m data_prep mine")
    work, encoder = plan(args), TextEncoder(_model(args))
    with joined(args.device or "auto", args.precision) as runtime:
        encoder.runtime = runtime
        team = Team(encoder)
        team.lead(lambda: work(lambda: team, team))


def _model(args: argparse.Namespace) -> ModelConfig:
    values = {"path": args.model, "query_max_len": args.max_len, "passage_max_len": args.max_len}
    values |= {name: getattr(args, name) for name in ("query_prompt", "passage_prompt", "trust_remote_code")}
    return parse_section("model", values, "the command line")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        "python -m trainer.mine",
        "Adds hard negatives to rows with an embedding model, on one process or on the ranks of torchrun.",
        "torchrun --nproc-per-node 2 -m trainer.mine records.jsonl --output mined.jsonl --model MODEL",
    )
    add_flags(parser)
    add_precision(parser)
    return guarded_ranks(lambda: run(with_homes(parser.parse_args(argv))))


if __name__ == "__main__":
    sys.exit(main())
