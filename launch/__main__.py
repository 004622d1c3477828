"""python -m launch: plan, check and start runs on one machine, on several nodes and under SLURM; doctor: what works."""

import argparse
import os
import shlex
import sys
from pathlib import Path

from data_prep.common.errors import BadInput, guarded
from launch import flags


def run_command(args: argparse.Namespace) -> int:
    from launch.command import build, choose, device_of
    from launch.machine import free_port, this_machine
    from launch.nodes import find_nodes
    from trainer.config.imports import check_packages
    from trainer.distributed.deepspeed_json import check_deepspeed
    from trainer.distributed.engines import ZERO
    from trainer.frontends.flat_json import load_run_file
    from trainer.preflight.check_run import check_run
    from trainer.preflight.inputs import Inputs

    check_packages()
    config = load_run_file(args.config, args.overrides)
    machine = this_machine()
    engine, processes = choose(args.engine, args.processes, machine, config.train.device, args.nnodes)
    nodes = find_nodes(args.nnodes, args.node_rank, args.master)
    # Node 0 may have created the output folder already, and it alone checks that it may be written.
    warnings = check_run(Inputs(config), args.resume or bool(nodes and nodes.rank), engine=engine)
    device = device_of(engine, machine, config.train.device)
    if engine in ZERO:
        check_deepspeed(device)

    def command_to(resume: bool):
        arguments = (args.config, args.overrides, engine, processes, machine, device, resume)
        return build(*arguments, port=free_port(), nodes=nodes)

    command = command_to(args.resume)
    of_several = f", node {nodes.rank} of {nodes.count}" if nodes else ""
    print(f"{engine}, {processes} process(es) on {device}{of_several}:\n{command}", file=sys.stderr, flush=True)
    if args.dry_run:
        print("".join(f"{line}\n" for line in warnings), end="", file=sys.stderr)  # a real run prints them itself
        return 0
    if args.max_restarts or nodes:
        from launch.supervise import PAUSE, supervise

        pause = PAUSE if nodes else 0.0
        return supervise(command, lambda: command_to(True), Path(config.output_dir), args.max_restarts, pause)
    # The launcher replaces this process: signals reach it, and its exit code is ours.
    os.execvpe(command.argv[0], command.argv, os.environ | command.environ)


def doctor_command(args: argparse.Namespace) -> int:
    from launch.command import build, choose, device_of
    from launch.doctor import doctor, exactness, examine
    from launch.machine import free_port, this_machine
    from launch.nodes import find_nodes
    from trainer.config.imports import check_packages
    from trainer.frontends.flat_json import load_run_file

    check_packages()
    if args.config is None:
        if args.overrides or args.nnodes != 1 or args.node_rank is not None or args.master is not None:
            raise BadInput("doctor: --nnodes, --node-rank, --master and overrides are about a run; give --config")
        return (exactness if args.exactness else doctor)(args.engine, args.processes)
    if args.exactness:
        raise BadInput("doctor: --exactness has a case of its own; leave out --config")
    config, machine = load_run_file(args.config, args.overrides), this_machine()
    requested = args.engine or "auto"
    engine, processes = choose(requested, args.processes, machine, config.train.device, args.nnodes)
    nodes = find_nodes(args.nnodes, args.node_rank, args.master)
    device = device_of(engine, machine, config.train.device)
    arguments = (args.config, args.overrides, engine, processes, machine, device, False, free_port())
    return examine(config, machine, build(*arguments, module="trainer.diagnosis.ranks", nodes=nodes))


def slurm_command(args: argparse.Namespace) -> int:
    from launch.slurm.submit import render_or_submit

    return render_or_submit(args)


def plan_command(args: argparse.Namespace) -> int:
    from launch.plan.plan import show_plan

    return show_plan(args)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = flags.parser(run_command, slurm_command, doctor_command, plan_command).parse_args(argv)
    args.typed = f"python -m launch {shlex.join(argv)}"
    return guarded(lambda: args.work(args))


if __name__ == "__main__":
    sys.exit(main())
