"""Run files and what their runs wrote, for the end-to-end tests."""

import hashlib
import json
from pathlib import Path

from safetensors.torch import load_file


def write_run(folder: Path, model: Path, shards: Path, **train) -> Path:
    """A run file of 3 epochs over tiny shards, dropout 0, eps 1e-6; returns its path. Output: folder/out."""
    values = {
        "output_dir": str(folder / "out"),
        "model": {"path": str(model)},
        "data": {"train": str(shards)},
        "optim": {"lr": 1e-3, "eps": 1e-6},
        "train": {"batch_size": 16, "epochs": 3, "micro_batch_tokens": 300, "log_every": 1} | train,
    }
    path = folder / "run.json"
    path.write_text(json.dumps(values))
    return path


def events(out: Path, kind: str = "step") -> list[dict]:
    lines = (out / "logs.jsonl").read_text().splitlines()
    return [event for line in lines if (event := json.loads(line))["event"] == kind]


def losses(out: Path) -> dict[int, float]:
    """step -> loss; asserts that every step stands in the log once."""
    steps = [event["step"] for event in events(out)]
    assert steps == list(range(1, len(steps) + 1)), steps
    return {event["step"]: event["loss"] for event in events(out)}


def digest(out: Path) -> str:
    """Returns the hash of the final model's weights, whole or an adapter."""
    files = sorted((out / "final").glob("*.safetensors"))
    assert files, f"{out}: no weights of a final model"
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def weights(folder: Path) -> dict:
    return load_file(folder / "model.safetensors")
