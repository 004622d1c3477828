"""Devices, copies to them, and the precision of matrix products on them."""

import torch
from torch import Tensor

from data_prep.common.errors import BadInput
from trainer.distributed.engines import LONE
from trainer.distributed.launcher_claims import forces_cpu

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # of train.precision

UNHURRIED = {
    "cuda"
}  # types of device that take a copy from pinned memory while the host goes on; MPS reads it too late


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a CPU tensor's copy on the device, without waiting for it where that is safe."""
    if device.type not in UNHURRIED or tensor.device == device:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


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
