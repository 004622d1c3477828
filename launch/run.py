"""python -m launch run: checks a run, prints the exact command and runs it; restarts it after a failure."""

import argparse
import os
import sys
from pathlib import Path

from launch.before_start import few_rows, finished_note, rows_per_rank
from launch.command import build, choose, device_of
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
    # The run replaces this process: signals reach it, and its exit code is ours.
    os.execvpe(command.argv[0], command.argv, os.environ | command.environ)
