"""A precision without hardware on the device is named with its mend: at the start, in dry runs and by the doctor."""

import platform

import pytest
import torch

from launch import machine, machine_checks
from launch.__main__ import main as launch_main
from launch.command import Machine
from tests.end_to_end.runs import write_run
from trainer.__main__ import main as train_main
from trainer.diagnosis import ranks
from trainer.distributed import device, precision
from trainer.distributed.precision import slow_precision

AVX2 = "processor\t: 0\nflags\t\t: fpu sse2 avx2 f16c\nbogomips\t: 4000\n\nprocessor\t: 1\nflags\t\t: fpu\n"
AMX = AVX2.replace("f16c", "f16c avx512f avx512_fp16 amx_bf16 amx_tile")
SERVER_ARM = "processor\t: 0\nFeatures\t: fp asimd asimdhp bf16\n"
OLD_ARM = "processor\t: 0\nFeatures\t: fp asimd\n"
CPUS = {  # name -> machine, cpuinfo, precisions without hardware
    "AVX2 only": ("x86_64", AVX2, ["bf16", "fp16"]),
    "AVX-512": ("x86_64", AVX2.replace("f16c", "f16c avx512f avx512bw"), ["bf16", "fp16"]),
    "AVX512_BF16": ("x86_64", AVX2.replace("f16c", "avx512_bf16"), ["fp16"]),
    "AMX": ("x86_64", AMX, []),
    "ARM with bf16": ("aarch64", SERVER_ARM, []),
    "ARM without": ("aarch64", OLD_ARM, ["bf16", "fp16"]),
    "another processor": ("riscv64", "processor\t: 0\nisa\t: rv64\n", []),
    "no list of features": ("x86_64", "processor\t: 0\n", []),
}


@pytest.fixture
def cpu(tmp_path, monkeypatch):
    """Replaces what this machine's CPU says of itself."""

    def replace(kind: str, text: str, system: str = "Linux") -> None:
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(platform, "machine", lambda: kind)
        monkeypatch.setattr(platform, "system", lambda: system)

    return replace


@pytest.mark.parametrize("case", CPUS)
def test_instructions_of_a_cpu(case, cpu):
    kind, text, slow = CPUS[case]
    cpu(kind, text)
    assert [name for name in ("fp32", "bf16", "fp16") if slow_precision(name, "cpu")] == slow


def test_the_line_names_what_is_missing_and_the_mend(cpu):
    cpu("x86_64", AVX2)
    assert slow_precision("bf16", "cpu") == [
        "train.precision: bf16, but this CPU has no instructions for it (AMX_BF16 or AVX512_BF16): every step takes "
        "many times as long as in fp32; set train.precision=fp32"
    ]
    cpu("arm64", "", system="Darwin")
    [line] = slow_precision("bf16", "cpu")
    assert "Mac's CPU" in line and "train.precision=fp32" in line


def test_a_system_without_cpuinfo_is_not_guessed_about(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "none")
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    assert slow_precision("bf16", "cpu") == []


GPUS = {  # precision, compute capability -> the mend
    ("bf16", (7, 5)): "set train.precision=fp16",
    ("bf16", (6, 1)): "set train.precision=fp32",
    ("fp16", (6, 1)): "set train.precision=fp32",
    ("bf16", (8, 0)): None,
    ("bf16", (10, 0)): None,
    ("fp16", (7, 0)): None,
    ("fp32", (6, 1)): None,
    ("bf16", None): None,
}


@pytest.mark.parametrize("asked, capability", GPUS)
def test_units_of_a_gpu(asked, capability):
    lines = slow_precision(asked, "cuda", capability)
    mend = GPUS[asked, capability]
    assert len(lines) == (mend is not None) and all(mend in line for line in lines)


def test_apple_gpus_compute_fp16_but_not_all_of_them_bf16():
    assert slow_precision("fp16", "mps") == slow_precision("fp32", "mps") == []
    [line] = slow_precision("bf16", "mps")
    assert "before the M3" in line and line.endswith("set train.precision=fp32")


def test_torch_tells_the_capability_of_nvidia_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.version, "hip", None)
    assert len(device.precision_notes("bf16", "cuda")) == 1
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert device.precision_notes("bf16", "cuda") == []


@pytest.mark.parametrize("text, least", [("8.0\n7.5\n", (7, 5)), ("10.0\n", (10, 0)), ("[N/A]\n", None), ("", None)])
def test_nvidia_smi_tells_the_capability(tmp_path, monkeypatch, text, least):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert machine.capability(machine.this_machine()) == least


def test_a_dry_run_a_run_and_the_launcher_say_it(cpu, tmp_path, tiny_bert, tiny_shards, capfd):
    cpu("x86_64", AVX2)
    run = ["--config", str(write_run(tmp_path, tiny_bert, tiny_shards))]
    asked = ["train.precision=bf16", "train.device=cpu"]
    line = "train.precision: bf16, but this CPU has no instructions for it"
    for words in (["--dry-run", *run, *asked], [*run, *asked, "train.max_steps=1"]):
        assert train_main(words) == 0
        said = capfd.readouterr()
        assert (said.out + said.err).count(line) == 1, words
    assert launch_main(["run", *run, *asked, "output_dir=other", "--dry-run"]) == 0
    assert capfd.readouterr().err.count(line) == 1
    assert train_main(["--dry-run", *run, "output_dir=other"]) == 0
    said = capfd.readouterr()
    assert "instructions" not in said.out + said.err


def test_the_doctor_says_what_the_machine_has_no_hardware_for(cpu):
    cpu("x86_64", AVX2)
    one = machine_checks._precision(Machine(gpus=0, mps=False, cores=2))
    assert one.level == "ok" and one.text == "no hardware for bf16 and fp16: fp32 is faster here (cpu)"
    cpu("x86_64", AMX)
    assert machine_checks._precision(Machine(gpus=0, mps=False, cores=2)).text == "fp32, bf16 and fp16 (cpu)"


def test_the_ranks_of_a_run_that_the_doctor_starts_say_it(cpu, tmp_path, tiny_bert, tiny_shards, capsys):
    cpu("x86_64", AVX2)
    asked = ["--config", str(write_run(tmp_path, tiny_bert, tiny_shards)), "train.device=cpu"]
    assert ranks.main([*asked, "train.precision=fp16"]) == 0
    assert "warn  precision     train.precision: fp16, but this CPU has no instructions" in capsys.readouterr().out
    assert ranks.main(asked) == 0
    assert "precision" not in capsys.readouterr().out
