"""python -m launch plan: memory, cost and commands of a run, before anything is spent."""

import argparse
import json
import shlex
from dataclasses import asdict

import psutil

from data_prep.common.console import result
from data_prep.common.errors import BadInput, Failed
from launch.before_start import few_rows, finished_note, rows_per_rank
from launch.command import MASTER_PORT, TORCHRUN, Command
from launch.machine import this_machine
from launch.plan.estimate import Estimate, Outlook, Ranks, choose_engine, engines_for, estimate, look
from launch.plan.memory import NEED, read_bytes, shown
from launch.plan.traffic import Cost, Link, scaling
from trainer.config.imports import check_packages
from trainer.config.sections import RunConfig
from trainer.distributed.deepspeed_json import config_folder
from trainer.distributed.engines import ONE_PROCESS, ZERO
from trainer.frontends.flat_json import load_run_file

PLACEHOLDERS = {
    "HEAD": "name or address of the first machine",
    "RANK": "0 on the first machine, 1 on the second, …",
    "TIME": "limit of the job, as SLURM takes it: 04:00:00",
}
NODES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)  # of the scaling table


def show_plan(args: argparse.Namespace) -> int:
    check_packages()
    config = load_run_file(args.config, args.overrides)
    link = Link(read_bytes(args.bandwidth, "--bandwidth"), args.latency)
    outlook = look(config, ranks_of(args, config))
    estimates = [estimate(outlook, engine, args.throughput, link) for engine in engines_for(outlook.ranks)]
    chosen, reason = choose_engine(estimates, args.engine)
    commands = commands_for(args, outlook.ranks, chosen.engine) if chosen else {}
    table = scaling_of(outlook, chosen, args.throughput, link) if chosen and args.throughput else []
    facts = describe(outlook, estimates, chosen, reason, commands, table)
    result(json.dumps(facts, indent=2) if args.json else render(facts))
    if chosen is None:
        raise Failed(reason)
    return 0


