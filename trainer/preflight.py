"""Everything that can be known to be wrong before a process group or a model exists. Never imports torch."""

import math
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

from data_prep.problems import BadInput
from data_prep.shards import open_shards
from trainer.config import RunConfig
from trainer.folder import fetch, read_spec
from trainer.planner import BatchPlan, RowKeys
from trainer.retrieval import load_set
from trainer.runlog import check_resumable


def check_run(config: RunConfig, resume: bool) -> None:
    """Raises one BadInput with every problem of model, data and output folder."""
    problems: list[str] = []
    _collect(problems, _check_model, config)
    fingerprint = _collect(problems, _check_data, config, key="data.train")
    _collect(problems, _check_eval, config, key="data.eval")
    _collect(problems, _check_output, config, resume, fingerprint)
    if problems:
        raise BadInput(problems)


def _collect(problems: list[str], check: Callable, *args, key: str = ""):
    """The check's result; its problems are collected, each under the key of the run file that it is about."""
    try:
        return check(*args)
    except BadInput as error:
        problems += [text if text.startswith(key) else f"{key}: {text}" for text in error.problems]
        return None


def _check_model(config: RunConfig) -> None:
    folder = fetch(config.model.path, config.model.trust_remote_code)
    read_spec(config.model, folder)
    for file in Path(folder).glob("*.safetensors"):
        try:
            with safe_open(file, framework="numpy") as tensors:
                tensors.keys()
        except (SafetensorError, OSError) as error:
            raise BadInput(f"model.path: {file} is damaged ({error})") from None


def make_plan(config: RunConfig) -> BatchPlan:
    """The plan of the train split. Raises BadInput where it holds fewer rows than one batch."""
    shards = open_shards(config.data.train)
    rows, batch_size = shards.rows("train"), config.train.batch_size
    if rows < batch_size:
        mend = f"set train.batch_size to {rows} or less" if rows >= 2 else "add rows"
        raise BadInput(
            f"data.train: {config.data.train} holds {rows} rows, fewer than one batch "
            f"(train.batch_size {batch_size}); {mend}"
        )
    keys = RowKeys(*shards.keys())
    return BatchPlan(rows, batch_size, shards.fingerprint, config.train.seed, config.data.last_batch, keys)


def _check_data(config: RunConfig) -> str:
    fingerprint = make_plan(config).fingerprint
    shards = open_shards(config.data.train)
    for key, mend in _UNUSED.items():
        rows = shards.split("train").count(key)
        if rows:
            raise BadInput(f"data.train: {rows} rows of {config.data.train} carry {key!r}, unused by InfoNCE: {mend}")
    return fingerprint


# Graded pairs would be trained as plain positives, the worst of them too.
_UNUSED = {
    "score": "losses for scored pairs are not built yet; keep the pairs that are positives and leave their scores out",
    "teacher_scores": "distillation is not built yet; leave the key out to train without it",
}


def eval_path(config: RunConfig) -> str | None:
    """Where the evaluation set is: data.eval, or the train shards where they have an eval split, or nowhere."""
    if config.data.eval:
        return config.data.eval
    return config.data.train if "eval" in open_shards(config.data.train).splits else None


def _check_eval(config: RunConfig) -> None:
    if config.data.eval:
        load_set(config.data.eval)


def _check_output(config: RunConfig, resume: bool, fingerprint: str | None) -> None:
    out = Path(config.output_dir)
    if out.exists() and not out.is_dir():
        raise BadInput(f"output_dir: {out} is a file")
    if (out / "run.json").is_file():
        if not resume:
            raise BadInput(
                f"output_dir: {out} holds a run already; add --resume to go on with it, or name another folder"
            )
        if fingerprint:
            check_resumable(out, config, fingerprint)
    elif out.is_dir() and any(out.iterdir()):
        raise BadInput(f"output_dir: {out} is not empty and holds no run of ours; name a new folder")
    _check_writable(out)
    _check_space(config, out, resume)


def _existing_parent(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _check_writable(out: Path) -> None:
    parent = _existing_parent(out.absolute())
    if not parent.is_dir():
        raise BadInput(f"output_dir: {parent} is a file, so {out} cannot be made below it")
    probe = parent / f".embedfleet-probe-{os.getpid()}"  # os.access says yes to root on a read-only mount
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadInput(f"output_dir: cannot write below {parent} ({error.strerror}); name another folder") from None


def _check_space(config: RunConfig, out: Path, resume: bool) -> None:
    weights = _fp32_bytes(Path(config.model.path))
    there = len(list(out.glob("checkpoint-epoch-*"))) if resume else 0
    epochs = max(0, config.train.epochs - there)
    # an epoch checkpoint holds the weights and two moments, final the weights
    needed = weights * (3 * epochs + (0 if (out / "final").is_dir() else 1))
    free = shutil.disk_usage(_existing_parent(out.absolute())).free
    if free < needed:
        raise BadInput(
            f"output_dir: {free / 2**30:.1f} GiB free below {out}, but {epochs} epoch checkpoints and the final model "
            f"need about {needed / 2**30:.1f} GiB; free some or name another disk"
        )


def _fp32_bytes(folder: Path) -> int:
    """Bytes of a model folder's parameters in fp32, whatever they are stored in (0 where it cannot be read)."""
    count = 0
    with suppress(SafetensorError, OSError):
        for file in folder.glob("*.safetensors"):
            with safe_open(file, framework="numpy") as tensors:
                count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return 4 * count
