"""The first README command, on a part of the collection: exit 0, a better model, safe to run again."""

import json
import os
import subprocess
import sys

import pytest

from tests.forked import path_for_a_shell
from tests.launching import ROOT, environment


def quickstart(out, **extra: str) -> subprocess.CompletedProcess:
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    variables = {"OUT": str(out), "LIMIT": "600", "VIRTUAL_ENV": sys.prefix, "PATH": path, "OMP_NUM_THREADS": "1"}
    env = environment(**(variables | extra))
    command = ["bash", str(ROOT / "launch" / "quickstart.sh")]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Its commands are forked: they start for real when it is run again."""
    out = tmp_path_factory.mktemp("quickstart") / "out"
    done = quickstart(out, ENGINE="ddp", PATH=path_for_a_shell(out.with_name("bin")))
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return out, done


def test_the_main_job_ends_with_a_better_model_a_verdict_and_a_page(finished):
    out, done = finished
    verdict = json.loads((out / "run-ddp" / "verdict.json").read_text())
    assert verdict["best"]["difference"] > 0 and verdict["final"]["model"] == "trained"
    assert "verdict: " in done.stderr and "Next, on your own data" in done.stderr
    assert "nDCG@10" in (out / "run-ddp" / "report.html").read_text()
    assert json.loads((out / "run-ddp" / "run.json").read_text())["topology"]["processes"] == 2


def test_held_out_queries_do_not_name_the_documented_object(finished):
    out, _ = finished
    hidden = 0
    for line in (out / "pairs.jsonl").read_text().splitlines():
        pair = json.loads(line)
        name = pair["metadata"]["name"]
        if name:
            hidden += 1
            assert name.lower() not in pair["question"].lower().replace("(", " ").split(), pair
    assert hidden > 100


def test_it_is_safe_to_run_again(finished):
    out, _ = finished
    again = quickstart(out, ENGINE="ddp")
    assert again.returncode == 0, (again.stdout + again.stderr)[-4000:]
    assert "this run is finished" in again.stderr


@pytest.mark.parametrize(
    ("variables", "words"), [({"ENGINE": "fsdp"}, "none of"), ({"ENGINE": "zero2", "CXX": "no-c++"}, "C++")]
)
def test_what_cannot_work_is_said_in_one_line(tmp_path, variables, words):
    done = quickstart(tmp_path / "out", **variables)
    assert done.returncode == 2
    assert words in done.stderr
    assert not (tmp_path / "out").exists()
