"""python -m launch run: checks a run, prints the exact command and runs it; restarts it after a failure."""

import argparse
import os
import sys
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.files import check
from launch.before_start import few_rows, finished_note, rows_per_rank
from launch.command import Command, build, choose, device_of, launched
from launch.machine import capability, free_port, this_machine
from launch.nodes import find_nodes
from launch.supervise import PAUSE, supervise
from trainer.config.imports import check_packages
from trainer.distributed.deepspeed_json import check_deepspeed
from trainer.distributed.engines import ONE_PROCESS, ZERO
from trainer.distributed.launcher_claims import check_shell
from trainer.distributed.precision import slow_precision
from trainer.frontends.flat_json import load_run_file
from trainer.preflight.check_run import check_run
from trainer.preflight.inputs import Inputs


def run(args: argparse.Namespace) -> int:
    check_packages()
    if args.module:
        return run_module(args)
    if not args.config:
        raise BadInput("name what is run: --config RUN.yaml, or --module M with its flags behind --")
    config = load_run_file(args.config, args.overrides)
    machine = this_machine()
    engine, processes = choose(args.engine, args.processes, machine, config.train.device, args.nnodes)
    check_shell(engine in ONE_PROCESS, args.nnodes > 1)
    nodes = find_nodes(args.nnodes, args.node_rank, args.master)
    # Node 0 may have created the output folder already, and it alone checks that it may be written.
    inputs = Inputs(config)
    warnings = check_run(inputs, args.resume or bool(nodes and nodes.rank), engine=engine)
    device = device_of(engine, machine, config.train.device)
    if engine in ZERO:
        check_deepspeed(device)

    def command_to(resume: bool):
        arguments = (args.config, args.overrides, engine, processes, machine, device, resume)
        return build(*arguments, port=free_port(), nodes=nodes)

    command = command_to(args.resume)
    of_several = f", node {nodes.rank} of {nodes.count}" if nodes else ""
    print(f"{engine}, {processes} process(es) on {device}{of_several}:\n{command}", file=sys.stderr, flush=True)
    shape = inputs.plan.batch_size, processes * args.nnodes
    if args.dry_run:  # a real run prints the warnings itself
        warnings += slow_precision(config.train.precision, device, capability(machine))
        lines = [rows_per_rank(*shape), *few_rows(*shape), *warnings, *finished_note(config.output_dir)]
        print("\n".join(lines), file=sys.stderr)
        return 0
    for line in few_rows(*shape):
        print(line, file=sys.stderr, flush=True)
    if args.max_restarts or engine not in ONE_PROCESS:  # a launcher's traceback would bury what a rank says
        pause = PAUSE if nodes else 0.0
        return supervise(command, lambda: command_to(True), Path(config.output_dir), args.max_restarts, pause)
    _become(command)


def run_module(args: argparse.Namespace) -> int:
    """Starts a command that embeds, with its own flags, on the ranks of this machine or of several."""
    given = {"--config": args.config, "--resume": args.resume, "--max-restarts": args.max_restarts}
    problems = [f"{flag}: is about a run, and --module {args.module} is none" for flag, value in given.items() if value]
    if args.engine in ZERO:
        problems.append(f"--engine {args.engine}: each rank of {args.module} holds the whole model; use ddp")
    check(problems)
    machine, asked = this_machine(), _device(args.overrides)
    engine, processes = choose(args.engine, args.processes, machine, asked, args.nnodes)
    check_shell(engine in ONE_PROCESS, args.nnodes > 1)
    nodes = find_nodes(args.nnodes, args.node_rank, args.master)
    device = device_of(engine, machine, asked)
    arguments = ["-m", args.module, *args.overrides]
    command = launched(arguments, engine, processes, machine, device, free_port(), nodes)
    print(f"{processes} process(es) on {device}:\n{command}", file=sys.stderr, flush=True)
    if not args.dry_run:
        _become(command)
    return 0


def _device(flags: list[str]) -> str:
    """Returns the value of --device among a command's flags, or auto."""
    for flag, value in zip(flags, [*flags[1:], ""]):
        name, _, own = flag.partition("=")
        if name == "--device":
            return own or value
    return "auto"


def _become(command: Command) -> None:
    """Replaces this process by the command: signals reach it, and its exit code is ours."""
    os.execvpe(command.argv[0], command.argv, os.environ | command.environ)
