"""The trainer's command line, and how a failed run leaves. No torch."""

import argparse
import sys

from data_prep.common.parser import HelpFormatter
from trainer.config.run_parser import RunParser
from trainer.distributed.engines import ENGINES
from trainer.distributed.launcher_claims import rank
from trainer.distributed.stop import Stopped
from trainer.engine.leaving import leave
from trainer.frontends.flags import add_flags, stated_flags


def parse(argv: list[str]) -> argparse.Namespace:
    """Reads --config or the flags of FLAGS, the trainer's own options and overrides. `unknown` holds what is no flag:
    with --config an error here, without it one problem among others."""
    cli = parser()
    args, args.unknown = cli.parse_known_intermixed_args(argv)
    if args.config is None and not stated_flags(args):
        cli.error("nothing to train: name a run file (--config RUN.yaml), or the flags of a run without one")
    if args.config is not None:
        cli.check(args, args.unknown)
    return args


class _Help(HelpFormatter):
    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        """Shows V for [V]: a missing value is read only to be reported with all other problems."""
        return "V" if action.nargs == "?" else super()._format_args(action, default_metavar)


def parser() -> RunParser:
    cli = RunParser(
        "python -m trainer",
        "Fine-tunes a text-embedding model in one process, or on the ranks of torchrun or accelerate launch.",
        "python -m trainer --config run.yaml --dry-run\n"
        "torchrun --nproc-per-node 2 -m trainer --config run.yaml optim.lr=1e-4\n"
        "python -m trainer --model_name_or_path MODEL --finetune_type lora --train_dataset F.jsonl --output_dir O",
        formatter_class=_Help,
        usage="python -m trainer --config RUN.yaml [options] [section.key=value ...]\n"
        "       python -m trainer --model_name_or_path M --train_dataset F --output_dir O [options] [key=value ...]",
        allow_abbrev=False,  # --epoch for --epochs would hide a typing error
    )
    cli.add_argument("--config", metavar="RUN.yaml", help="run file (.yaml or .json), or config.json")
    cli.add_argument("--resume", action="store_true", help="continue from the newest whole checkpoint, or start")
    cli.add_argument("--dry-run", action="store_true", help="print the plan and one batch as the model reads it")
    cli.add_argument("--engine", choices=ENGINES, help="expected engine; another one ends the run before training")
    cli.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="expected number of processes; another one ends the run before training",
    )
    cli.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the run file")
    add_flags(cli)
    return cli


def fail(error: BaseException, together: bool = False) -> int:
    """Prints the error, from rank 0 where every rank has it, else from this rank; returns the exit code.
    together: every rank raises the same error here, whatever it is."""
    if isinstance(error, Stopped):  # every rank is whole and leaves by itself
        if rank() == 0:
            print(error, file=sys.stderr, flush=True)
        return error.code
    return leave(error, together, again="add --resume to go on from the last checkpoint")
