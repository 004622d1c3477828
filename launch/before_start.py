"""Lines about a run before anything starts, for `plan`, `run --dry-run` and `slurm`. Never imports torch."""

from pathlib import Path

from trainer.run_dir.layout import MARKER

FEW = 4  # rows of a rank, below which most of a step is exchange and waiting


def rows_per_rank(batch_size: int, ranks: int) -> str:
    """Returns a line with the rows of a global batch that each rank embeds."""
    return f"rows per rank: {_span(batch_size, ranks)} (global batch {batch_size}, {ranks} rank{'s' * (ranks > 1)})"


def few_rows(batch_size: int, ranks: int) -> list[str]:
    """Returns a warning where ranks have next to nothing to do."""
    if ranks == 1 or batch_size // ranks >= FEW:
        return []
    idle = f", {ranks - batch_size} of {ranks} ranks have none" if batch_size < ranks else ""
    return [
        f"warning: {_span(batch_size, ranks)} row(s) of a batch per rank{idle}: a step is mostly waiting for other "
        f"ranks; take fewer ranks than {ranks}, or raise train.batch_size ({batch_size})"
    ]


def _span(batch_size: int, ranks: int) -> str:
    least, rest = divmod(batch_size, ranks)
    return f"{least} to {least + 1}" if rest else str(least)


def is_finished(run_dir: str | Path) -> bool:
    """True if the folder holds a run with its final model: it would be resumed, train nothing and exit with 0."""
    return Path(run_dir, "final", MARKER).is_file()


def finished_note(run_dir: str | Path) -> list[str]:
    """Returns a warning for the folder of a finished run."""
    mend = "nothing would be trained; name another folder to train again"
    return [f"warning: output_dir: {run_dir} holds a finished run: {mend}"] if is_finished(run_dir) else []
