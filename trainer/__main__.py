"""python -m trainer --config RUN.yaml [section.key=value …], alone or under accelerate launch or torchrun.

Also by flags (flags.py) and by a flat config.json (config_json.py): these are translated into a run file first.
"""

import argparse
import os
import sys
import time
import traceback
from contextlib import nullcontext
from pathlib import Path

from data_prep.output import check
from data_prep.problems import report
from data_prep.progress import say
from trainer.config import check_packages, load_config
from trainer.config_json import from_json
from trainer.entries import Entry, check_world
from trainer.flags import Options, add_help, are_flags, beside_a_run_file, from_flags
from trainer.interrupts import listen_early
from trainer.state import RUN_FILE
from trainer.topology import ENGINES

SPEAKS = 5.0  # seconds that rank 0 may need longer to say it for all: launchers end every rank once one is gone


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m trainer",
        description="Fine-tune a text-embedding model. One process here; several under accelerate launch or torchrun "
        "(python -m launch run prints and runs the right command).",
        epilog="examples:\n  torchrun --nproc-per-node 2 -m trainer --config run.yaml optim.lr=1e-4\n"
        "  python -m trainer --model_name_or_path MODEL --finetune_type lora --train_dataset F.jsonl --output_dir OUT",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--config", required=True, metavar="RUN.yaml", help="run file (.yaml or .json), or config.json")
    made.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint, or from the start")
    made.add_argument("--dry-run", action="store_true", help="print the plan and one batch as the model reads it")
    made.add_argument("--engine", choices=ENGINES, help="the planned engine; any other is refused")
    made.add_argument(
        "--processes", type=int, metavar="N", help="the planned number of processes; any other is refused"
    )
    made.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the run file")
    add_help(made)
    return made


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = None if are_flags(argv) else parser().parse_intermixed_args(argv)
    together = True  # so far every rank does the same and fails the same way: rank 0 speaks for all
    try:
        check_packages()
        if args is None:
            entry, options = from_flags(argv)
        else:
            check(beside_a_run_file(vars(args)))
            options = Options(args.resume, args.dry_run, args.engine, args.processes)
            entry = from_json(Path(args.config), args.overrides) if args.config.endswith(".json") else None
        config = entry.config if entry else load_config(args.config, args.overrides)
        if options.dry_run:
            look(entry, config, options.resume)
            return 0
        run_file = begin(entry, options) if entry else args.config
        from trainer.train import train

        together = False
        train(config, run_file, options.resume, options.engine, options.processes)
        return 0
    except (Exception, KeyboardInterrupt) as error:
        return fail(error, together or getattr(error, "on_every_rank", False))


def look(entry: Entry | None, config, resume: bool) -> None:
    """--dry-run: the shards of an entry are made for it alone."""
    from trainer.dryrun import show
    from trainer.straight import for_a_look

    for note in entry.notes if entry else ():
        say(note)
    with for_a_look(entry) if entry else nullcontext(config) as shown:
        show(shown, resume)


def begin(entry: Entry, options: Options) -> str:
    """Shards and run file of an entry; the path of the run file."""
    from trainer.straight import prepare

    check_world(options.processes)
    if os.environ.get("RANK", "0") == "0":
        for note in entry.notes:
            say(note)
        say(f"as a run file: {Path(entry.config.output_dir, RUN_FILE)}")
    return str(prepare(entry, options.resume))


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
    else:
        time.sleep(SPEAKS)
    # Leaving in order would wait for ranks that sit in a collective; the launcher ends them when this one is gone.
    os._exit(code)


if __name__ == "__main__":
    listen_early()
    sys.exit(main())
