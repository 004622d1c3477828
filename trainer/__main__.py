"""python -m trainer --config RUN.yaml [section.key=value …], alone or under accelerate launch or torchrun."""

import argparse
import os
import sys
import traceback

from data_prep.problems import report
from trainer.config import check_packages, load_config
from trainer.interrupts import listen_early
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
    together = True  # so far every rank does the same and fails the same way: rank 0 speaks for all
    try:
        check_packages()
        config = load_config(args.config, args.overrides)
        if args.dry_run:
            from trainer.dryrun import show

            show(config, args.resume)
            return 0
        from trainer.train import train

        together = False
        train(config, args.config, args.resume, args.engine, args.processes)
        return 0
    except (Exception, KeyboardInterrupt) as error:
        return fail(error, together or getattr(error, "on_every_rank", False))


def _hint(error: BaseException) -> str:
    return "; add --resume to go on from the last checkpoint" if isinstance(error, KeyboardInterrupt) else ""


def fail(error: BaseException, on_every_rank: bool) -> int:
    """Prints what happened, from rank 0 where all ranks know and else from the one that does; the exit code."""
    rank = int(os.environ.get("RANK", "0"))
    if getattr(error, "signal_number", None):  # interrupts.Stopped: every rank is whole and leaves by itself
        if rank == 0:
            print(error, file=sys.stderr, flush=True)
        return error.code
    if os.environ.get("WORLD_SIZE", "1") == "1":
        text, code = report(error)
        print(text + _hint(error), file=sys.stderr)
        return code
    try:
        text, code = report(error)
        text += _hint(error)
    except Exception:
        text, code = traceback.format_exc(), 1
    if rank == 0 or not on_every_rank:
        print(text if rank == 0 else f"rank {rank}: {text}", file=sys.stderr, flush=True)
    # Leaving in order would wait for ranks that sit in a collective; the launcher ends them when this one is gone.
    os._exit(code)


if __name__ == "__main__":
    listen_early()
    sys.exit(main())
