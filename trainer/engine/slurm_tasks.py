"""Tasks of a plain srun as ranks, by the variables that SLURM gives each of them. Never imports torch."""

import os
import re
from collections.abc import MutableMapping

from data_prep.common.errors import BadInput
from trainer.distributed.launcher_claims import TASKS, is_whole

NEEDED = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")
FIRST_PORT, PORTS = 20_000, 20_000


def adopt_tasks(environ: MutableMapping[str, str] = os.environ) -> None:
    """Sets the variables of a rank for a task of srun that has none; does nothing elsewhere, or for a single task.
    Raises BadInput where SLURM's variables are incomplete, and under mpirun, which names no meeting point."""
    if "WORLD_SIZE" in environ or "RANK" in environ:
        return
    started = {by: environ[name] for by, name in TASKS.items() if environ.get(name, "1") != "1"}
    if not started:
        return
    missing = [name for name in NEEDED if not environ.get(name)]
    if "srun" not in started or missing:
        by, count = next(iter(started.items()))
        lacks = f", and {' and '.join(missing)} are not set" if "srun" in started else ""
        raise BadInput(
            f"{by} started {count} processes that do not know each other{lacks}: each would do all of the work; start "
            "them by torchrun, by srun, or by python -m launch run --module"
        )
    numbers = (environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    job, step = (int(number) if is_whole(number) else 0 for number in numbers)
    here = tasks_per_node(environ["SLURM_STEP_TASKS_PER_NODE"])[int(environ["SLURM_NODEID"])]
    environ["RANK"], environ["WORLD_SIZE"] = environ["SLURM_PROCID"], started["srun"]
    environ["LOCAL_RANK"], environ["LOCAL_WORLD_SIZE"] = environ["SLURM_LOCALID"], str(here)
    environ["MASTER_ADDR"] = first_host(environ["SLURM_STEP_NODELIST"])
    environ["MASTER_PORT"] = str(FIRST_PORT + (31 * job + step) % PORTS)


def first_host(nodes: str) -> str:
    """Returns the first host of SLURM's list of nodes: node[01-04,07],login -> node01."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes).group()  # up to a comma outside of brackets
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def tasks_per_node(counts: str) -> list[int]:
    """Returns the number of tasks of each node: 2(x3),1 -> 2, 2, 2, 1."""
    parts = (re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part).groups() for part in counts.split(","))
    return [int(count) for count, times in parts for _ in range(int(times or 1))]
