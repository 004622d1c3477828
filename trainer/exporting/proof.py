"""Proof that a model folder embeds as the trainer did: its tensors one by one, then a fresh process that loads it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.common.errors import Failed
from data_prep.texts.tokenizer_rules import read_object
from trainer.exporting.fresh_load import WITH_CODE
from trainer.inference.probe import Probe
from trainer.model_folder.dense import WEIGHTS
from trainer.model_folder.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, dense_paths, stored_tensors

SAME_LENGTH = {False: 1e-3, True: 1e-2}  # by Probe.rounded: relative, of an embedding's norm, which no cosine sees
ROOT = Path(__file__).resolve().parent.parent.parent


def prove(folder: Path, probe: Probe, trust_remote_code: bool = False, load: Callable | None = None) -> list[str]:
    """Returns a line for each way of loading. Raises Failed with every problem if the folder is not whole or embeds
    otherwise than the probe records. trust_remote_code: the folder's own code may run. load: see load_elsewhere."""
    problems = [*_missing_files(folder), *_missing_shards(folder)] or _bad_tensors(folder, probe)
    if problems:
        raise Failed(_listed(folder, problems))
    lines, problems = [], []
    for by, embeddings in (load or load_elsewhere)(folder, trust_remote_code).items():
        compared = [_apart(by, side, probe, embeddings[side]) for side in ("query", "document")]
        problems += [problem for _, problem in compared if problem]
        lowest = min(cosine for cosine, _ in compared)
        lines.append(f"{by}: cosine to the trainer's own embeddings at least {lowest:.6f} (limit {probe.limit})")
    if problems:
        raise Failed(_listed(folder, problems))
    return lines


def _listed(folder: Path, problems: list[str]) -> str:
    lines = "".join(f"\n  - {problem}" for problem in problems)
    return f"{folder}: does not embed as the trainer did; it was not finished{lines}"


def _missing_files(folder: Path) -> list[str]:
    """Returns the missing files that loaders would silently replace by a default."""
    needed = ["modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "tokenizer.json"]
    needed += ["1_Pooling/config.json", ADAPTER_CONFIG if (folder / ADAPTER_WEIGHTS).is_file() else "config.json"]
    needed += [f"{path}/{name}" for path in dense_paths(folder) for name in ("config.json", WEIGHTS)]
    return [f"{name}: is missing" for name in needed if not (folder / name).is_file()]


def _missing_shards(folder: Path) -> list[str]:
    if not any(folder.glob("*.safetensors")):
        return ["it holds no *.safetensors weights"]
    problems = []
    for index in folder.glob("*.safetensors.index.json"):
        shards = set(read_object(index).get("weight_map", {}).values())
        problems += [f"{name}: the shard is missing" for name in sorted(shards) if not (folder / name).is_file()]
    return problems


def _bad_tensors(folder: Path, probe: Probe) -> list[str]:
    problems = []
    for name, tensor in stored_tensors(folder):
        if tensor.numel() == 0:
            problems.append(f"tensor {name}: is empty")
        elif tensor.is_floating_point() and not tensor.isfinite().all():
            problems.append(f"tensor {name}: holds numbers that are not finite")
        elif name not in probe.zeros and not tensor.any():
            problems.append(f"tensor {name}: is all zeros, and was not when the trainer wrote it")
    return problems


def _apart(by: str, side: str, probe: Probe, vectors: np.ndarray) -> tuple[float, str | None]:
    """Returns (smallest cosine, problem or None). vectors: (texts, d)."""
    expected = probe.queries if side == "query" else probe.passages
    if vectors.shape != expected.shape:
        return 0.0, f"{by}: embeddings of {vectors.shape[1]} numbers, the trainer's have {expected.shape[1]}"
    lengths = [np.linalg.norm(side, axis=1).clip(min=1e-12) for side in (vectors, expected)]
    cosines = (vectors * expected).sum(axis=1) / (lengths[0] * lengths[1])
    worst = int(cosines.argmin())
    lowest = float(cosines[worst])
    if not lowest >= probe.limit:  # nan as well
        text = probe.texts[worst][:60]
        return lowest, (
            f"{by}: as a {side}, {text!r} has cosine {lowest:.6f} to the trainer's own embedding (limit {probe.limit})"
        )
    differing = float(np.abs(lengths[0] / lengths[1] - 1).max())
    if differing > SAME_LENGTH[probe.rounded]:
        return lowest, f"{by}: as a {side}, embeddings are up to {differing:.1%} longer or shorter (normalisation?)"
    return lowest, None


def load_elsewhere(folder: Path, trust_remote_code: bool = False) -> dict[str, dict[str, np.ndarray]]:
    """Returns way of loading -> query or document -> (texts, d), by a process of its own (fresh_load.py)."""
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary) / "embeddings.npz"
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        flags = [WITH_CODE] if trust_remote_code else []
        done = subprocess.run(
            [sys.executable, "-m", "trainer.exporting.fresh_load", str(folder.resolve()), str(output), *flags],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        if done.returncode or not output.is_file():
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise Failed(_listed(folder, [f"a fresh process cannot load it: {reason}"]))
        with np.load(output) as arrays:
            ways = json.loads(done.stdout.splitlines()[-1])
            return {way: {side: arrays[f"{way} {side}"] for side in ("query", "document")} for way in ways}
