"""python -m launch plan: seconds, memory, traffic and commands of a run, before anything is spent."""

import argparse
import json
import shlex
from dataclasses import asdict, replace

import psutil

from data_prep.common.console import result
from data_prep.common.errors import BadInput, Failed
from launch.before_start import few_rows, finished_note
from launch.command import MASTER_PORT, TORCHRUN, Command
from launch.machine import this_machine
from launch.plan.after import check_ranks, compare, read_run, render_after
from launch.plan.choice import Choice, Scaled, changes, choose, scaling, shortage, too_many
from launch.plan.estimate import Estimate, Outlook, Ranks, candidates, look
from launch.plan.hardware import GIGA, Hardware, assumed, gpu_named, link_of, of_cpu, of_gpu, of_machine
from launch.plan.memory import read_bytes
from launch.plan.render import render
from trainer.config.imports import check_packages
from trainer.config.sections import RunConfig
from trainer.distributed.deepspeed_json import config_folder
from trainer.distributed.engines import ONE_PROCESS, ZERO
from trainer.frontends.flat_json import load_run_file


def show_plan(args: argparse.Namespace) -> int:
    check_packages()
    if args.after:
        return show_after(args)
    if not args.config:
        raise BadInput("plan: --config is missing (or --after, for a run that was made)")
    config = load_run_file(args.config, args.overrides)
    ranks, hardware = ranks_of(args, config)
    outlook = look(config, ranks, tuple(args.bits))
    estimates = candidates(outlook, hardware, args.throughput)
    choice = choose(estimates, args.engine)
    facts = describe(args, outlook, hardware, estimates, choice)
    result(json.dumps(facts, indent=2) if args.json else render(facts))
    if choice.estimate is None:
        raise Failed("\n".join([choice.reason, *(f"would fit: {change}" for change in facts["would_fit"])]))
    return 0


