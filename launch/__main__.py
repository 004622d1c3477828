"""python -m launch: plan, check and start runs on one machine, on several nodes and under SLURM; doctor: what works."""

import argparse
import os
import shlex
import sys
from pathlib import Path

from data_prep.problems import BadInput, guarded
from launch import plan, submit


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m launch", description="Start training runs.")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    submit.add(commands)
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
    _add_nodes(run)
    run.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint, or from the start")
    about = "start a run that failed again from its newest whole checkpoint, at most so often (default 0)"
    run.add_argument("--max-restarts", type=int, default=0, metavar="N", help=about)
    run.add_argument("--dry-run", action="store_true", help="check and print the command, start nothing")
    run.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the run file")
    run.set_defaults(work=run_command)


def _add_nodes(command) -> None:
    several = command.add_argument_group("several nodes", "the same command on each of them, but for --node-rank")
    several.add_argument("--nnodes", type=int, default=1, metavar="N", help="nodes that train together (default 1)")
    several.add_argument("--node-rank", type=int, metavar="R", help="which of them this is, from 0")
    several.add_argument("--master", metavar="HOST[:PORT]", help="node 0, as all of them reach it (port 29500)")


def _add_doctor(commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="what is wrong here, and whether it trains exactly",
        description="Looks at this machine and lists its engines. With --config the ranks of that run are started as "
        "well (the same on every node), and say what they can only find out together: whether they agree, share files, "
        "and how fast their network is. With --exactness a tiny model is trained on each engine, and its gradient and "
        "update are held against plain autograd in one process.",
        epilog="example: python -m launch doctor --config run.yaml --engine zero2 --processes 2",
    )
    doctor.add_argument("--config", metavar="RUN.yaml", help="start the ranks of this run, which train nothing")
    doctor.add_argument("--exactness", action="store_true", help="train and compare; exit code 1 where an engine fails")
    doctor.add_argument("--engine", metavar="E", help="this engine only")
    doctor.add_argument("--processes", type=int, metavar="N", help="ranks of the engines that have several (default 2)")
    _add_nodes(doctor)
    doctor.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the run file")
    doctor.set_defaults(work=doctor_command)


def run_command(args: argparse.Namespace) -> int:
    from launch.command import build, choose, device_of
    from launch.nodes import find_nodes
    from launch.topology import free_port, this_machine
    from trainer.config import check_packages, load_config
    from trainer.preflight import check_run

    check_packages()
    config = load_config(args.config, args.overrides)
    machine = this_machine()
    engine, processes = choose(args.engine, args.processes, machine, config.train.device, args.nnodes)
    nodes = find_nodes(args.nnodes, args.node_rank, args.master)
    # Node 0 may have made the output folder already; whether it may be written is for node 0 to say.
    warnings = check_run(config, args.resume or bool(nodes and nodes.rank), engine=engine)
    device = device_of(engine, machine, config.train.device)

    def command_to(resume: bool):
        what = (args.config, args.overrides, engine, processes, machine, device, resume)
        return build(*what, port=free_port(), nodes=nodes)

    command = command_to(args.resume)
    of_several = f", node {nodes.rank} of {nodes.count}" if nodes else ""
    print(f"{engine}, {processes} process(es) on {device}{of_several}:\n{command}", file=sys.stderr, flush=True)
    if args.dry_run:
        print("".join(f"{line}\n" for line in warnings), end="", file=sys.stderr)  # the run itself would say them
        return 0
    if args.max_restarts or nodes:
        from launch.supervise import PAUSE, supervise

        pause = PAUSE if nodes else 0.0
        return supervise(command, lambda: command_to(True), Path(config.output_dir), args.max_restarts, pause)
    # The launcher takes this process's place: signals reach it, and its exit code is ours.
    os.execvpe(command.argv[0], command.argv, os.environ | command.environ)


def doctor_command(args: argparse.Namespace) -> int:
    from launch.command import build, choose, device_of
    from launch.doctor import doctor, exactness, examine
    from launch.nodes import find_nodes
    from launch.topology import free_port, this_machine
    from trainer.config import check_packages, load_config

    check_packages()
    if args.config is None:
        if args.overrides or args.nnodes != 1 or args.node_rank is not None or args.master is not None:
            raise BadInput("doctor: --nnodes, --node-rank, --master and overrides are about a run; give --config")
        return (exactness if args.exactness else doctor)(args.engine, args.processes)
    if args.exactness:
        raise BadInput("doctor: --exactness has a case of its own; leave out --config")
    config, machine = load_config(args.config, args.overrides), this_machine()
    asked = args.engine or "auto"
    engine, processes = choose(asked, args.processes, machine, config.train.device, args.nnodes)
    nodes = find_nodes(args.nnodes, args.node_rank, args.master)
    device = device_of(engine, machine, config.train.device)
    what = (args.config, args.overrides, engine, processes, machine, device, False, free_port())
    return examine(config, machine, build(*what, module="trainer.diagnose", nodes=nodes))


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    args.typed = f"python -m launch {shlex.join(argv)}"
    return guarded(lambda: args.work(args))


if __name__ == "__main__":
    sys.exit(main())
