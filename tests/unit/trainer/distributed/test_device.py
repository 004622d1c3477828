"""Kernels are chosen before the first product, and by the run file alone."""

import os

import pytest
import torch

from data_prep.common.errors import BadInput
from trainer.distributed.device import DETERMINISTIC, choose_kernels


@pytest.fixture
def settings():
    """Kernel settings of this process, put back afterwards."""
    cudnn, products = torch.backends.cuda.cudnn_sdp_enabled(), torch.get_float32_matmul_precision()
    yield
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    torch.set_float32_matmul_precision(products)
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("precision", "products"), [("fp32", "highest"), ("tf32", "high"), ("bf16", "highest")])
def test_tf32_is_what_the_run_file_says(settings, precision, products):
    torch.set_float32_matmul_precision("high" if precision != "tf32" else "highest")
    choose_kernels("cuda", precision)
    assert torch.get_float32_matmul_precision() == products
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_tf32_is_refused_where_there_is_none(device):
    with pytest.raises(BadInput, match=f"tf32 is for CUDA, and this run is on {device}; use fp32"):
        choose_kernels(device, "tf32")


def test_deterministic_leaves_what_the_user_has_set(settings, monkeypatch):
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    for name in DETERMINISTIC.keys() - {"NCCL_ALGO"}:
        monkeypatch.delenv(name, raising=False)
    choose_kernels("cuda", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    expected = DETERMINISTIC | {"NCCL_ALGO": "Tree"}
    found = {name: os.environ.pop(name) for name in DETERMINISTIC}
    assert found == expected


def test_a_cpu_keeps_its_settings(settings):
    before = torch.backends.cuda.cudnn_sdp_enabled(), torch.get_float32_matmul_precision()
    choose_kernels("cpu", "bf16", deterministic=True)
    assert before == (torch.backends.cuda.cudnn_sdp_enabled(), torch.get_float32_matmul_precision())


@pytest.mark.parametrize(("device", "named"), [("cpu", "cpu"), ("mps", None), ("cuda", None)])
def test_deepspeed_looks_for_no_gpu_on_a_cpu(settings, monkeypatch, device, named):
    monkeypatch.setenv("DS_ACCELERATOR", "before")  # so that what is set here is undone
    monkeypatch.delenv("DS_ACCELERATOR")
    choose_kernels(device)
    assert os.environ.get("DS_ACCELERATOR") == named
    monkeypatch.setenv("DS_ACCELERATOR", "xpu")
    choose_kernels(device)
    assert os.environ["DS_ACCELERATOR"] == "xpu", "what the user has set stays"
