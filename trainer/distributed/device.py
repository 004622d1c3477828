"""Definitions of this subject."""

import os

import torch

from data_prep.common.errors import BadInput


def pick_device(asked: str, engine: str | None = None, several: bool = False) -> str:
    """cpu, mps or cuda. `auto` takes what is there; a device that was named and is missing is refused.

    several: more than one rank, or ZeRO. An Apple GPU carries one process only.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    wanted = {"cpu": "cpu", "mps": "mps", "single_gpu": "cuda"}.get(engine or "", asked)
    if os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1", "yes"):
        wanted = "cpu"
    if asked not in ("auto", wanted):
        raise BadInput(f"train.device is {asked}, but the launcher or --engine asks for {wanted}; say one of them")
    asked = wanted
    if several and asked == "mps":
        raise BadInput("an Apple GPU carries one process: use --engine mps, or train.device=cpu for several")
    if several:
        there["mps"] = False
    if asked == "auto":
        return next(name for name, present in there.items() if present)
    if not there[asked]:
        present = ", ".join(name for name, found in there.items() if found)
        raise BadInput(f"train.device: {asked} is not available here (available: {present})")
    return asked
