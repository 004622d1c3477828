"""The flags of `python -m launch`. Imports nothing slow, so that --help answers at once."""

from trainer.config.run_parser import RunParser

# commands that embed on several ranks
MODULES = ("trainer.adapt_queries", "trainer.evaluate", "trainer.mine", "trainer.reindex", "trainer.search")
LAUNCHERS = ("torchrun", "accelerate")


def parser() -> RunParser:
    """Returns the parser; the namespace has the name of the command in `command`."""
    summary = "Plans, checks and starts runs on one machine, on several nodes and under SLURM."
    arguments = RunParser("python -m launch", summary, "python -m launch run --config run.yaml")
    commands = arguments.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
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
        summary="Checks run file, model, data and output folder, then prints and runs the exact command.",
        examples="python -m launch run --config run.yaml --engine zero2 --processes 2 optim.lr=1e-4",
    )
    _add_run_file(run, required=False)
    text = "start this command on the ranks in place of a run; its own flags follow -- (-- --model M --data SET)"
    run.add_argument("--module", choices=MODULES, metavar="M", help=text)
    text = "auto, cpu, mps, single_gpu, ddp, zero1, zero2, zero3, zero2_offload or zero3_offload "
    text += "(auto: one process, or ddp over all GPUs)"
    run.add_argument("--engine", default="auto", metavar="E", help=text)
    run.add_argument("--processes", type=int, metavar="N", help="ranks on this machine")
    _add_nodes(run)
    run.add_argument("--resume", action="store_true", help="continue from the newest whole checkpoint, or start")
    text = "restart a failed run from its newest whole checkpoint, at most N times (default 0)"
    run.add_argument("--max-restarts", type=int, default=0, metavar="N", help=text)
    run.add_argument("--dry-run", action="store_true", help="check and print the command, start nothing")


def _add_nodes(command) -> None:
    several = command.add_argument_group("several nodes", "run the same command on each, with its own --node-rank")
    several.add_argument("--nnodes", type=int, default=1, metavar="N", help="nodes that train together (default 1)")
    several.add_argument("--node-rank", type=int, metavar="R", help="number of this node, from 0")
    several.add_argument("--master", metavar="HOST[:PORT]", help="address of node 0 for all nodes (default port 29500)")


def _add_slurm(commands) -> None:
    slurm = commands.add_parser(
        "slurm",
        help="render an sbatch script for a run, or submit and follow it",
        summary="Checks a run and renders an sbatch script for it, which --submit submits and follows.",
        examples="python -m launch slurm --config run.yaml --engine zero2 --nodes 2 --time 00:30:00 --output F.sbatch",
    )
    _add_run_file(slurm)
    slurm.add_argument("--output", metavar="FILE", help="write the script here (default: print it)")
    text = "submit the script and follow the job; Ctrl-C stops following, not the job"
    slurm.add_argument("--submit", action="store_true", help=text)
    text = "accept folders of finished runs, and leave those runs as they are (default: refuse them)"
    slurm.add_argument("--resume", action="store_true", help=text)
    text = "job array: one job per value; if repeated, one per combination"
    slurm.add_argument("--sweep", action="append", default=[], metavar="section.key=A,B,…", help=text)
    _add_ranks(slurm.add_argument_group("ranks"))
    _add_job(slurm.add_argument_group("job"))


def _add_ranks(group) -> None:
    text = "auto (default), cpu, single_gpu, ddp, zero1, zero2, zero3 …"
    group.add_argument("--engine", default="auto", metavar="E", help=text)
    group.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes of the job (default 1)")
    text = "GPUs of each node (default 0: ranks on CPUs)"
    group.add_argument("--gpus-per-node", type=int, default=0, metavar="G", help=text)
    text = "ranks of each node (default: one per GPU, or 2)"
    group.add_argument("--ranks-per-node", type=int, metavar="R", help=text)
    group.add_argument("--cpus-per-rank", type=int, default=4, metavar="C", help="cores of each rank (default 4)")
    group.add_argument(
        "--launcher", default="torchrun", choices=LAUNCHERS, help="program that starts the ranks of a node"
    )
    text = "Python on the nodes (default: this one; in a container: python)"
    group.add_argument("--python", metavar="PATH", help=text)
    group.add_argument("--container", default="", metavar="IMAGE", help="image for pyxis, or a .sif file for apptainer")


def _add_job(group) -> None:
    text = "time limit as sbatch reads it: 30, 04:00:00, 1-12:00:00"
    group.add_argument("--time", required=True, metavar="T", help=text)
    group.add_argument("--partition", default="", metavar="P", help="partition of the cluster (default: sbatch's own)")
    text = "requeue the job after its time limit and after a node failed; the run resumes"
    group.add_argument("--requeue", action="store_true", help=text)
    text = "seconds before the time limit at which the run writes a checkpoint and ends (default 120)"
    group.add_argument("--signal", type=int, default=120, metavar="S", help=text)
    text = "one more line for sbatch, such as --sbatch=--account=lab; may be repeated"
    group.add_argument("--sbatch", action="append", default=[], metavar="FLAG", help=text)


