"""python -m launch slurm: renders a readable sbatch script for a run; the script explains its lines.

Rendering is pure; submit.py checks and submits. Never imports torch.
"""

import shlex
from dataclasses import dataclass

from launch.command import NO_DYNAMO, NO_SSH, TORCHRUN, device_environ, trainer_flags
from trainer.distributed.engines import ONE_PROCESS, ZERO
from trainer.distributed.launcher_claims import OF_A_RANK
from trainer.distributed.stop import MARKER as REQUEUE
from trainer.run_dir.layout import MARKER as COMPLETE

# asked of the node's own interpreter: another environment, or a container, has them in another place
_CONFIGS = r"from trainer.distributed.deepspeed_json import config_folder; print(config_folder(\"accelerate_configs\"))"
FIRST_PORT, PORTS = 20000, 20000  # below Linux's ephemeral ones


@dataclass(frozen=True)
class Task:
    """One run of the job, with its own overrides and output folder. Several runs are an array."""

    overrides: tuple[str, ...]
    output_dir: str


@dataclass(frozen=True)
class Job:
    """The content of the script."""

    name: str
    run_file: str
    engine: str
    tasks: tuple[Task, ...]
    overrides: tuple[str, ...] = ()
    nodes: int = 1
    ranks: int = 1
    gpus: int = 0  # of a node; 0: ranks on CPUs
    cpus_per_rank: int = 4
    time: str = "01:00:00"
    signal: int = 120  # seconds before the time limit
    requeue: bool = False
    resume: bool = False  # a finished run is left as it is, and counts as done
    partition: str = ""
    container: str = ""  # image for pyxis, or .sif file for apptainer
    sbatch: tuple[str, ...] = ()  # further lines for sbatch
    launcher: str = "torchrun"
    python: str = "python"
    rendered_by: str = ""  # command, named in the script

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"


def render(job: Job) -> str:
    """Returns the script. It does not depend on the environment in which it is rendered."""
    parts = [_directives(job), _variables(job), _environment(job), _run(job), _WAIT, _end(job)]
    return "\n\n".join(parts) + "\n"


def _directives(job: Job) -> str:
    array = len(job.tasks) > 1
    lines = [
        "#!/usr/bin/env bash",
        f"# Rendered by: {job.rendered_by}",
        f"#SBATCH --job-name={job.name}",
        *([f"#SBATCH --array=0-{len(job.tasks) - 1}"] if array else []),
        f"#SBATCH --nodes={job.nodes}",
        "# one launcher on each node, which starts the ranks of the node",
        "#SBATCH --ntasks-per-node=1",
        f"#SBATCH --cpus-per-task={job.cpus_per_rank * job.ranks}",
        *([f"#SBATCH --gpus-per-node={job.gpus}"] if job.gpus else []),
        *([f"#SBATCH --partition={job.partition}"] if job.partition else []),
        f"#SBATCH --time={job.time}",
        "# SIGUSR1 to this script, so many seconds before the time limit",
        f"#SBATCH --signal=B:USR1@{job.signal}",
        "# whether the job starts again after a node failed",
        "#SBATCH --requeue" if job.requeue else "#SBATCH --no-requeue",
        "# a job that starts again goes on in the same log",
        "#SBATCH --open-mode=append",
        f"#SBATCH --output=%x-{'%A_%a' if array else '%j'}.out",
        *[f"#SBATCH {line}" for line in job.sbatch],
    ]
    return "\n".join(lines)


def _variables(job: Job) -> str:
    lines = ["set -uo pipefail", f"python={shlex.quote(job.python)}"]
    if len(job.tasks) > 1:
        lines.append('case "$SLURM_ARRAY_TASK_ID" in')
        for number, task in enumerate(job.tasks):
            lines.append(f"  {number})")
            lines.append(f"    run_dir={shlex.quote(task.output_dir)}")
            lines.append(f"    sweep=({shlex.join(task.overrides)})")
            lines.append("    ;;")
        lines += ["esac"]
    else:
        lines.append(f"run_dir={shlex.quote(job.tasks[0].output_dir)}")
    lines += _of_a_finished_run(job)
    lines.append("# beside the run folder, which the run makes itself: node-N.out, and a folder with a file per rank")
    lines.append('logs="${run_dir%/}-logs/$SLURM_JOB_ID"')
    lines.append('mkdir -p "$logs"')
    if job.nodes > 1:
        lines += [
            "# rank 0 is on the first node; its port is the job's own, as jobs may share a node",
            'head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            f"port=$(({FIRST_PORT} + SLURM_JOB_ID % {PORTS}))",
        ]
    return "\n".join(lines)


def _of_a_finished_run(job: Job) -> list[str]:
    """Returns the lines that keep the script from reporting success for a run that somebody else finished."""
    start = f'if [ -f "$run_dir/final/{COMPLETE}" ]; then'
    if job.resume:
        return ["# --resume: a finished run is left as it is", start, "  exit 0", "fi"]
    return [
        "# a finished run would be resumed and train nothing; only a requeued job may have finished it itself",
        start,
        '  if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then exit 0; fi',
        '  echo "$run_dir holds a finished run: name another output_dir, or render with --resume" >&2',
        "  exit 1",
        "fi",
    ]


_WHY = {
    "OMP_NUM_THREADS": "# ranks share the cores of a node; left alone, each would take one thread",
    "ACCELERATE_USE_CPU": "# without it accelerate's ranks on a CPU each train alone",
    "DS_ACCELERATOR": "# or DeepSpeed would look for a GPU",
}


