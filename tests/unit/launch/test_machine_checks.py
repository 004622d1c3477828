"""Findings of doctor in a machine and a shell: each thing that makes runs other runs is planted, named, and mended."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from launch import machine_checks as checks
from launch.command import Machine
from launch.machine_checks import environment_findings, machine_findings
from trainer.diagnosis import findings
from trainer.diagnosis.findings import disk, shown

MACHINE = Machine(gpus=0, mps=False, cores=4)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working folder and home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks.Path, "home", lambda: tmp_path / "home")
    return tmp_path


def wrong(environ: dict[str, str]) -> list[str]:
    found = machine_findings(MACHINE, None, "", environ)
    return [shown(f) for f in found if f.level != "ok" and f.about not in ("host name", "ZeRO")]


def test_nothing_is_found_where_nothing_is_wrong():
    assert wrong({}) == []


PLANTED = {
    "ACCELERATE_USE_CPU": ("true", "drops DeepSpeed"),
    "WORLD_SIZE": ("2", "unset WORLD_SIZE"),
    "ACCELERATE_MIXED_PRECISION": ("bf16", "train.precision"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_variable_that_makes_another_run_of_it(name):
    value, words = PLANTED[name]
    [line] = [shown(finding) for finding in environment_findings({name: value, "HOME": "/root"})]
    assert name in line and words in line


YAMLS = {
    "MULTI_CPU": ("distributed_type: MULTI_CPU\n", "one process only"),
    "use_cpu": ("distributed_type: MULTI_GPU\nuse_cpu: true\n", "each train alone"),
    "FSDP": ("distributed_type: FSDP\n", "none of our engines"),
}


@pytest.mark.parametrize("case", YAMLS)
def test_a_default_config_of_accelerate_that_falls_back(here, case):
    text, words = YAMLS[case]
    (here / "accelerate").mkdir()
    (here / "accelerate" / "default_config.yaml").write_text(text)
    [line] = wrong({"HF_HOME": str(here)})
    assert words in line and "--config_file" in line


def test_the_environment_that_a_launcher_left_in_a_file(here):
    (here / ".deepspeed_env").write_text("OPENAI_API_KEY=planted\n")
    [line] = wrong({})
    assert "delete it" in line and "planted" not in line


def test_a_gpu_that_no_rank_may_use(monkeypatch):
    monkeypatch.setattr(checks.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert any("no GPU is usable" in line for line in wrong({}))


def test_a_disk_without_room_for_the_checkpoints(here, monkeypatch):
    (here / "model").mkdir()
    save_file({"weight": np.zeros(250, np.float16)}, here / "model" / "model.safetensors")  # 1,000 bytes in fp32
    assert disk(here / "out" / "deep", str(here / "model")).level == "ok"
    monkeypatch.setattr(findings.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 5000}))
    assert "3 checkpoints of all weights" in disk(here / "out", str(here / "model")).text