def _add_doctor(commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="check this machine, its engines and its network",
        summary="Checks this machine and lists its engines.",
        examples="python -m launch doctor --config run.yaml --engine zero2 --processes 2",
    )
    text = "start the ranks of this run without training; check that they agree and share files, and time their network"
    doctor.add_argument("--config", metavar="RUN.yaml", help=text)
    text = "train a tiny model on each engine and compare gradient and update with plain autograd in one process; exit "
    text += "code 1 where an engine differs"
    doctor.add_argument("--exactness", action="store_true", help=text)
    text = "measure matrix products, memory, links and disk on the ranks, for plan"
    doctor.add_argument("--measure", action="store_true", help=text)
    text = "with --measure: write the figures here, for plan --machine"
    doctor.add_argument("--output", metavar="MACHINE.json", help=text)
    doctor.add_argument("--engine", metavar="E", help="check this engine only")
    doctor.add_argument("--processes", type=int, metavar="N", help="ranks of the engines that have several (default 2)")
    _add_nodes(doctor)
    doctor.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the run file")


def _add_plan(commands) -> None:
    plan = commands.add_parser(
        "plan",
        help="compute memory and seconds of every engine, and the fastest that fits",
        summary="Computes memory, seconds and traffic of every engine, and the fastest that fits; needs no GPU or "
        "weights.",
        examples="python -m launch plan --config run.yaml --nodes 2 --gpus-per-node 8 --gpu H100",
    )
    _add_run_file(plan, required=False)
    plan.add_argument("--after", metavar="RUN", help="run directory whose log is compared with its plan")
    hardware = _add_hardware(plan)
    text = "tokens that one rank embeds per second, as logs.jsonl has them, in place of the card's rate"
    hardware.add_argument("--throughput", type=float, metavar="TOKENS_PER_S", help=text)
    plan.add_argument(
        "--engine", default="auto", metavar="E", help="engine to plan for (default auto: the fastest that fits)"
    )
    text = "for a LoRA run: compute a base quantised to 4 or 8 bits as well, and choose it where it is faster"
    plan.add_argument("--bits", type=int, nargs="+", default=[], choices=(4, 8), metavar="B", help=text)
    plan.add_argument("--json", action="store_true", help="print everything as one JSON object")


def _add_init(commands) -> None:
    init = commands.add_parser(
        "init",
        help="write a run file for a model, data and hardware",
        summary="Writes a commented run file: lengths and batch fit the data, mode and engine fit the hardware.",
        examples="python -m launch init --model MODEL --data shards --gpu H100",
    )
    init.add_argument("--model", required=True, metavar="MODEL", help="folder or hub id")
    init.add_argument("--data", required=True, metavar="SHARDS", help="a shard folder")
    init.add_argument("--output", default="run.yaml", metavar="RUN.yaml", help="new run file (default run.yaml)")
    _add_hardware(init)
    text = "keys that you set yourself, such as model.finetune=lora"
    init.add_argument("overrides", nargs="*", metavar="section.key=value", help=text)
    init.set_defaults(throughput=None)


def _add_hardware(command):
    """Adds the machines that a plan is for, and returns their group."""
    group = command.add_argument_group("hardware", "of the ranks; it need not be this machine")
    group.add_argument("--nodes", type=int, default=1, metavar="N", help="machines (default 1)")
    text = "ranks of each machine (default: the GPUs of this one, or 1)"
    group.add_argument("--gpus-per-node", type=int, metavar="G", help=text)
    text = "card of a rank: H100, H200, B200, A100-80, A100-40, L40S, L4, A10, RTX3090, RTX4090, RTX5090, MI300X, M1 …"
    group.add_argument("--gpu", metavar="NAME", help=text)
    group.add_argument("--gpu-memory", metavar="80GB", help="memory of a rank (default: the card's)")
    text = "file of `doctor --measure --output`, in place of --gpu"
    group.add_argument("--machine", metavar="FILE.json", help=text)
    text = "bytes per second between nodes (default 25GB); with one node: between its ranks"
    group.add_argument("--bandwidth", metavar="BYTES", help=text)
    text = "bytes per second between ranks of a node (default: the card's link)"
    group.add_argument("--bandwidth-within", metavar="BYTES", help=text)
    group.add_argument(
        "--latency", type=float, metavar="S", help="seconds per message (default 5e-6 within, 20e-6 between nodes)"
    )
    text = "share of the card's rate that matrix products reach (default 0.6)"
    group.add_argument("--mfu", type=float, metavar="SHARE", help=text)
    return group
