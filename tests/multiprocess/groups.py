"""Process groups for tests: ranks forked from a server that has imported everything, so that start-up is paid once."""

import json
from pathlib import Path

from tests import forked
from tests.launching import ROOT


def run_group(setting: Path, engine: str, world: int, cells: list[dict], out: Path, limit: float = 300) -> list[dict]:
    """Runs the cells on `world` ranks and returns what rank 0 wrote. AssertionError where a rank fails or hangs."""
    arguments = json.dumps([str(setting), engine, world, cells, str(out)])
    argv = ["tests.multiprocess.worker:main", arguments]
    # one rank has no launcher
    group = forked.ranks(world, argv, ROOT, merged=True) if world > 1 else [forked.start(argv, ROOT, merged=True)]
    code = forked.wait_for_all(group, limit, grace=0.0)
    logs = "\n".join(f"rank {rank}: exit code {one.returncode}\n{one.stdout[-3000:]}" for rank, one in enumerate(group))
    assert code == 0, f"{engine}, {world} rank(s)\n{logs}"
    return [json.loads(line) for line in out.read_text().splitlines()]