def ranks_of(args: argparse.Namespace, config: RunConfig) -> Ranks:
    """Returns the ranks of the flags; missing flags take this machine's values. Raises BadInput."""
    problems = []
    for flag, value in (("--nodes", args.nodes), ("--gpus-per-node", args.gpus_per_node)):
        if value is not None and value < 1:
            problems.append(f"{flag}: must be at least 1 (given: {value})")
    for flag, value in (("--throughput", args.throughput), ("--latency", args.latency)):
        if value is not None and not value > 0:
            problems.append(f"{flag}: must be above 0 (given: {value})")
    if problems:
        raise BadInput(problems)
    machine, device = this_machine(), config.train.device
    gpus = machine.gpus or args.gpu_memory is not None
    if device == "auto":
        device = "cuda" if gpus else "mps" if machine.mps else "cpu"
    per_node = args.gpus_per_node or (machine.gpus if device == "cuda" else 0) or 1
    if args.gpu_memory:
        return Ranks(args.nodes, per_node, device, read_bytes(args.gpu_memory, "--gpu-memory"))
    if device == "cuda":
        raise BadInput("--gpu-memory: say how much each GPU has, for example 80GB")
    return Ranks(args.nodes, per_node, device, psutil.virtual_memory().available // per_node)


def commands_for(args: argparse.Namespace, ranks: Ranks, engine: str) -> dict[str, str]:
    """Returns the commands that start the run, by launcher, with PLACEHOLDERS."""
    run = ["-m", "trainer", "--config", args.config, "--engine", engine, "--processes", str(ranks.count)]
    run += args.overrides
    slurm = ["python", "-m", "launch", "slurm", "--config", args.config, "--engine", engine]
    slurm += ["--nodes", str(ranks.nodes), "--time", "TIME"]
    slurm += ["--gpus-per-node" if ranks.device == "cuda" else "--ranks-per-node", str(ranks.per_node)]
    sbatch = {"sbatch": shlex.join([*slurm, "--submit", *args.overrides])}
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


def scaling_of(outlook: Outlook, chosen: Estimate, throughput: float, link: Link) -> list[dict]:
    """Computes efficiency over nodes, from the stated throughput of a rank and the stated link."""
    batch = max(outlook.batches, key=lambda batch: batch.tokens.sum())
    model = outlook.model()
    rows, documents = len(batch.tokens), int(batch.documents.sum())
    size = outlook.footprint.size
    operations = 6 * (model.trained + model.frozen) * throughput  # forward and backward, of one rank in a second
    cost = Cost(
        compute=float(batch.tokens.sum()) * (1 + chosen.again / 3) / throughput,
        pairs_seconds=6 * rows * documents * size / operations,
        sent=4 * (model.trained if not chosen.engine.startswith("zero3") else 1.5 * (model.trained + model.frozen)),
        calls=chosen.calls,
        embeddings=4 * documents * size,
    )
    return scaling(cost, outlook.ranks.per_node, link, outlook.plan.batch_size, list(NODES))


def describe(
    outlook: Outlook, estimates: list[Estimate], chosen: Estimate | None, reason: str, commands, table
) -> dict:
    """Collects the whole plan as plain values."""
    plan, model, ranks = outlook.plan, outlook.model(), outlook.ranks
    return {
        "ranks": asdict(ranks) | {"count": ranks.count},
        "model": {
            "parameters": model.trained + model.frozen,
            "trained": model.trained,
            "embedding": outlook.footprint.size,
        },
        "steps": {
            "rows": plan.rows,
            "global_batch": plan.batch_size,
            "rows_per_rank": plan.batch_size / ranks.count,
            "per_epoch": plan.steps_per_epoch,
            "total": outlook.steps,
            "left_out_per_epoch": plan.left_out_per_epoch,
            "negatives_per_query": outlook.negatives,
            "tokens_of_the_busiest_rank": outlook.tokens,
        },
        "warnings": [*few_rows(plan.batch_size, ranks.count), *finished_note(outlook.config.output_dir)],
        "engines": [asdict(each) | {"need": each.need.shown() if each.need else None} for each in estimates],
        "chosen": chosen.engine if chosen else None,
        "reason": reason,
        "commands": commands,
        "scaling": table,
    }


def render(facts: dict) -> str:
    """Formats the plan for people."""
    ranks, model, steps = facts["ranks"], facts["model"], facts["steps"]
    negatives = sorted(set(steps["negatives_per_query"]))
    span = f"{negatives[0]}" if len(negatives) == 1 else f"{negatives[0]} to {negatives[-1]}"
    lines = [
        f"model: {model['trained'] / 1e6:.1f} M of {model['parameters'] / 1e6:.1f} M parameters trained",
        f"ranks: {ranks['nodes']} x {ranks['per_node']} on {ranks['device']}, {shown(ranks['memory'])} each",
        f"steps: {steps['total']} in all, {steps['per_epoch']} per epoch, global batch {steps['global_batch']} of "
        f"{steps['rows']} rows, {steps['left_out_per_epoch']} left out per pass",
        rows_per_rank(steps["global_batch"], ranks["count"]),
        *facts["warnings"],
        f"negatives per query: {span} in the first batches, before duplicates are masked",
        f"tokens of the busiest rank: {steps['tokens_of_the_busiest_rank']}",
        "",
        *_memory_table(facts["engines"]),
        "",
        *_cost_table(facts["engines"]),
        "",
        f"engine: {facts['chosen'] or 'none'} ({facts['reason']})",
    ]
    lines += [f"{name}:\n  {command}" for name, command in facts["commands"].items()]
    words = " ".join(facts["commands"].values()).split()
    used = {word.removesuffix(f":{MASTER_PORT}") for word in words}
    lines += [f"{word}: {meaning}" for word, meaning in PLACEHOLDERS.items() if word in used]
    return "\n".join([*lines, *_scaling_table(facts["scaling"])])


def _memory_table(engines: list[dict]) -> list[str]:
    names = (*NEED, "total")
    lines = ["bytes of a rank  " + " ".join(f"{name:>11}" for name in names)]
    for one in engines:
        if one["need"]:
            lines.append(f"{one['engine']:16} " + " ".join(f"{shown(one['need'][name]):>11}" for name in names))
    return lines


def _cost_table(engines: list[dict]) -> list[str]:
    table = "{:16} {:>5} {:>15} {:>12} {:>14} {:>10}"
    lines = [table.format("engine", "fits", "largest tokens", "collectives", "sent per step", "epoch")]
    for one in engines:
        if one["refused"]:
            lines.append(f"{one['engine']:16} refused: {one['refused']}")
            continue
        epoch = "-" if one["epoch_seconds"] is None else f"{one['epoch_seconds'] / 60:.1f} min"
        row = ("yes" if one["fits"] else "no", one["largest"] or "-", one["calls"], shown(one["sent"]), epoch)
        lines.append(table.format(one["engine"], *row))
    return lines


def _scaling_table(table: list[dict]) -> list[str]:
    if not table:
        return []
    lines = ["", "simulated:  nodes  ranks  same batch: s/step  efficiency  batch x ranks: s/step  efficiency"]
    for row in table:
        same, share = row["same_batch_seconds"], row["same_batch_efficiency"]
        first = f"{same:18.4f} {share:11.1%}" if same is not None else f"{'-':>18} {'-':>11}"
        lines.append(
            f"{row['nodes']:17} {row['ranks']:6} {first} {row['grown_batch_seconds']:22.4f} "
            f"{row['grown_batch_efficiency']:11.1%}"
        )
    return lines
