"""Process groups for tests: ranks forked from a server that has imported everything, so that start-up is paid once."""

import json
import multiprocessing
import os
import time
from pathlib import Path
from unittest.mock import patch

from tests.launching import LAUNCHER_VARIABLES, ROOT, free_port

PRELOAD = [
    "tests.multiprocess.worker",
    "transformers.models.bert.modeling_bert",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # of which every engine wants to know whether it is this one
    "torch.utils.tensorboard",
    "peft",
    "sentence_transformers",
]

CLEAN = {"DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run_group(setting: Path, engine: str, world: int, cells: list[dict], out: Path, limit: float = 300) -> list[dict]:
    """Runs the cells on `world` ranks and returns what rank 0 wrote. AssertionError where a rank fails or hangs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    launcher = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    ranks = []
    for rank in range(world):
        own = {**launcher, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)}
        given = (own if world > 1 else {}, str(out), rank, (str(setting), engine, world, cells, str(out)))
        ranks.append(context.Process(target=_rank, args=given, daemon=True))
    with patch.dict(os.environ, CLEAN):  # the server keeps the environment of the first start
        for process in ranks:
            process.start()
    end = time.monotonic() + limit
    try:
        while any(p.exitcode is None for p in ranks) and not any(p.exitcode for p in ranks) and time.monotonic() < end:
            ranks[0].join(0.05)
            time.sleep(0.02)
        codes = [process.exitcode for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.join()
    logs = "\n".join(log.read_text()[-3000:] for log in sorted(out.parent.glob(f"{out.name}.rank*")))
    assert codes == [0] * world, f"exit codes {codes} (None: still at work) of {engine}, {world} rank(s)\n{logs}"
    return [json.loads(line) for line in out.read_text().splitlines()]


def _rank(environment: dict[str, str], out: str, rank: int, arguments: tuple) -> None:
    """In the child: its launcher's environment, its own log file, then the worker."""
    for name in list(os.environ):
        if name.startswith(LAUNCHER_VARIABLES):
            del os.environ[name]
    os.environ |= {**CLEAN, **environment}
    os.chdir(ROOT)
    log = os.open(f"{out}.rank{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from tests.multiprocess.worker import main

    main(*arguments)
