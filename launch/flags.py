"""The flags of `python -m launch`. Imports nothing slow, so that --help answers at once."""

import argparse

# commands that embed on several ranks
MODULES = ("trainer.adapt_queries", "trainer.evaluate", "trainer.mine", "trainer.reindex", "trainer.search")
LAUNCHERS = ("torchrun", "accelerate")


def parser() -> argparse.ArgumentParser:
    """Returns the parser; the namespace has the name of the command in `command`."""
    arguments = argparse.ArgumentParser(prog="python -m launch", description="Start training runs.")
    commands = arguments.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_run, _add_slurm, _add_doctor, _add_plan, _add_init):
        add(commands)
    return arguments


def _add_run_file(command, required: bool = True) -> None:
    command.add_argument("--config", required=required, metavar="RUN.yaml", help="run file (.yaml or .json)")
    command.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the run file")


def _add_run(commands) -> None:
    run = commands.add_parser(
        "run",
        help="check a run, print the exact command, run it",
        description="Checks run file, model, data and output folder, then prints and runs the exact command.",
        epilog="example: python -m launch run --config run.yaml --engine zero2 --processes 2 optim.lr=1e-4",
    )
    _add_run_file(run, required=False)
    text = "start this command on the ranks in place of a run, its own flags behind -- (-- --model M --data SET)"
    run.add_argument("--module", choices=MODULES, metavar="M", help=text)
    text = "auto, cpu, mps, single_gpu, ddp, zero1, zero2, zero3, zero2_offload or zero3_offload "
    text += "(auto: one process, or ddp over all GPUs)"
    run.add_argument("--engine", default="auto", metavar="E", help=text)
    run.add_argument("--processes", type=int, metavar="N", help="ranks on this machine")
    _add_nodes(run)
    run.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint, or from the start")
    text = "start a run that failed again from its newest whole checkpoint, at most so often (default 0)"
    run.add_argument("--max-restarts", type=int, default=0, metavar="N", help=text)
    run.add_argument("--dry-run", action="store_true", help="check and print the command, start nothing")


def _add_nodes(command) -> None:
    several = command.add_argument_group("several nodes", "the same command on each of them, but for --node-rank")
    several.add_argument("--nnodes", type=int, default=1, metavar="N", help="nodes that train together (default 1)")
    several.add_argument("--node-rank", type=int, metavar="R", help="which of them this is, from 0")
    several.add_argument("--master", metavar="HOST[:PORT]", help="node 0, as all of them reach it (port 29500)")


def _add_slurm(commands) -> None:
    slurm = commands.add_parser(
        "slurm",
        help="render an sbatch script for a run, or submit and follow it",
        description="Checks a run and renders an sbatch script. With --submit it is submitted and followed; Ctrl-C "
        "ends the following, not the job.",
        epilog="example: python -m launch slurm --config run.yaml --engine zero2 --nodes 2 --ranks-per-node 2 "
        "--time 00:30:00 --requeue --output run.sbatch",
    )
    _add_run_file(slurm)
    text = "auto, cpu, single_gpu, ddp, zero1, zero2, zero3 …"
    slurm.add_argument("--engine", default="auto", metavar="E", help=text)
    slurm.add_argument("--nodes", type=int, default=1, metavar="N")
    slurm.add_argument("--gpus-per-node", type=int, default=0, metavar="G", help="0: ranks on CPUs (default)")
    slurm.add_argument("--ranks-per-node", type=int, metavar="R", help="default: one per GPU, or 2")
    slurm.add_argument("--cpus-per-rank", type=int, default=4, metavar="C", help="default 4")
    text = "the limit as sbatch takes it: 30, 04:00:00, 1-12:00:00"
    slurm.add_argument("--time", required=True, metavar="T", help=text)
    slurm.add_argument("--partition", default="", metavar="P")
    text = "go on by itself after the time limit and after a node failed"
    slurm.add_argument("--requeue", action="store_true", help=text)
    text = "take folders of finished runs too, and leave those runs as they are (without it they are refused)"
    slurm.add_argument("--resume", action="store_true", help=text)
    text = "seconds before the limit at which the run writes a checkpoint and ends (default 120)"
    slurm.add_argument("--signal", type=int, default=120, metavar="S", help=text)
    slurm.add_argument("--container", default="", metavar="IMAGE", help="for pyxis, or a .sif file for apptainer")
    text = "an array: one job for each value, and for each combination where given again"
    slurm.add_argument("--sweep", action="append", default=[], metavar="section.key=A,B,…", help=text)
    slurm.add_argument("--launcher", default="torchrun", choices=LAUNCHERS, help="what starts the ranks of a node")
    text = "Python on the nodes (default: this one; in a container: python)"
    slurm.add_argument("--python", metavar="PATH", help=text)
    text = "a further line for sbatch, e.g. --sbatch=--account=lab; may be given again"
    slurm.add_argument("--sbatch", action="append", default=[], metavar="FLAG", help=text)
    slurm.add_argument("--output", metavar="FILE", help="write the script here instead of showing it")
    slurm.add_argument("--submit", action="store_true", help="submit the script and follow the job")


