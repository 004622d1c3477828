"""python -m launch: plan, check and start runs on one machine, on several nodes and under SLURM; doctor: what works."""

import argparse
import shlex
import sys
from importlib import import_module

from data_prep.common.errors import BadInput, guarded, stray_flags
from data_prep.common.files import check
from data_prep.common.paths import with_homes
from launch import flags

# module and function of each command, imported when it is asked for: --help answers at once
COMMANDS = {
    "run": ("launch.run", "run"),
    "slurm": ("launch.slurm.submit", "render_or_submit"),
    "doctor": ("launch.doctor", "run_doctor"),
    "plan": ("launch.plan.plan", "show_plan"),
    "init": ("launch.init", "init"),
}


def main(argv: list[str] | None = None) -> int:
    return guarded(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: list[str]) -> int:
    parser = flags.parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown and not any(text.startswith("-") for text in unknown):
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if unknown:
        raise BadInput(_unknown_flags(unknown, args))
    if not getattr(args, "module", None):  # else they are the flags of that command
        check(stray_flags(getattr(args, "overrides", ()), [f"--{name}" for name in _flags(args)]))
    args.typed = f"python -m launch {shlex.join(argv)}"
    module, function = COMMANDS[args.command]
    return getattr(import_module(module), function)(with_homes(args))


def _flags(args: argparse.Namespace) -> list[str]:
    """Returns the names of the command's flags, without their dashes."""
    return [name.replace("_", "-") for name in vars(args) if name not in ("command", "overrides", "typed")]


def _unknown_flags(unknown: list[str], args: argparse.Namespace) -> list[str]:
    """Returns a problem for each flag that the command does not know: keys of the run file have none."""
    from trainer.config.unknown_keys import about_flags

    problems = about_flags((text for text in unknown if text.startswith("-")), _flags(args))
    return [f"{text} (python -m launch {args.command} --help)" if text.endswith("flag.") else text for text in problems]


if __name__ == "__main__":
    sys.exit(main())
