"""python -m launch: plan, check and start runs on one machine, on several nodes and under SLURM; doctor: what works."""

import shlex
import sys
from importlib import import_module

from data_prep.common.errors import guarded
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
    args = flags.parser().parse_args(argv)
    args.typed = f"python -m launch {shlex.join(argv)}"
    module, function = COMMANDS[args.command]
    return getattr(import_module(module), function)(with_homes(args))


if __name__ == "__main__":
    sys.exit(main())
