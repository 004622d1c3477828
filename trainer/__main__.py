"""python -m trainer --config RUN.yaml [section.key=value …], alone or under accelerate launch or torchrun.

Also by flags (flags.py) and by a flat config.json (config_json.py): these are translated into a run file first.
"""

import os
import sys
from contextlib import nullcontext
from pathlib import Path

from data_prep.common.console import say
from data_prep.common.files import check
from trainer.config.imports import check_packages
from trainer.config.loading import load_config
from trainer.distributed.stop import listen_early
from trainer.frontends.command_line import fail, parser
from trainer.frontends.flags import Options, are_flags, beside_a_run_file, from_flags
from trainer.frontends.flat_json import from_json
from trainer.frontends.translation import Entry, check_world
from trainer.run_dir.layout import RUN_FILE


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
    from trainer.frontends.auto_shards import for_a_look
    from trainer.train.dry_run import show

    for note in entry.notes if entry else ():
        say(note)
    with for_a_look(entry) if entry else nullcontext(config) as shown:
        show(shown, resume)


def begin(entry: Entry, options: Options) -> str:
    """Shards and run file of an entry; the path of the run file."""
    from trainer.frontends.auto_shards import prepare

    check_world(options.processes)
    if os.environ.get("RANK", "0") == "0":
        for note in entry.notes:
            say(note)
        say(f"as a run file: {Path(entry.config.output_dir, RUN_FILE)}")
    return str(prepare(entry, options.resume))


if __name__ == "__main__":
    listen_early()
    sys.exit(main())