def _add_doctor(commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="what is wrong here, and whether it trains exactly",
        description="Looks at this machine and lists its engines. With --config the ranks of that run are started as "
        "well (the same on every node), and say what they can only find out together: whether they agree, share files, "
        "and how fast their network is. With --exactness a tiny model is trained on each engine, and its gradient and "
        "update are held against plain autograd in one process. With --measure the ranks measure what plan counts on.",
        epilog="example: python -m launch doctor --config run.yaml --engine zero2 --processes 2",
    )
    doctor.add_argument("--config", metavar="RUN.yaml", help="start the ranks of this run, which train nothing")
    doctor.add_argument("--exactness", action="store_true", help="train and compare; exit code 1 where an engine fails")
    doctor.add_argument("--measure", action="store_true", help="measure products, memory, links and disk on the ranks")
    text = "with --measure: write the figures here, for plan --machine"
    doctor.add_argument("--output", metavar="MACHINE.json", help=text)
    doctor.add_argument("--engine", metavar="E", help="this engine only")
    doctor.add_argument("--processes", type=int, metavar="N", help="ranks of the engines that have several (default 2)")
    _add_nodes(doctor)
    doctor.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the run file")


def _add_plan(commands) -> None:
    plan = commands.add_parser(
        "plan",
        help="the fastest way that fits: memory, seconds, traffic, and the commands",
        description="Reads the run file, the model's config and a few batches, and computes for every engine, with and "
        "without recomputation, what a rank holds and how long a step takes. Loads no weights and needs no GPU.",
        epilog="example: python -m launch plan --config run.yaml --nodes 2 --gpus-per-node 8 --gpu H100",
    )
    _add_run_file(plan, required=False)
    plan.add_argument("--after", metavar="RUN", help="a run directory: hold its plan against what it logged")
    plan.add_argument("--nodes", type=int, default=1, metavar="N", help="machines (default 1)")
    text = "ranks of each machine (default: the GPUs here, or 1)"
    plan.add_argument("--gpus-per-node", type=int, metavar="G", help=text)
    _add_hardware(plan)
    plan.add_argument("--engine", default="auto", metavar="E", help="auto (default) or the one to take")
    text = "for a LoRA run: look at a base quantised to so many bits as well (4, 8), and take it where it is faster"
    plan.add_argument("--bits", type=int, nargs="+", default=[], choices=(4, 8), metavar="B", help=text)
    text = "tokens that one rank embeds per second, as logs.jsonl has them, in place of the card's rate"
    plan.add_argument("--throughput", type=float, metavar="TOKENS_PER_S", help=text)
    plan.add_argument("--json", action="store_true", help="everything as one JSON object")


def _add_init(commands) -> None:
    init = commands.add_parser(
        "init",
        help="write a run file for a model, data and hardware",
        description="Writes a commented run file: lengths and batch from the data, precision, mode, recomputation and "
        "engine from the hardware, as plan chooses them. Nothing is overwritten, and no weights are needed.",
        epilog="example: python -m launch init --model MODEL --data shards --gpu H100",
    )
    init.add_argument("--model", required=True, metavar="MODEL", help="folder or hub id")
    init.add_argument("--data", required=True, metavar="SHARDS", help="a shard folder")
    init.add_argument("--output", default="run.yaml", metavar="RUN.yaml", help="the file to write (default run.yaml)")
    init.add_argument("--nodes", type=int, default=1, metavar="N", help="machines (default 1)")
    init.add_argument(
        "--gpus-per-node", type=int, metavar="G", help="ranks of each machine (default: the GPUs here, or 1)"
    )
    _add_hardware(init)
    text = "keys that are known already, for example model.finetune=lora"
    init.add_argument("overrides", nargs="*", metavar="section.key=value", help=text)
    init.set_defaults(throughput=None)


def _add_hardware(command) -> None:
    text = "ranks' card: H100, H200, B200, A100-80, A100-40, L40S, L4, A10, RTX3090, RTX4090, RTX5090, MI300X, M1 …"
    command.add_argument("--gpu", metavar="NAME", help=text)
    command.add_argument("--gpu-memory", metavar="80GB", help="of a rank; without GPUs: its share of what is free here")
    text = "what `doctor --measure --output` wrote, in place of --gpu"
    command.add_argument("--machine", metavar="FILE.json", help=text)
    text = "per second, of a node to the others (default 25GB); with one node: between its ranks"
    command.add_argument("--bandwidth", metavar="BYTES", help=text)
    text = "per second, of a rank to the others of its node (default: the card's link)"
    command.add_argument("--bandwidth-within", metavar="BYTES", help=text)
    command.add_argument("--latency", type=float, metavar="S", help="of a message (default 5e-6 within, 20e-6 between)")
    text = "share of the card's rate that matrix products reach (default 0.6)"
    command.add_argument("--mfu", type=float, metavar="SHARE", help=text)
