"""DeepSpeed's JSON files, and what DeepSpeed needs to run. Never imports torch."""

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from packaging.version import Version

from data_prep.common.errors import BadInput
from data_prep.common.files import check
from data_prep.common.finite import decode_whole

OFFLOAD = ("offload_optimizer", "offload_param")  # keys of zero_optimization: parts in the host's memory
# Older ZeRO-1/2 with optimizer offload kept only the last chunk's gradient (DeepSpeed issue 7981).
OLDEST_DEEPSPEED = Version("0.19.8")


def zero_engine(zero: Mapping) -> str | None:
    """Returns the name of the engine that a DeepSpeed JSON's zero_optimization describes, known here or not."""
    offloaded = any(zero.get(what, {}).get("device", "none") != "none" for what in OFFLOAD)
    return f"zero{zero['stage']}{'_offload' if offloaded else ''}" if zero.get("stage") else None


def read_ds_json(name: str) -> dict:
    """Reads a DeepSpeed JSON by path; a missing path is looked up by its file name in our own ds_configs/. (Accelerate
    resolves it against the working folder alone.) Raises BadInput."""
    own = config_folder("ds_configs") / Path(name).name
    try:
        path = Path(name) if Path(name).is_file() else own
        found = path.is_file()
    except OSError as error:  # a name that is too long
        raise BadInput(f"{name[:80]}: no such DeepSpeed config ({error.strerror})") from None
    if not found:
        known = ", ".join(sorted(p.name for p in own.parent.glob("*.json")))
        raise BadInput(f"{name}: no such DeepSpeed config. embedfleet ships: {known}")
    try:
        values = decode_whole(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not a readable DeepSpeed JSON: {error}") from None
    if not isinstance(values, dict):
        raise BadInput(f"{path}: not a JSON object")
    zero = values.get("zero_optimization", {})
    parts = {"zero_optimization": zero}
    if isinstance(zero, dict):
        parts |= {f"zero_optimization.{key}": zero[key] for key in OFFLOAD if key in zero}
    check([f"{path}: {key}: must be an object" for key, part in parts.items() if not isinstance(part, dict)])
    return values


def check_deepspeed(device: str) -> None:
    """Raises BadInput where ZeRO cannot run on cpu or cuda: no DeepSpeed, one that loses gradients, no compiler."""
    try:
        version = Version(importlib.metadata.version("deepspeed"))
    except importlib.metadata.PackageNotFoundError:
        raise BadInput("ZeRO needs DeepSpeed, which is not installed: pip install 'embedfleet[deepspeed]'") from None
    if version < OLDEST_DEEPSPEED:
        raise BadInput(
            f"DeepSpeed {version} can lose gradients of chunks (issue 7981): install {OLDEST_DEEPSPEED} or newer"
        )
    if device != "cpu":
        return
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise BadInput(
            "ZeRO on a CPU compiles a small operator on first use and needs a C++ compiler: install g++ "
            "(or name one in CXX), or use --engine ddp, which needs none"
        )
    if ninja() is None:
        raise BadInput("ZeRO on a CPU compiles a small operator on first use and needs ninja: pip install ninja")


def ninja() -> str | None:
    """Returns the path of ninja: the one beside the interpreter first. Another version would compile all again."""
    beside = Path(sys.executable).with_name("ninja")
    return str(beside) if beside.exists() else shutil.which("ninja")


def config_folder(name: str) -> Path:
    """Returns the installed folder `accelerate_configs` or `ds_configs`, beside this package."""
    return Path(__file__).resolve().parents[2] / name
