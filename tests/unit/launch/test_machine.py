"""GPUs are found as torch finds them: by the environment, nvidia-smi, or the files of the drivers."""

import pytest

from launch import machine


@pytest.mark.parametrize(
    ("variable", "value", "count"),
    [
        ("CUDA_VISIBLE_DEVICES", "0,1", 2),
        ("CUDA_VISIBLE_DEVICES", "", 0),
        ("CUDA_VISIBLE_DEVICES", "0,-1,1", 1),  # CUDA stops at the first that is none
        ("CUDA_VISIBLE_DEVICES", "GPU-8a, GPU-8b", 2),
        ("HIP_VISIBLE_DEVICES", "3", 1),
        ("ROCR_VISIBLE_DEVICES", "0,1,2", 3),
    ],
)
def test_the_environment_comes_first(monkeypatch, variable, value, count):
    for name in machine.VISIBLE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    assert machine.this_machine().gpus == count


def put(root, path: str, text: str = "") -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_a_container_without_nvidia_smi_has_the_files_of_the_driver(tmp_path):
    for path in ("dev/nvidia0", "dev/nvidia1", "dev/nvidiactl", "dev/nvidia-uvm"):
        put(tmp_path, path)
    assert machine.gpus_of_drivers(tmp_path) == 2
    put(tmp_path, "proc/driver/nvidia/gpus/0000:01:00.0/information")
    assert machine.gpus_of_drivers(tmp_path) == 2


def test_of_amds_nodes_only_those_with_simd_units_are_gpus(tmp_path):
    assert machine.gpus_of_drivers(tmp_path) == 0
    nodes = "sys/class/kfd/kfd/topology/nodes"
    put(tmp_path, f"{nodes}/0/properties", "cpu_cores_count 64\nsimd_count 0\n")
    put(tmp_path, f"{nodes}/1/properties", "cpu_cores_count 0\nsimd_count 304\n")
    put(tmp_path, f"{nodes}/2/properties", "not two words in this line\n")
    assert machine.gpus_of_drivers(tmp_path) == 1
