"""Devices, copies to them, and the precision of matrix products on them."""

import os

import torch
from torch import Tensor

from data_prep.common.errors import BadInput
from trainer.distributed.engines import LONE
from trainer.distributed.launcher_claims import forces_cpu
from trainer.distributed.precision import slow_precision

DTYPES = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # of train.precision

# One order of sums in cuBLAS and NCCL
DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "Ring", "NCCL_PROTO": "Simple"}
UNHURRIED = {"cuda"}  # take a copy from pinned memory while the host goes on; MPS would read it too late


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a CPU tensor's copy on the device, without waiting for it where that is safe."""
    if device.type not in UNHURRIED or tensor.device == device:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def choose_kernels(device: str, precision: str = "fp32", deterministic: bool = False) -> None:
    """Chooses the kernels of this process, before its first product. Raises BadInput for tf32 elsewhere than on CUDA.

    device: cuda, mps or cpu, which needs no choice. cuDNN's attention is off: it makes a plan for every new shape, and
    shapes are nearly always new here. TF32 is what the run file says, whatever TORCH_ALLOW_TF32_CUBLAS_OVERRIDE says.
    """
    if precision == "tf32" and device != "cuda":
        raise BadInput(f"train.precision: tf32 is for CUDA, and this run is on {device}; use fp32")
    if device != "cuda":
        deepspeed_looks_at(device)
        return
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    if deterministic:
        for name, value in DETERMINISTIC.items():
            os.environ.setdefault(name, value)
        torch.use_deterministic_algorithms(True)


def deepspeed_looks_at(device: str) -> None:
    """Names a CPU to DeepSpeed, which other libraries import where it is installed: it would warn of a missing GPU."""
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def rounds_products(device: torch.device) -> bool:
    """True where products of fp32 numbers are computed in TF32."""
    return device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"


def pick_device(asked: str, engine: str | None = None, several: bool = False) -> str:
    """Returns cpu, mps or cuda. asked: train.device; `auto` takes the first that is present. several: more than one
    rank, or ZeRO. Raises BadInput for a missing device."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    device = {lone: device for device, lone in LONE.items()}.get(engine or "", asked)
    if forces_cpu():
        device = "cpu"
    if asked not in ("auto", device):
        raise BadInput(f"train.device is {asked}, but the launcher or --engine asks for {device}; say one of them")
    if several and device == "mps":
        raise BadInput("an Apple GPU carries one process: use --engine mps, or train.device=cpu for several")
    if several:
        available["mps"] = False
    if device == "auto":
        return next(name for name, present in available.items() if present)
    if not available[device]:
        present = ", ".join(name for name, usable in available.items() if usable)
        raise BadInput(f"train.device: {device} is not available here (available: {present})")
    return device


def precision_name(dtype: torch.dtype | None) -> str:
    """Returns fp32, bf16 or fp16. dtype: of the matrix products, None: fp32."""
    return next(name for name, one in DTYPES.items() if one == dtype)


def chosen_precision(asked: str, device: str) -> str:
    """Returns the precision of a command that embeds and does not train. asked: `auto` is bf16 on a GPU that has units
    for it, else fp32. device: cpu, mps or cuda."""
    if asked != "auto":
        return asked
    return "bf16" if device == "cuda" and not precision_notes("bf16", device) else "fp32"


def precision_notes(precision: str, device: str) -> list[str]:
    """Returns a line if fp32 is faster than train.precision on this device: cpu, mps or cuda."""
    known = device == "cuda" and torch.version.hip is None  # AMD counts otherwise
    return slow_precision(precision, device, torch.cuda.get_device_capability() if known else None)
