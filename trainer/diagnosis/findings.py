"""What a check found, in one line with its mend, and the check of a disk. Never imports torch."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from data_prep.common.files import existing_parent
from trainer.model_folder.files import fp32_bytes

CHECKPOINTS = 3  # that should fit: the two newest, and one being written


@dataclass(frozen=True)
class Finding:
    """level: ok, warn or FAIL. mend: what to do about it, for all but ok."""

    level: str
    about: str
    text: str
    mend: str = ""


def shown(finding: Finding) -> str:
    mend = f": {finding.mend}" if finding.mend else ""
    return f"{finding.level:5} {finding.about:13} {finding.text}{mend}"


def disk(run_dir: Path, model: str) -> Finding:
    """Whether there is room for a run's checkpoints; for a model that is no folder yet, what is free."""
    place = existing_parent(run_dir)
    free = shutil.disk_usage(place).free
    needed = CHECKPOINTS * 3 * fp32_bytes(Path(model))  # weights and two moments
    text = f"{free / 2**30:.1f} GiB free in {place}"
    if free < needed:
        text += f", {CHECKPOINTS} checkpoints of all weights take {needed / 2**30:.1f} GiB"
        mend = "make room, set output_dir to another disk, or lower checkpoint.keep_epochs"
        return Finding("warn", "disk", text, mend)
    return Finding("ok", "disk", text)
