"""python -m launch doctor: engines that train exactly pass, a wrong factor fails, bad flags are one clear error."""

import json
import shutil
import sys

import pytest

from launch import doctor
from launch.__main__ import main
from launch.command import Machine
from launch.plan.hardware import of_machine
from tests import forked
from tests.end_to_end.runs import write_run
from tests.launching import ROOT, free_port, run
from trainer.distributed.compile_lock import compiling_alone
from trainer.distributed.engines import ZERO


def table(output: str) -> dict[str, list[str]]:
    """engine -> the other cells of its line."""
    lines = output.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("engine "))
    return {line.split()[0]: line.split()[1:] for line in lines[start + 1 :]}


def test_one_process_and_ddp_are_exact(monkeypatch, capfd, forked_loads):
    """The two cheap ones of what `doctor --exactness` looks at, in processes of their own."""
    monkeypatch.setattr(doctor, "cases_of", lambda *_: [doctor.Case("cpu", 1), doctor.Case("ddp", 2)])
    assert main(["doctor", "--exactness"]) == 0
    shown = capfd.readouterr().out
    for words in ("versions  python 3.", "torch ", "accelerate ", "device    ", "backends  gloo"):
        assert words in shown
    rows = table(shown)
    assert {engine: (row[0], row[3]) for engine, row in rows.items()} == {"cpu": ("1", "pass"), "ddp": ("2", "pass")}
    assert all(0 < float(error) < 1e-5 for row in rows.values() for error in row[1:3])


PLANTED = """
import sys
from launch import doctor
from launch.__main__ import main
from trainer.diagnosis import exactness
from trainer.engine.torch_engine import TorchEngine

TorchEngine.gradient_factor = 2.0
doctor.execute = lambda command: (exactness.main(command.argv[3:]), "")  # after: python -m trainer.diagnosis.exactness
sys.exit(main(["doctor", "--exactness", "--engine", "cpu"]))
"""


def test_a_wrong_factor_fails(tmp_path):
    script = tmp_path / "planted.py"
    script.write_text(PLANTED)
    done = forked.run(str(script))
    assert done.returncode == 1, done.both
    row = table(done.stdout)["cpu"]
    assert row[3] == "FAIL:"
    assert float(row[1]) == pytest.approx(1.0, rel=1e-3), "twice the gradient"


def test_an_engine_that_does_not_run_fails_with_what_it_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "execute", lambda _: (1, "error: no such thing"))
    case, machine = doctor.Case("ddp", 2), Machine(gpus=0, mps=False, cores=2)
    assert not doctor._row(case, machine, tmp_path)
    shown = capsys.readouterr()
    assert "FAIL: it did not run" in shown.out
    assert "error: no such thing" in shown.err


BAD = {
    "unknown engine": (["--engine", "zero"], "--engine: zero is none of auto, cpu,"),
    "two processes on one device": (["--engine", "cpu", "--processes", "2"], "cpu is one process"),
    "no process": (["--engine", "ddp", "--processes", "0"], "--processes: must be at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_flags_are_one_clear_error(capsys, case):
    flags, words = BAD[case]
    assert main(["doctor", "--exactness", *flags]) == 2
    shown = capsys.readouterr()
    assert words in shown.err and not shown.out


def test_an_engine_without_its_compiler_is_listed_and_an_error_only_by_name(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "this_machine", lambda: Machine(gpus=0, mps=False, cores=2))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "cpu       can run" in shown and "zero3     not available: ZeRO on a CPU compiles" in shown
    assert main(["doctor", "--exactness", "--engine", "zero3"]) == 2
    assert "needs a C++ compiler" in capsys.readouterr().err


def test_ranks_never_share_a_gpu():
    """One GPU: one rank each. Two: two."""
    for gpus in (1, 2):
        cases = doctor.cases_of(None, None, Machine(gpus=gpus, mps=False, cores=8))
        assert [case.processes for case in cases] == [1, *[gpus] * (1 + len(ZERO))]  # ddp and ZeRO
        assert cases[0].engine == "single_gpu"
    crowded = doctor.cases_of(None, 2, Machine(gpus=1, mps=False, cores=8))
    assert "ranks never share a GPU" in crowded[1].problem


@pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed compiles for the CPU on Linux only")
def test_zero_does_not_wait_for_a_compiler_that_was_killed(monkeypatch):
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    with compiling_alone() as folder:  # nobody else is inside while the lock is planted
        left = folder / "deepspeed_shm_comm" / "lock"
        left.parent.mkdir(exist_ok=True)
        left.touch()
    done = run("-m", "launch", "doctor", "--exactness", "--engine", "zero1", "--processes", "1")
    assert done.returncode == 0, done.both[-3000:]
    assert table(done.stdout)["zero1"][3] == "pass" and not left.exists()


def test_the_ranks_of_a_run_say_what_they_find_together(tmp_path, tiny_bert, tiny_shards):
    """Two nodes that are both this machine, of which one was given another seed."""
    run_file = write_run(tmp_path, tiny_bert, tiny_shards)
    argv = ["-m", "launch", "doctor", "--config", str(run_file), "--engine", "ddp", "--processes", "1"]
    argv += ["--nnodes", "2", "--master", f"127.0.0.1:{free_port()}"]
    nodes = [["--node-rank", "0"], ["--node-rank", "1", "train.seed=1"]]
    started = [forked.start([*argv, *node], ROOT) for node in nodes]
    said = [process.communicate(timeout=300) for process in started]
    found = [line for line in said[0][0].splitlines() if line.startswith(("ok ", "FAIL"))]
    assert [process.returncode for process in started] == [1, 1], said
    assert [line for line in found if line.startswith("FAIL")] == [
        line for line in found if "rank(s) 1 have another run file than rank 0" in line
    ]
    for words in (
        "2 seen as planned", "ddp on cpu, backend gloo", "every rank sees what every other wrote", "off rank 0",
        "for an all-reduce of one number", "all-gather",
    ):  # fmt: skip
        assert sum(words in line for line in found) == 1, words
    assert "seen as planned" not in said[1][0], "rank 0 speaks for all"
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["run.json"], "nothing stays behind"


def test_flags_of_a_run_without_one(capsys):
    assert main(["doctor", "--nnodes", "2"]) == 2
    assert "give --config" in capsys.readouterr().err


def test_what_two_ranks_measure_is_what_the_planner_reads(tmp_path):
    output = tmp_path / "machine.json"
    argv = ["-m", "launch", "doctor", "--measure", "--processes", "2", "--output", str(output)]
    done = run(*argv, timeout=600, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.both[-3000:]
    values = json.loads(output.read_text())
    assert (values["device"], values["ranks"], values["nodes"]) == ("cpu", 2, 1)
    assert all(value > 0 for name, value in values["rates"].items() if name != "at_once")
    for seconds in values["collectives"].values():
        assert len(seconds) == 5 and all(value > 0 for value in seconds.values())
    found = of_machine(str(output), "cpu")
    assert found.within.bandwidth > 0 and found.within.latency > 0 and found.between == found.within
    assert "products  bf16" in done.stdout and "link      within the node" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["machine.json"]


@pytest.mark.parametrize("flags", [["--measure", "--exactness"], ["--measure", "optim.lr=1"], ["--output", "x.json"]])
def test_measuring_is_about_no_run(capsys, flags):
    assert main(["doctor", *flags]) == 2
    assert "--measure" in capsys.readouterr().err
