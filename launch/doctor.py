"""python -m launch doctor: checks what this machine can run, and that it trains exactly. Only children import torch."""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from data_prep.common.console import result, say
from data_prep.common.errors import BadInput, Failed
from data_prep.common.files import existing_parent, write_json
from launch.command import Command, Machine, build, choose, device_of
from launch.machine import free_port, this_machine
from launch.machine_checks import machine_findings
from launch.nodes import find_nodes
from trainer.config.imports import check_packages
from trainer.config.sections import RunConfig
from trainer.diagnosis.findings import shown
from trainer.distributed.deepspeed_json import check_deepspeed
from trainer.distributed.engines import OFFLOADED, ONE_PROCESS, ZERO
from trainer.distributed.launcher_claims import check_shell
from trainer.frontends.flat_json import load_run_file
from trainer.run_dir.record import versions

LIMIT = 1e-5  # largest relative error in fp32
TIMEOUT = 600  # seconds for an engine; DeepSpeed may compile its operator first
SHOWN_LINES = 20  # of the output of an engine that failed
WORKER, SPEED = "trainer.diagnosis.exactness", "trainer.diagnosis.speed"
TABLE = "{:8} {:>9} {:>15} {:>13}  {}"


@dataclass(frozen=True)
class Case:
    """An engine to examine."""

    engine: str
    processes: int
    problem: str = ""  # the reason that it cannot run here


def run_doctor(args: argparse.Namespace) -> int:
    check_packages()
    if args.measure:
        return measure(args)
    if args.output:
        raise BadInput("doctor: --output is about --measure")
    if args.config is None:
        if args.overrides or args.nnodes != 1 or args.node_rank is not None or args.master is not None:
            raise BadInput("doctor: --nnodes, --node-rank, --master and overrides are about a run; give --config")
        return (exactness if args.exactness else doctor)(args.engine, args.processes)
    if args.exactness:
        raise BadInput("doctor: --exactness has a case of its own; leave out --config")
    config, machine = load_run_file(args.config, args.overrides), this_machine()
    requested = args.engine or "auto"
    engine, processes = choose(requested, args.processes, machine, config.train.device, args.nnodes)
    check_shell(engine in ONE_PROCESS, args.nnodes > 1)
    nodes = find_nodes(args.nnodes, args.node_rank, args.master)
    device = device_of(engine, machine, config.train.device)
    arguments = (args.config, args.overrides, engine, processes, machine, device, False, free_port())
    return examine(config, machine, build(*arguments, module="trainer.diagnosis.ranks", nodes=nodes))


def measure(args: argparse.Namespace) -> int:
    """Measures what ranks reach, on this machine or with the other nodes; returns the exit code."""
    if args.config or args.exactness or args.overrides:
        raise BadInput(
            "doctor: --measure needs no run and trains nothing; leave out --config, --exactness and overrides"
        )
    output = Path(args.output) if args.output else None
    if output and (output.is_dir() or not existing_parent(output).is_dir()):
        raise BadInput(f"--output: {output} is not a file that can be written")
    machine = this_machine()
    several = args.nnodes > 1 or (args.processes or 1) > 1
    engine, processes = choose(
        args.engine or ("ddp" if several else "auto"), args.processes, machine, "auto", args.nnodes
    )
    check_shell(engine in ONE_PROCESS, args.nnodes > 1)
    nodes = find_nodes(args.nnodes, args.node_rank, args.master)
    with TemporaryDirectory(prefix="embedfleet-doctor-") as name:
        run_file, device = Path(name, "run.json"), device_of(engine, machine, "auto")
        write_json(run_file, {"output_dir": name, "model": {"path": "none"}, "data": {"train": "none"}})
        arguments = (str(run_file), [], engine, processes, machine, device, False, free_port(), SPEED, nodes)
        code, said = execute(build(*arguments), findings_on_stdout=True)
        if code:
            say(_tail(said))
        elif output and not (nodes and nodes.rank):
            output.parent.mkdir(parents=True, exist_ok=True)
            write_json(output, json.loads(Path(name, "speed.json").read_text()))
            say(f"written to {output}: python -m launch plan --machine {output} …")
    return code


def doctor(engine: str | None, processes: int | None) -> int:
    """Prints findings and the engines that can run; returns 1 after a FAIL. BadInput: the named one cannot run here."""
    machine = this_machine()
    cases = cases_of(engine, processes, machine)
    code = _report(machine, None, "")
    for case in cases:
        result(f"{case.engine:8}  {'not available: ' + case.problem if case.problem else 'can run'}")
    return code


