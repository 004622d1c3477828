"""The result of a check in one line with its mend, and the check of a disk. Never imports torch."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from data_prep.common.files import existing_parent
from trainer.model_folder.files import fp32_bytes

CHECKPOINTS = 3  # that should fit: the two newest, and one being written


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    level: str  # ok, warn or FAIL
    about: str
    text: str
    mend: str = ""  # what to do about it; empty for ok


def shown(finding: Finding) -> str:
    """Returns one line for people."""
    mend = f": {finding.mend}" if finding.mend else ""
    return f"{finding.level:5} {finding.about:13} {finding.text}{mend}"


def disk(run_dir: Path, model: str) -> Finding:
    """Compares the free space with a run's checkpoints; for a model that is no folder yet, it tells what is free."""
    folder = existing_parent(run_dir)
    free = shutil.disk_usage(folder).free
    needed = CHECKPOINTS * 3 * fp32_bytes(Path(model))  # weights and two moments
    text = f"{free / 2**30:.1f} GiB free in {folder}"
    if free < needed:
        text += f", {CHECKPOINTS} checkpoints of all weights take {needed / 2**30:.1f} GiB"
        mend = "make room, set output_dir to another disk, or lower checkpoint.keep_epochs"
        return Finding("warn", "disk", text, mend)
    return Finding("ok", "disk", text)
