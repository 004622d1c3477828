"""`accelerate launch` from another folder: some of the configs, and some command lines that fall back silently.

tests/soak/configs.py takes all. A launcher and its ranks are forked here, but where the launcher's command line counts,
which the ranks read.
"""

import json
import subprocess
import sys
import time
from contextlib import closing
from socket import create_connection

import pytest

from tests import forked
from tests.end_to_end.runs import write_run
from tests.launching import environment, free_port, run
from trainer.distributed.deepspeed_json import config_folder

# name -> (machines, processes of all, what the world must be)
LAUNCHED = {
    "cpu": (1, 1, "cpu"),
    "ddp": (1, 2, "ddp"),
    "multi_node": (2, 2, "ddp"),
    "zero1": (1, 1, "zero1"),
    "zero2": (2, 2, "zero2"),
    "zero3": (1, 1, "zero3"),
    "zero2_offload": (1, 1, "zero2_offload"),
    "zero3_offload": (1, 2, "zero3_offload"),
}
ELSEWHERE = {
    "mps": "asked for engine mps, the engine is cpu",
    "single_gpu": "asked for engine single_gpu, the engine is cpu",
}
IN_CI = ("cpu", "multi_node", "zero3_offload")  # zero2 on two machines: test_nodes.py
LIMIT = 300  # seconds


def launch(name: str, run_file, folder, machines: int, processes: int, rank: int, port: int, real: bool):
    """A started launcher. real: an interpreter of its own."""
    flags = ["--config_file", str(config_folder("accelerate_configs") / f"{name}.yaml")]
    flags += ["--num_processes", str(processes), "--main_process_port", str(port)]
    if machines > 1:
        flags += ["--num_machines", str(machines), "--machine_rank", str(rank), "--main_process_ip", "127.0.0.1"]
    extra = {"ACCELERATE_USE_CPU": "true"} if name in ("ddp", "multi_node") else {}
    argv = ["-m", "accelerate.commands.launch", *flags, "-m", "trainer", "--config", str(run_file)]
    if not real:
        return forked.start(argv, folder, merged=True, **extra)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    env = environment(OMP_NUM_THREADS="1", **extra)
    return subprocess.Popen([sys.executable, *argv], env=env, cwd=folder, **pipes)


def wait_for(port: int) -> None:
    """Waits until someone listens: the first machine, whose launcher wants the port free."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        try:
            with closing(create_connection(("127.0.0.1", port), timeout=1)):
                return
        except OSError:
            time.sleep(0.1)


def outcome(name: str, folder, model, shards, machines: int, processes: int, real: bool) -> tuple[list[int], str]:
    """Exit codes of the launchers, and what they said."""
    run_file, port = write_run(folder, model, shards, max_steps=1), free_port()
    started = []
    for rank in range(machines):
        started.append(launch(name, run_file, folder, machines, processes, rank, port, real))
        if rank < machines - 1:
            wait_for(port)
    said = [process.communicate(timeout=LIMIT)[0] for process in started]
    return [process.returncode for process in started], "\n".join(said)


def check(name: str, folder, model, shards, real: bool = False) -> None:
    """Launches a config in `folder`; it must give its own world, or refuse where its device is not here."""
    machines, processes, engine = LAUNCHED.get(name, (1, 1, None))
    codes, said = outcome(name, folder, model, shards, machines, processes, real)
    if name in ELSEWHERE:
        assert codes != [0] and ELSEWHERE[name] in said, said[-3000:]
        assert not (folder / "out").exists()
        return
    assert codes == [0] * machines, said[-3000:]
    topology = json.loads((folder / "out" / "run.json").read_text())["topology"]
    assert topology == {"processes": processes, "engine": engine, "device": "cpu"}
    assert not (folder / ".deepspeed_env").exists(), "a file with the whole environment"


@pytest.mark.parametrize("name", IN_CI)
def test_a_config_is_launched_from_any_folder_and_gives_its_own_world(name, tmp_path, tiny_bert, tiny_shards):
    check(name, tmp_path, tiny_bert, tiny_shards)


def test_a_config_for_a_device_that_is_not_here_trains_on_no_other(tmp_path, tiny_bert, tiny_shards):
    import torch

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("the device may be here")
    check("mps", tmp_path, tiny_bert, tiny_shards, real=True)


ZERO2 = str(config_folder("accelerate_configs") / "zero2.yaml")
REFUSED = {
    "--cpu starts one process": (["--cpu", "--num_processes", "2"], {}, "--engine ddp --processes 2"),
    "MULTI_CPU starts one process": (["--config_file", "MULTI_CPU", "--num_processes", "2"], {}, "--processes 2"),
    "--cpu drops DeepSpeed": (["--cpu", "--config_file", ZERO2, "--num_processes", "2"], {}, "--engine zero2"),
    "the variable drops DeepSpeed": (
        ["--config_file", ZERO2, "--num_processes", "1"],
        {"ACCELERATE_USE_CPU": "true"},
        "--engine zero2",
    ),
    "FSDP": (["--config_file", "FSDP", "--num_processes", "2"], {}, "--engine ddp --processes 2"),
}
REFUSED_IN_CI = ("MULTI_CPU starts one process", "the variable drops DeepSpeed")  # what refuses the others is the same
YAMLS = {
    "MULTI_CPU": "distributed_type: MULTI_CPU\nuse_cpu: true\n",
    "FSDP": "distributed_type: FSDP\nfsdp_config: {fsdp_version: 1, fsdp_sharding_strategy: FULL_SHARD}\n",
}


def check_refused(case: str, folder, model, shards) -> None:
    """Launches a command line that gives another world than it states; it must be refused with what to type instead."""
    flags, extra, mend = REFUSED[case]
    yaml = folder / "launch.yaml"
    yaml.write_text("num_machines: 1\nmixed_precision: 'no'\n" + YAMLS.get(flags[1], ""))
    flags = [str(yaml) if flag in YAMLS else flag for flag in flags]
    launcher = ["-m", "accelerate.commands.launch", *flags, "--main_process_port", str(free_port())]
    run_file = write_run(folder, model, shards)
    done = run(*launcher, "-m", "trainer", "--config", str(run_file), real=True, **extra)
    assert done.returncode != 0
    assert "Nothing was trained" in done.both, done.both[-3000:]
    assert f"python -m launch run --config {run_file} " in done.both and mend in done.both
    assert not (folder / "out").exists()


@pytest.mark.parametrize("case", REFUSED_IN_CI)
def test_silent_fallbacks_of_the_launcher_are_refused(tmp_path, tiny_bert, tiny_shards, case):
    check_refused(case, tmp_path, tiny_bert, tiny_shards)


def test_every_config_is_launched():
    assert {*LAUNCHED, *ELSEWHERE} == {path.stem for path in config_folder("accelerate_configs").glob("*.yaml")}
