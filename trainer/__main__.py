"""python -m trainer --config RUN.yaml [section.key=value …], alone or under accelerate launch or torchrun."""

import argparse
import os
import sys

from data_prep.problems import report
from trainer.config import load_config
from trainer.topology import ENGINES


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m trainer",
        description="Fine-tune a text-embedding model. One process here; several under accelerate launch or torchrun "
        "(python -m launch run prints and runs the right command).",
        epilog="example: torchrun --nproc-per-node 2 -m trainer --config run.yaml optim.lr=1e-4",
    )
    made.add_argument("--config", required=True, metavar="RUN.yaml", help="run file (.yaml or .json)")
    made.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint, or from the start")
    made.add_argument("--dry-run", action="store_true", help="print the plan and one batch as the model reads it")
    made.add_argument("--engine", choices=ENGINES, help="the planned engine; any other is refused")
    made.add_argument(
        "--processes", type=int, metavar="N", help="the planned number of processes; any other is refused"
    )
    made.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the run file")
    return made


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_intermixed_args(argv)
    try:
        config = load_config(args.config, args.overrides)
        if args.dry_run:
            from trainer.dryrun import show

            show(config)
            return 0
        from trainer.train import train

        train(config, args.config, args.resume, args.engine, args.processes)
        return 0
    except (Exception, KeyboardInterrupt) as error:
        text, code = report(error)
        if os.environ.get("RANK", "0") == "0":
            print(text, file=sys.stderr)
        return code


if __name__ == "__main__":
    sys.exit(main())
