"""Checks of one machine, before any rank is started. Never imports torch."""

import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path

import psutil

from data_prep.common.errors import BadInput
from launch.command import Machine
from launch.machine import capability
from trainer.diagnosis.findings import Finding, disk
from trainer.distributed.deepspeed_json import check_deepspeed
from trainer.distributed.launcher_claims import OF_A_RANK, accelerate_default, forces_cpu, of_torchrun, read_launch_yaml
from trainer.distributed.precision import INSTRUCTIONS, slow_precision


def machine_findings(machine: Machine, run_dir: Path | None, model: str, environ: Mapping[str, str]) -> list[Finding]:
    """Checks this machine and this shell. run_dir, model: of the run file, if there is one."""
    findings = [_devices(machine), _precision(machine), _memory(), disk(run_dir or Path.cwd(), model)]
    findings += [_compiler(machine), _name()]
    return [*findings, *environment_findings(environ), *_accelerate_default(environ), *_left_secrets()]


def _devices(machine: Machine) -> Finding:
    gpus = f"{machine.gpus} CUDA GPU(s)" if machine.gpus else "no CUDA GPU"
    listed = shutil.which("nvidia-smi") is not None
    if listed and not machine.gpus:
        mend = "unset CUDA_VISIBLE_DEVICES, or look at nvidia-smi -L"
        return Finding("warn", "devices", f"{machine.cores} cores; nvidia-smi is here, but no GPU is usable", mend)
    return Finding("ok", "devices", f"{gpus}, {'an Apple GPU, ' if machine.mps else ''}{machine.cores} cores")


def _precision(machine: Machine) -> Finding:
    """Names the precisions that this machine has no hardware for. Whether a run asks for one, its ranks report."""
    device = "cuda" if machine.gpus else "mps" if machine.mps else "cpu"
    units = capability(machine)
    slow = [name for name in INSTRUCTIONS if slow_precision(name, device, units)]
    text = f"no hardware for {' and '.join(slow)}: fp32 is faster here" if slow else "fp32, bf16 and fp16"
    return Finding("ok", "precision", f"{text} ({device})")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    return Finding("ok", "memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free")


def _compiler(machine: Machine) -> Finding:
    try:
        check_deepspeed("cuda" if machine.gpus else "cpu")
    except BadInput as error:
        return Finding("warn", "ZeRO", "zero1, zero2 and zero3 cannot run here", "; ".join(error.problems))
    needed = "" if machine.gpus else f", compiler {shutil.which(os.environ.get('CXX', 'g++'))}"
    return Finding("ok", "ZeRO", f"DeepSpeed can run{needed}")


def _name() -> Finding:
    name = socket.gethostname()
    try:
        return Finding("ok", "host name", f"{name} is {socket.gethostbyname(name)}")
    except OSError:
        mend = "enter it in /etc/hosts, or set GLOO_SOCKET_IFNAME to the network card (`launch run` does)"
        return Finding("warn", "host name", f"{name} does not resolve here, and gloo would fail on several nodes", mend)


def environment_findings(environ: Mapping[str, str]) -> list[Finding]:
    """Checks for variables of a shell that silently change runs."""
    findings = []
    if forces_cpu(environ):
        text = "ACCELERATE_USE_CPU is set: with it accelerate drops DeepSpeed and runs plain data parallelism"
        findings.append(Finding("warn", "environment", text, "unset it; `launch run` sets it where it belongs"))
    stale = [name for name in OF_A_RANK if name in environ]
    if stale:
        text = "set in this shell: a plain `python -m trainer` would wait for ranks that nobody starts"
        findings.append(Finding("FAIL", "environment", f"{', '.join(stale)} {text}", f"unset {' '.join(stale)}"))
    for problem in of_torchrun(environ):
        text, _, mend = problem.partition("; ")
        findings.append(Finding("FAIL", "environment", text, mend))
    if environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no":
        text = f"ACCELERATE_MIXED_PRECISION is {environ['ACCELERATE_MIXED_PRECISION']}"
        findings.append(Finding("warn", "environment", text, "unset it: train.precision of the run file says it"))
    return findings


def _accelerate_default(environ: Mapping[str, str]) -> list[Finding]:
    """Checks the user's default accelerate config, which `accelerate launch` reads if no file is named."""
    path = accelerate_default(environ)
    values = read_launch_yaml(path)
    kind = values.get("distributed_type")
    mend = "name one of our configs: accelerate launch --config_file accelerate_configs/ddp.yaml"
    if kind == "MULTI_CPU":
        text = f"{path} says MULTI_CPU, with which accelerate starts one process only"
    elif values.get("use_cpu") and kind in ("MULTI_GPU", "DEEPSPEED"):
        text = f"{path} says {kind} and use_cpu: ranks would each train alone, or without DeepSpeed"
    elif kind == "FSDP":
        text = f"{path} says FSDP, which is none of our engines (on CPUs it leaves ranks unsynchronised)"
    else:
        return []
    return [Finding("warn", "accelerate", text, mend)]


def _left_secrets() -> list[Finding]:
    """Checks for files to which DeepSpeed's ssh launchers append the whole environment."""
    files = [path for path in (Path.cwd() / ".deepspeed_env", Path.home() / ".deepspeed_env") if os.path.isfile(path)]
    mend = "delete it; on several nodes use `launch run`, which names the launcher that writes none"
    text = "holds the environment of an earlier start, keys and tokens with it"
    return [Finding("warn", "secrets", f"{path} {text}", mend) for path in dict.fromkeys(files)]
