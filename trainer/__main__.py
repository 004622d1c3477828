"""python -m trainer --config RUN.yaml [section.key=value …], alone or under accelerate launch or torchrun.

Flags and a flat config.json are translated into a run file first (frontends/).
"""

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

from data_prep.common.console import escape_what_stdout_lacks, say
from data_prep.common.files import check
from trainer.config.imports import check_packages
from trainer.config.loading import load_config
from trainer.config.sections import RunConfig
from trainer.distributed.launcher_claims import check_launcher, rank
from trainer.distributed.stop import listen_early
from trainer.frontends.command_line import fail, parse
from trainer.frontends.flags import beside_a_run_file, from_flags
from trainer.frontends.flat_json import from_json
from trainer.frontends.translation import Entry, check_world
from trainer.run_dir.layout import RUN_FILE


def main(argv: list[str] | None = None) -> int:
    escape_what_stdout_lacks()
    args = parse(sys.argv[1:] if argv is None else argv)
    together = False
    try:
        check_launcher()
        together = True  # so far every rank does the same and fails the same way: rank 0 speaks for all
        check_packages()
        entry = translated(args)
        config = entry.config if entry else load_config(args.config, args.overrides)
        if args.dry_run:
            look(entry, config, args.resume)
            return 0
        run_file = begin(entry, args) if entry else args.config
        from trainer.train.train import train

        together = False
        train(config, run_file, args.resume, args.engine, args.processes)
        return 0
    except (Exception, KeyboardInterrupt) as error:
        return fail(error, together)


def translated(args: argparse.Namespace) -> Entry | None:
    """Returns the run that flags or a config.json describe; None where --config names a run file."""
    if args.config is None:
        return from_flags(args)
    check(beside_a_run_file(args))
    return from_json(Path(args.config), args.overrides) if args.config.endswith(".json") else None


def look(entry: Entry | None, config: RunConfig, resume: bool) -> None:
    """Shows what a run would do. The shards of an entry are temporary."""
    from trainer.frontends.auto_shards import for_a_look
    from trainer.train.dry_run import show

    for note in entry.notes if entry else ():
        say(note)
    with for_a_look(entry) if entry else nullcontext(config) as shown:
        show(shown, resume)


def begin(entry: Entry, args: argparse.Namespace) -> str:
    """Writes the shards and the run file of an entry; returns the run file's path."""
    from trainer.frontends.auto_shards import prepare

    check_world(args.processes)
    if rank() == 0:
        for note in entry.notes:
            say(note)
        say(f"as a run file: {Path(entry.config.output_dir, RUN_FILE)}")
    return str(prepare(entry, args.resume))


if __name__ == "__main__":
    listen_early()
    sys.exit(main())
