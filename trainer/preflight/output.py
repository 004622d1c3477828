"""Checks the output folder: empty or resumable, writable, large enough."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.files import existing_parent
from trainer.config.sections import RunConfig
from trainer.model_folder.files import fp32_bytes
from trainer.model_folder.spec import ModelSpec
from trainer.run_dir.finished import is_finished
from trainer.run_dir.layout import MADE_AHEAD
from trainer.run_dir.lock import check_free
from trainer.run_dir.record import check_resumable


def check_output(
    config: RunConfig,
    resume: bool,
    fingerprint: str | None,
    spec: ModelSpec | None,
    chooses: Callable[[], bool] | None = None,
) -> None:
    """Raises BadInput for an output folder that cannot be used or resumed. fingerprint: of the train shards. chooses:
    says whether the best of several models is kept."""
    out = Path(config.output_dir)
    check_place(out, resume)
    if fingerprint and (out / "run.json").is_file():
        check_resumable(out, config, fingerprint)
        is_finished(out)  # raises for a final/ that was changed
    if spec:
        _check_space(config, out, resume, Path(spec.base), chooses)


def check_place(out: Path, resume: bool) -> None:
    """Raises BadInput if a run cannot start in this folder, or with `resume` continue there."""
    if out.exists() and not out.is_dir():
        raise BadInput(f"output_dir: {out} is a file")
    check_free(out)
    if (out / "run.json").is_file():
        if not resume:
            mend = "add --resume to go on with it, or name another folder"
            raise BadInput(f"output_dir: {out} holds a run already; {mend}")
    elif out.is_dir() and any(path.name not in MADE_AHEAD for path in out.iterdir()):
        raise BadInput(f"output_dir: {out} is not empty and holds no run of ours; name a new folder")
    _check_writable(out)


def _check_writable(out: Path) -> None:
    parent = existing_parent(out)
    if not parent.is_dir():
        raise BadInput(f"output_dir: {parent} is a file, so {out} cannot be made below it")
    probe = parent / f".embedfleet-probe-{os.getpid()}"  # os.access says yes to root on a read-only mount
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadInput(f"output_dir: cannot write below {parent} ({error.strerror}); name another folder") from None


def _check_space(config: RunConfig, out: Path, resume: bool, model: Path, chooses: Callable[[], bool] | None) -> None:
    """Raises BadInput if the checkpoints will not fit on the disk. model: the local folder of the weights. chooses: see
    check_output."""
    weights = fp32_bytes(model) if config.model.finetune == "full" else 0  # adapters are small
    existing = len(list(out.glob("checkpoint-*"))) if resume else 0
    asked = config.checkpoint
    epochs = min(config.train.epochs, asked.keep_epochs + 1 if asked.keep_epochs else config.train.epochs)
    between = (asked.keep_steps or 1) + 1 if asked.every_steps or asked.every_minutes else 0
    checkpoints = max(0, epochs + between - existing)
    models = (0 if (out / "final").is_dir() else 1) + config.watch.keep_last
    watch = config.watch
    within = watch.every_steps or watch.every_minutes or watch.every_epochs
    beside = within or config.optim.ema or asked.keep_epochs  # no checkpoint holds the best model so far
    if beside and chooses and chooses():
        models += 2  # that of the newest checkpoint stays beside it
    needed = weights * (3 * checkpoints + models)  # a checkpoint holds the weights and two moments
    free = shutil.disk_usage(existing_parent(out)).free
    if free < needed:
        raise BadInput(
            f"output_dir: {free / 2**30:.1f} GiB free below {out}, but {checkpoints} checkpoints and the final model "
            f"need about {needed / 2**30:.1f} GiB; free some, name another disk, or set checkpoint.keep_epochs"
        )
