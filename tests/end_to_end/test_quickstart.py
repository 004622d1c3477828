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
    variables = {"OUT": str(out), "LIMIT": "600", "PATH": path, "OMP_NUM_THREADS": "1"}
    variables |= {"EMBEDFLEET_ENV": "active", "VIRTUAL_ENV": sys.prefix}
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
    assert "Next, on your own data" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Verdict: ")
    assert str(out / "run-ddp" / "report.html") in done.stderr
    assert "nDCG@10" in (out / "run-ddp" / "report.html").read_text()
    assert json.loads((out / "run-ddp" / "run.json").read_text())["topology"]["processes"] == 2


def test_nothing_is_evaluated_twice(finished):
    out, done = finished
    logged = (out / "run-ddp" / "logs.jsonl").read_text().splitlines()
    measured = [event for line in logged if (event := json.loads(line))["event"] == "evaluation"]
    assert len({event["step"] for event in measured}) == len(measured) > 1
    assert "embedding shards with" not in done.stderr, "the report takes what the run has measured"


def test_three_queries_are_shown_before_and_after(finished):
    _, done = finished
    shown = [line.strip() for line in done.stdout.splitlines() if line.strip().startswith(("gained: ", "lost: "))]
    assert len(shown) == 3 and done.stdout.count("before: nDCG@10") == 3 and "✓ relevant" in done.stdout


def test_time_left_is_shown_throughout(finished):
    _, done = finished
    headings = [line for line in done.stderr.splitlines() if line.startswith("== ")]
    assert len(headings) == 5 and all(" s left)" in line for line in headings[1:])


STUB = """#!/bin/sh
echo "$0 $*" >>"$LOG"
case "$2" in *prefix*) dirname "$0" ;; esac
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi
"""


@pytest.mark.parametrize("asked", ["", "active"])
def test_an_active_environment_is_used_only_when_asked_and_the_first_line_says_the_size(tmp_path, asked):
    root, active, log = tmp_path / "root", tmp_path / "active", tmp_path / "log"
    for folder, names in ((root, ["setup.cfg", "constraints.txt"]), (active, ["python", "python3.11"])):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(STUB)
            (folder / name).chmod(0o755)
    env = {"PATH": f"{active}:{os.environ['PATH']}", "LOG": str(log), "VIRTUAL_ENV": str(active)}
    script = f'source "{ROOT}/launch/environment.sh"; use_environment "{root}" quickstart; echo "$PYTHON"'
    env |= {"EMBEDFLEET_ENV": asked}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, called = done.stderr.splitlines()[0], log.read_text()
    assert "Installing embedfleet[quickstart] into" in first and "GB to download" in first
    if asked:
        assert done.stdout.strip() == str(active / "python") and not (root / ".venv").exists()
    else:
        assert done.stdout.strip() == str(root / ".venv" / "bin" / "python")
        assert f"{active}/python " not in called and f"{root}/.venv/bin/python -m pip install" in called


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
    ("variables", "words"),
    [
        ({"ENGINE": "fsdp"}, "none of"),
        ({"ENGINE": "zero2", "CXX": "no-c++"}, "C++"),
        ({"EMBEDFLEET_ENV": "conda"}, "the only value is active"),
        ({"VIRTUAL_ENV": "", "CONDA_PREFIX": ""}, "no environment is active"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(tmp_path, variables, words):
    done = quickstart(tmp_path / "out", **variables)
    assert done.returncode == 2
    assert words in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused_and_stays_as_it_is(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("mine")
    done = quickstart(tmp_path)
    assert done.returncode == 2 and f"OUT={tmp_path} is in use" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]
    assert (tmp_path / "pairs.jsonl").read_text() == "mine"