def _environment(job: Job) -> str:
    lines = []
    if job.engine in ONE_PROCESS:
        names = " ".join(OF_A_RANK)
        lines += ["# left over in the shell that submits, these would make it wait for other ranks", f"unset {names}"]
    else:
        lines += [
            "# torchrun (in accelerate too) reads its flags from PET_*: it hands SIGUSR1 on instead of dying of it,",
            "# and leaves the ranks the time to write a checkpoint",
            *(f"export {name}={value}" for name, value in TORCHRUN.items()),
            "# what a rank says goes to the node's log, with the rank before it, and to a file of its own",
            "export PET_TEE=3",
            "# shellcheck disable=SC2016  # torchrun fills it in",
            "export TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE='[rank ${rank}] '",
        ]
    for name, value in device_environ(job.engine, job.device, job.cpus_per_rank).items():
        lines += [_WHY[name], f"export {name}={shlex.quote(value)}"]
    lines.append("export PYTHONUNBUFFERED=1")
    return "\n".join(lines)


def _run(job: Job) -> str:
    total = job.nodes * job.ranks
    several = len(job.tasks) > 1
    overrides = [*job.overrides, *(() if several else job.tasks[0].overrides)]
    flags = trainer_flags(job.run_file, overrides, job.engine, total, job.device, resume=True)
    sweep = ' "${sweep[@]}"' if several else ""
    lines = [
        "# --resume: from the newest whole checkpoint where there is one, so that the same script starts and goes on",
        f'trainer=({shlex.join(flags)} output_dir="$run_dir"{sweep})',
    ]
    on_node, launcher = _launcher(job)
    lines += [f"launcher=({launcher})"] if launcher else []
    lines.append('srun_flags=(--kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --open-mode=append)')
    lines.append('srun_flags+=(--output="$logs/node-%n.out")')
    inside = ""
    if job.container.endswith(".sif"):
        inside = f'apptainer exec {"--nv " if job.gpus else ""}--bind "$PWD" {shlex.quote(job.container)} '
    elif job.container:
        lines.append(
            f"srun_flags+=(--container-image={shlex.quote(job.container)} "
            '--container-mounts="$PWD:$PWD" --container-workdir="$PWD")'
        )
    command = '"${launcher[@]}" "${trainer[@]}"' if launcher else '"${trainer[@]}"'
    lines += [
        "# SLURM_NODEID is each node's own: bash expands it there, not here",
        "# shellcheck disable=SC2016",
        f"on_node='{on_node}'",
        f'srun "${{srun_flags[@]}}" {inside}bash -c "$on_node" "$python" "$logs" {command} &',
        "srun_pid=$!",
    ]
    return "\n".join(lines)


def _launcher(job: Job) -> tuple[str, str]:
    """Returns the shell line of a node, which takes flags as arguments, and the launcher's flags."""
    start = 'logs=$1; shift; export PET_LOG_DIR="$logs/node-$SLURM_NODEID"; mkdir -p "$PET_LOG_DIR"; '
    if job.engine in ONE_PROCESS:
        return 'shift; exec "$0" "$@"', ""
    if job.launcher == "torchrun":
        meeting = f"--nnodes {job.nodes} --nproc-per-node {job.ranks}"
        if job.nodes == 1:
            return f'{start}exec "$0" -m torch.distributed.run "$@"', f"--standalone {meeting}"
        module = 'exec "$0" -m torch.distributed.run --node-rank "$SLURM_NODEID" "$@"'
        return start + module, f'{meeting} --master-addr "$head_node" --master-port "$port"'
    start += f'configs=$("$0" -c "{_CONFIGS}"); set -- --config_file "$configs/{job.engine}.yaml" '
    start += '--tee 3 --log_dir "$PET_LOG_DIR" "$@"; '  # accelerate has these two itself, and sets them to nothing
    flags = f"--num_processes {job.nodes * job.ranks}"
    flags += f" {shlex.join(NO_DYNAMO)}" if job.engine == "ddp" else ""
    if job.nodes == 1:
        return f'{start}exec "$0" -m accelerate.commands.launch "$@"', f"{flags} --main_process_port 0"
    flags += f' --num_machines {job.nodes} --main_process_ip "$head_node" --main_process_port "$port"'
    flags += f" {shlex.join(NO_SSH)}" if job.engine in ZERO else ""
    return f'{start}exec "$0" -m accelerate.commands.launch --machine_rank "$SLURM_NODEID" "$@"', flags


_WAIT = """# srun hands the signal on to every process of the job: the ranks finish their step and write a checkpoint
stopping=
trap 'stopping=yes; kill -USR1 "$srun_pid"' USR1
wait "$srun_pid"
code=$?
# a signal ends `wait` before srun has ended
while kill -0 "$srun_pid" 2>/dev/null; do
  wait "$srun_pid"
  code=$?
done"""


def _end(job: Job) -> str:
    lines = [
        "# srun's exit code can be 0 after a node was lost: only the finished model says that the run is finished",
        f'if [ -f "$run_dir/final/{COMPLETE}" ]; then',
        "  exit 0",
        "fi",
    ]
    if job.requeue:
        lines += [
            f'if [ -n "$stopping" ] && [ -f "$run_dir/{REQUEUE}" ]; then',
            '  echo "stopped before the time limit, with a checkpoint: requeued"',
            '  scontrol requeue "$SLURM_JOB_ID"',
            "  exit 0",
            "fi",
        ]
    lines += ['echo "the run did not finish${stopping:+ in its time} (srun: exit code $code); see $logs" >&2', "exit 1"]
    return "\n".join(lines)
