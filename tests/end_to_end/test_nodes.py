"""Two nodes that are both this machine: what differs from one is the topology flags, and nothing else."""

import json

import pytest

from tests import forked
from tests.end_to_end.runs import losses, write_run
from tests.launching import free_port, run


def test_one_run_file_on_one_process_and_on_two_nodes(tmp_path, tiny_bert, tiny_shards):
    """Under ZeRO-2; tests.soak.hosts does it with every engine on hosts that have a network between them."""
    engine, run_file = "zero2", write_run(tmp_path, tiny_bert, tiny_shards, epochs=1)
    own = (f"output_dir={tmp_path / 'one'}", "train.device=cpu")  # the device as `launch run` hands it on
    alone = run("-m", "trainer", "--config", str(run_file), "--engine", "cpu", *own)
    assert alone.returncode == 0, alone.both[-3000:]
    meeting = ["--nnodes", "2", "--master", f"127.0.0.1:{free_port()}"]
    command = ["-m", "launch", "run", "--config", str(run_file), "--engine", engine, "--processes", "1"]
    started = [forked.start([*command, *meeting, "--node-rank", str(rank)], tmp_path, merged=True) for rank in (0, 1)]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)[-4000:]
    assert f"{engine}, 1 process(es) on cpu, node 1 of 2" in said[1] and "accelerate_configs/zero2.yaml" in said[1]
    assert not (tmp_path / ".deepspeed_env").exists(), "a file with the whole environment"
    assert losses(tmp_path / "out") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    recorded = json.loads((tmp_path / "out" / "run.json").read_text())
    assert recorded["topology"] == {"processes": 2, "engine": engine, "device": "cpu"}
    lone = json.loads((tmp_path / "one" / "run.json").read_text())
    assert recorded["config"] | {"output_dir": ""} == lone["config"] | {"output_dir": ""}
    assert recorded["data_fingerprint"] == lone["data_fingerprint"]