def show_after(args: argparse.Namespace) -> int:
    """Prints the plan of a run beside what it logged."""
    if args.config or args.overrides or args.engine != "auto" or args.throughput or args.bits:
        raise BadInput(
            "plan: --after reads the run's own run.json; leave out --config, --engine and overrides, and --throughput "
            "and --bits, which change nothing"
        )
    run = read_run(args.after)
    args.gpus_per_node = args.gpus_per_node or max(1, run.processes // max(1, args.nodes))
    ranks, hardware = ranks_of(args, run.config)
    check_ranks(run, ranks)
    found, compared = compare(run, look(run.config, ranks), hardware)
    if args.json:
        facts = [asdict(one) | {"off": one.off} for one in compared]
        result(json.dumps({"run": args.after, "candidate": str(found.candidate), "compared": facts}, indent=2))
    else:
        result("\n".join([*hardware.notes, render_after(args.after, run, found, compared)]))
    return 0


def ranks_of(args: argparse.Namespace, config: RunConfig) -> tuple[Ranks, Hardware]:
    """Returns the ranks and the hardware of the flags; missing flags take this machine's values. Raises BadInput."""
    problems = []
    for flag, value in (("--nodes", args.nodes), ("--gpus-per-node", args.gpus_per_node)):
        if value is not None and value < 1:
            problems.append(f"{flag}: must be at least 1 (given: {value})")
    for flag, value in (("--throughput", args.throughput), ("--latency", args.latency), ("--mfu", args.mfu)):
        if value is not None and not value > 0:
            problems.append(f"{flag}: must be above 0 (given: {value})")
    if args.mfu is not None and args.mfu > 1:
        problems.append(f"--mfu: is a share of the card's rate, at most 1 (given: {args.mfu})")
    if args.gpu and args.machine:
        problems.append("--gpu, --machine: name a card of the table or a measured machine, not both")
    if problems:
        raise BadInput(problems)
    machine, device = this_machine(), config.train.device
    gpus = machine.gpus or args.gpu_memory is not None or args.gpu is not None
    if device == "auto":
        apple = args.gpu and gpu_named(args.gpu).source.startswith("Apple")
        device = "mps" if apple or (machine.mps and not gpus) else "cuda" if gpus else "cpu"
    per_node = args.gpus_per_node or (machine.gpus if device == "cuda" else 0) or 1
    hardware = _hardware(args, device, machine.cores, per_node)
    memory = read_bytes(args.gpu_memory, "--gpu-memory") if args.gpu_memory else hardware.memory
    if memory is None and device == "cuda":
        raise BadInput("--gpu-memory: say how much each GPU has, for example 80GB; or name it, --gpu H100")
    return Ranks(args.nodes, per_node, device, memory or psutil.virtual_memory().available // per_node), hardware


def _hardware(args: argparse.Namespace, device: str, cores: int, per_node: int) -> Hardware:
    if args.gpu and device == "cpu":
        raise BadInput(f"--gpu: {args.gpu} is a card, and train.device of this run is cpu; leave one out")
    if args.mfu and (args.machine or device == "cpu"):
        raise BadInput("--mfu: is a share of a card's stated rate; here rates are measured or a CPU's; leave it out")
    if args.machine:
        found = of_machine(args.machine, device)
    elif args.gpu:
        found = of_gpu(gpu_named(args.gpu), device, per_node, args.mfu)
    elif device == "cpu":
        found = of_cpu(cores, per_node)
    else:
        memory = read_bytes(args.gpu_memory, "--gpu-memory") if args.gpu_memory else int(16 * GIGA)
        name, gpu = ("M1", gpu_named("M1")) if device == "mps" else assumed(memory)
        note = f"seconds: assumed for a {name}, the slowest card of the table with this memory; name yours with --gpu"
        found = replace(of_gpu(gpu, device, per_node, args.mfu), notes=(note,), memory=None)
    within = link_of(args.bandwidth_within, args.latency, "--bandwidth-within", found.within)
    between = link_of(args.bandwidth, args.latency, "--bandwidth", found.between)
    if args.nodes == 1 and args.bandwidth and not args.bandwidth_within:  # the only link there is
        within = between
    return replace(found, within=within, between=between)


def overrides_for(args: argparse.Namespace, outlook: Outlook, chosen: Estimate) -> list[str]:
    """Returns the overrides that give exactly the chosen run: those of the command line, and what was chosen."""
    train, candidate = outlook.config.train, chosen.candidate
    added = []
    if train.micro_batch_tokens == "auto":
        added.append(f"train.micro_batch_tokens={chosen.budget}")
    if train.gradient_checkpointing != candidate.recompute:
        added.append(f"train.gradient_checkpointing={str(candidate.recompute).lower()}")
    if candidate.bits != outlook.config.model.bits:
        added += ["model.finetune=qlora", f"model.quantization_bits={candidate.bits}"]
    keys = {text.partition("=")[0] for text in added}
    return [*(text for text in args.overrides if text.partition("=")[0] not in keys), *added]


def commands_for(config: str, overrides: list[str], ranks: Ranks, engine: str) -> dict[str, str]:
    """Returns the commands that start the run, by launcher, with render.PLACEHOLDERS."""
    run = ["-m", "trainer", "--config", config, "--engine", engine, "--processes", str(ranks.count)]
    run += overrides
    slurm = ["python", "-m", "launch", "slurm", "--config", config, "--engine", engine]
    slurm += ["--nodes", str(ranks.nodes), "--time", "TIME"]
    slurm += ["--gpus-per-node" if ranks.device == "cuda" else "--ranks-per-node", str(ranks.per_node)]
    sbatch = {"sbatch": shlex.join([*slurm, "--submit", *overrides])}
    if engine in ONE_PROCESS:
        return {"python": shlex.join(["python", *run])} | (sbatch if ranks.device != "mps" else {})
    accelerate = ["accelerate", "launch", "--config_file", str(config_folder("accelerate_configs") / f"{engine}.yaml")]
    accelerate += ["--num_processes", str(ranks.count)]
    torchrun = ["torchrun", "--nproc-per-node", str(ranks.per_node)]
    if ranks.nodes > 1:
        accelerate += ["--num_machines", str(ranks.nodes), "--machine_rank", "RANK"]
        accelerate += ["--main_process_ip", "HEAD", "--main_process_port", str(MASTER_PORT)]
        torchrun += ["--nnodes", str(ranks.nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", f"HEAD:{MASTER_PORT}"]
    on_cpu = {"ACCELERATE_USE_CPU": "true"} if ranks.device == "cpu" and engine not in ZERO else {}
    return {
        "accelerate launch": str(Command([*accelerate, *run], TORCHRUN | on_cpu)),
        "torchrun": str(Command([*torchrun, *run], TORCHRUN)),
        **sbatch,
    }


def describe(
    args: argparse.Namespace, outlook: Outlook, hardware: Hardware, estimates: list[Estimate], choice: Choice
) -> dict:
    """Returns everything that the plan says."""
    plan, ranks, chosen, variant = outlook.plan, outlook.ranks, choice.estimate, outlook.variants[0]
    model = next(v for v in outlook.variants if v.bits == chosen.candidate.bits).model if chosen else variant.model
    overrides = overrides_for(args, outlook, chosen) if chosen else []
    table = scaling(outlook, hardware, chosen, args.throughput) if chosen and args.engine == "auto" else []
    short = 0 if chosen else shortage(estimates, ranks.memory)
    return {
        "config": args.config,
        "model": {
            "path": outlook.spec.path,
            "trained": model.trained,
            "parameters": model.trained + model.frozen,
            "base": variant.base,
            "weights": outlook.weights,
        },
        "ranks": asdict(ranks),
        "hardware": asdict(hardware),
        "steps": {
            "rows": plan.rows,
            "global_batch": plan.batch_size,
            "rows_per_rank": plan.batch_size / ranks.count,
            "per_epoch": plan.steps_per_epoch,
            "total": outlook.steps,
            "left_out_per_epoch": plan.left_out_per_epoch,
            "negatives_per_query": outlook.negatives,
            "tokens_of_the_busiest_rank": outlook.tokens,
            "longest_text": outlook.longest,
        },
        "warnings": [
            *few_rows(plan.batch_size, ranks.count),
            *finished_note(outlook.config.output_dir),
            *too_many(table, ranks, chosen),
        ],
        "candidates": [candidate_facts(one, plan.steps_per_epoch) for one in estimates],
        "chosen": chosen.engine if chosen else None,
        "candidate": str(chosen.candidate) if chosen else None,
        "reason": choice.reason,
        "short_by": short,
        "would_fit": list(changes(outlook, hardware, args.engine)) if short else [],
        "overrides": overrides,
        "commands": commands_for(args.config, overrides, ranks, chosen.engine) if chosen else {},
        "scaling": [_scaled_facts(row, table, ranks, plan.batch_size) for row in table],
    }


def candidate_facts(one: Estimate, steps_per_epoch: int) -> dict:
    if one.refused:
        return {"candidate": str(one.candidate), "engine": one.engine, "refused": one.refused}
    return {
        "candidate": str(one.candidate),
        "engine": one.engine,
        "recompute": one.candidate.recompute,
        "bits": one.candidate.bits,
        "refused": "",
        "need": one.need.shown(),
        "fits": one.fits,
        "budget": one.budget,
        "largest": one.largest,
        "calls": one.calls,
        "sent": one.sent,
        "again": one.again,
        "seconds": one.seconds.shown(),
        "epoch_seconds": one.seconds.total * steps_per_epoch,
    }


def _scaled_facts(row: Scaled, table: list[Scaled], asked: Ranks, batch: int) -> dict:
    """Efficiency: seconds times ranks of the fewest ranks that fit, as a share of the row's."""
    first = next((r for r in table if r.estimate), None)
    seconds = row.estimate.seconds.total if row.estimate else None
    ideal = first.estimate.seconds.total * first.ranks.count if first else 0.0
    return {
        "nodes": row.ranks.nodes,
        "ranks": row.ranks.count,
        "candidate": str(row.estimate.candidate) if row.estimate else None,
        "seconds": seconds,
        "efficiency": ideal / row.ranks.count / seconds if seconds else None,
        "grown_batch": batch * row.ranks.count // asked.count,
        "grown_batch_seconds": row.grown_seconds,
    }
