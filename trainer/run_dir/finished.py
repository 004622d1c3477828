"""The end of a run: final/ is written once, and afterwards it is the user's. Never imports torch."""

from pathlib import Path

from data_prep.common.errors import BadInput
from trainer.run_dir.layout import MARKER, damage
from trainer.run_dir.log import LOG, read_events


def is_finished(run_dir: Path) -> bool:
    """True if final/ is whole. Raises BadInput for one that was whole and was changed since: it is not written over."""
    final = run_dir / "final"
    problem = damage(final)
    if problem and _was_whole(final):
        mend = "move final/ away to have it written again, or name another output_dir to train anew"
        raise BadInput(f"output_dir: {run_dir / problem}, and this run is finished; {mend}")
    return problem is None


def _was_whole(final: Path) -> bool:
    """True unless a kill cut final/: it is renamed into place with its marker, and removed marker first."""
    if (final / MARKER).is_file():
        return True
    return final.is_dir() and any(event["event"] == "end" for event in read_events(final.parent / LOG))