def exactness(engine: str | None, processes: int | None) -> int:
    """Trains a tiny case on each engine and prints its errors; returns the exit code."""
    machine = this_machine()
    cases = cases_of(engine, processes, machine)
    _say_versions()
    with TemporaryDirectory(prefix="embedfleet-doctor-") as name:
        folder = Path(name)
        code, output = execute(Command([sys.executable, "-m", WORKER, "--make", str(folder)]))
        if code:
            raise Failed(f"the case to compare could not be made:\n{_tail(output)}")
        facts = json.loads((folder / "facts.json").read_text())
        result(f"device    {facts['device']}, {machine.cores} cores\nbackends  {', '.join(facts['backends'])}\n")
        result(TABLE.format("engine", "processes", "gradient error", "update error", "verdict"))
        passed = [_row(case, machine, folder) for case in cases]
    return 0 if all(passed) else 1


def examine(config: RunConfig, machine: Machine, command: Command) -> int:
    """Prints this machine's findings for a run, then starts its ranks, which check what takes all of them.

    command: starts trainer.diagnosis.ranks on the ranks of this machine. Returns the exit code.
    """
    machine_code = _report(machine, Path(config.output_dir), config.model.path)
    code, output = execute(command, findings_on_stdout=True)
    if code:
        say(_tail(output))
    return code or machine_code


def _say_versions() -> None:
    result("versions  " + ", ".join(f"{name} {version}" for name, version in versions().items()))


def _report(machine: Machine, run_dir: Path | None, model: str) -> int:
    """Prints versions and this machine's findings; returns the exit code, 1 after a FAIL."""
    _say_versions()
    findings = machine_findings(machine, run_dir, model, os.environ)
    for finding in findings:
        result(shown(finding))
    return 1 if any(finding.level == "FAIL" for finding in findings) else 0


def cases_of(engine: str | None, processes: int | None, machine: Machine) -> list[Case]:
    """Lists the engines to examine: the named one, or all that this machine has a device for."""
    if engine:
        return [_case(engine, processes, machine)]
    several = processes or (min(2, machine.gpus) if machine.gpus else 2)
    cases = [_case("auto", 1, machine)]
    for name in ("ddp", *ZERO):
        if name in OFFLOADED and not machine.gpus:
            continue  # without a GPU everything is in the host's memory already
        try:
            cases.append(_case(name, several, machine))
        except BadInput as error:
            cases.append(Case(name, several, "; ".join(error.problems)))
    return cases


def _case(requested: str, processes: int | None, machine: Machine) -> Case:
    engine, processes = choose(requested, processes, machine, "auto")
    if engine in ZERO:
        check_deepspeed(device_of(engine, machine, "auto"))
    return Case(engine, processes)


def _row(case: Case, machine: Machine, folder: Path) -> bool:
    """Prints a case's line of the table; returns True unless it failed."""
    if case.problem:
        result(TABLE.format(case.engine, case.processes, "-", "-", f"not available: {case.problem}"))
        return True
    out = folder / case.engine
    device = device_of(case.engine, machine, "auto")
    arguments = [str(folder / "run.json"), [f"output_dir={out}"], case.engine, case.processes, machine, device]
    code, output = execute(build(*arguments, resume=False, port=free_port(), module=WORKER))
    if code:
        say(_tail(output))
        result(TABLE.format(case.engine, case.processes, "-", "-", "FAIL: it did not run, see its output above"))
        return False
    errors = json.loads((out / "errors.json").read_text())
    exact = all(error < LIMIT for error in errors.values())  # nan is not
    shown = [f"{errors[name]:.1e}" for name in ("gradient", "update")]
    result(TABLE.format(case.engine, case.processes, *shown, "pass" if exact else f"FAIL: above {LIMIT:.0e}"))
    return exact


def execute(command: Command, findings_on_stdout: bool = False) -> tuple[int, str]:
    """Runs a command, for at most TIMEOUT seconds; returns exit code and output.

    findings_on_stdout: its stdout goes to ours, and only stderr is returned.
    """
    stdout, stderr = (None, subprocess.PIPE) if findings_on_stdout else (subprocess.PIPE, subprocess.STDOUT)
    environ = os.environ | command.environ
    started = subprocess.Popen(command.argv, env=environ, text=True, stdout=stdout, stderr=stderr)
    try:
        output = started.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        started.terminate()  # not killed: a launcher then ends its ranks
        output = started.communicate()
        return 1, f"{output[findings_on_stdout]}\nno end after {TIMEOUT} seconds"
    return started.returncode, output[findings_on_stdout]


def _tail(output: str) -> str:
    return "\n".join(output.splitlines()[-SHOWN_LINES:])
