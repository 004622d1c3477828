"""Where a collective cannot fail by itself, a rank still names the one that it waits for, and leaves."""

import json
import subprocess
import sys
from datetime import timedelta

import pytest
import torch.distributed as dist

from tests.launching import ROOT, environment, free_port
from trainer.distributed.watch import GONE, GRACE, Judge, Report

PATIENCE = 20
ALIVE = range(1, 100)  # looks of a rank that lives


def verdicts(calls, reports) -> list[str | None]:
    """Verdicts of rank 0 of three. calls: its own, by look. reports: of ranks 1 and 2, by look."""
    judge = Judge(0, 3, PATIENCE)
    return [judge.verdict(c, dict(enumerate(r, start=1))) for c, r in zip(calls, reports)]


def test_a_rank_that_moves_judges_nobody():
    reports = [(Report(1, 0, 0, "boom"), Report(1, 0, 0)) for _ in ALIVE]
    assert set(verdicts(ALIVE, reports)) == {None}


def test_ranks_that_wait_for_a_long_evaluation_of_another_go_on_until_patience_is_over():
    reports = [(Report(look, 6, 3), Report(look, 7, 3)) for look in ALIVE]
    said = verdicts([7] * len(reports), reports)
    assert said[:PATIENCE] == [None] * PATIENCE
    assert said[PATIENCE] == "waited in vain for rank 1 (after step 3, collective 6)"


def test_a_failed_rank_is_named_with_its_error_after_a_little_grace():
    reports = [(Report(5, 6, 3, "ValueError: boom"), Report(look, 7, 3)) for look in ALIVE]
    said = verdicts([7] * len(reports), reports)
    assert said[:GRACE] == [None] * GRACE
    assert said[GRACE] == "rank 1 has failed: ValueError: boom"


@pytest.mark.parametrize("dead", [Report(4, 7, 3), None])
def test_a_rank_that_is_gone_is_named(dead):
    judge = Judge(0, 3, PATIENCE)
    said = [judge.verdict(7, {2: Report(look, 7, 3)} | ({1: dead} if dead else {})) for look in ALIVE]
    assert said[: GONE - 1] == [None] * (GONE - 1)
    assert "no sign of life" in said[GONE + 1] and "rank 1" in said[GONE + 1] and "rank 2" not in said[GONE + 1]


def test_a_rank_alone_behind_does_not_end_itself():
    reports = [(Report(look, 9, 3), Report(look, 9, 3)) for look in ALIVE]
    assert set(verdicts([7] * len(reports), reports)) == {None}


WAITING = """
import threading
from trainer.distributed import watch
from trainer.distributed.collectives import World
watch.LOOK_SECONDS = 0.05
world = World(0, 2)
world.calls, world.doing = 7, "all-reduce of the gradient"
watch.Watch(world, 0.2)
print("waiting", flush=True)
threading.Event().wait()  # as in a collective: nothing reaches the main thread
"""


def test_a_process_that_hangs_in_a_collective_says_who_is_behind_and_ends():
    port = free_port()
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    reports = dist.PrefixStore("embedfleet/watch", store)
    reports.set("1", json.dumps(Report(1, 5, 2)))
    variables = environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    command = [sys.executable, "-c", WAITING]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "rank 0: " in done.stderr and "rank 1" in done.stderr, done.stderr
    assert "in its collective 7 (all-reduce of the gradient); --resume goes on" in done.stderr
    left = Report(*json.loads(reports.get("0")))
    assert left.failed, "the rank that was behind must hear of it"
