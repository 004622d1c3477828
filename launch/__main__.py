"""python -m launch run: checks a run, prints the exact command, runs it. plan, doctor: what it takes, what works."""

import argparse
import os
import sys
from pathlib import Path

from data_prep.problems import guarded
from launch import plan


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m launch", description="Start training runs.")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_doctor(commands)
    plan.add(commands)
    return made


def _add_run(commands) -> None:
    run = commands.add_parser(
        "run",
        help="check a run, print the exact command, run it",
        description="Checks run file, model, data and output folder, then prints and runs the exact command.",
        epilog="example: python -m launch run --config run.yaml --engine zero2 --processes 2 optim.lr=1e-4",
    )
    run.add_argument("--config", required=True, metavar="RUN.yaml", help="run file (.yaml or .json)")
    run.add_argument(
        "--engine",
        default="auto",
        metavar="E",
        help="auto, cpu, mps, single_gpu, ddp, zero1, zero2, zero3, zero2_offload or zero3_offload "
        "(auto: one process, or ddp over all GPUs)",
    )
    run.add_argument("--processes", type=int, metavar="N", help="ranks on this machine")
    run.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint, or from the start")
    about = "start a run that failed again from its newest whole checkpoint, at most so often (default 0)"
    run.add_argument("--max-restarts", type=int, default=0, metavar="N", help=about)
    run.add_argument("--dry-run", action="store_true", help="check and print the command, start nothing")
    run.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the run file")
    run.set_defaults(work=run_command)


def _add_doctor(commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="what is installed and usable here, and whether it trains exactly",
        description="Lists the versions and the engines of this machine. With --exactness a tiny model is trained on "
        "each of them, and its gradient and update are held against plain autograd in one process.",
        epilog="example: python -m launch doctor --exactness --engine zero2 --processes 2",
    )
    doctor.add_argument("--exactness", action="store_true", help="train and compare; exit code 1 where an engine fails")
    doctor.add_argument("--engine", metavar="E", help="this engine only")
    doctor.add_argument("--processes", type=int, metavar="N", help="ranks of the engines that have several (default 2)")
    doctor.set_defaults(work=doctor_command)


def run_command(args: argparse.Namespace) -> int:
    from launch.command import build, choose, device_of
    from launch.topology import free_port, this_machine
    from trainer.config import check_packages, load_config
    from trainer.preflight import check_run

    check_packages()
    config = load_config(args.config, args.overrides)
    machine = this_machine()
    engine, processes = choose(args.engine, args.processes, machine, config.train.device)
    warnings = check_run(config, args.resume, engine=engine)
    device = device_of(engine, machine, config.train.device)
    command = build(args.config, args.overrides, engine, processes, machine, device, args.resume, free_port())
    print(f"{engine}, {processes} process(es) on {device}:\n{command}", file=sys.stderr, flush=True)
    if args.dry_run:
        print("".join(f"{line}\n" for line in warnings), end="", file=sys.stderr)  # the run itself would say them
        return 0
    if args.max_restarts:
        from launch.supervise import supervise

        def again():
            return build(args.config, args.overrides, engine, processes, machine, device, True, free_port())

        return supervise(command, again, Path(config.output_dir), args.max_restarts)
    # The launcher takes this process's place: signals reach it, and its exit code is ours.
    os.execvpe(command.argv[0], command.argv, os.environ | command.environ)


def doctor_command(args: argparse.Namespace) -> int:
    from launch.doctor import doctor
    from trainer.config import check_packages

    check_packages()
    return doctor(args.engine, args.processes, args.exactness)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return guarded(lambda: args.work(args))


if __name__ == "__main__":
    sys.exit(main())
