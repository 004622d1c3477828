"""Shards that a run by flags, flat JSON or Python makes of its records in its own run directory. No torch.

- Every rank comes here before there is a process group.
- The first rank on a disk makes the shards; the others wait for its lock and open them.
- Shards depend on the records alone, so nodes with disks of their own make the same.
"""

import hashlib
import json
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from filelock import FileLock

from data_prep.common.console import say
from data_prep.common.errors import BadInput
from data_prep.common.files import check, sha256_of, whole_file
from data_prep.common.workers import cores
from data_prep.sharding.build import shard
from trainer.config.sections import RunConfig
from trainer.distributed.launcher_claims import rank
from trainer.frontends.loss_by_scores import with_loss_by_scores
from trainer.frontends.translation import Entry
from trainer.preflight.output import check_place
from trainer.run_dir.layout import LOCK, RUN_FILE, SHARDS, SHARDS_OF


def prepare(entry: Entry, resume: bool) -> Path:
    """Makes the shards of an entry, unless they exist, writes the run file and returns its path. Completes the entry's
    config by the loss where the shards decide it. Raises BadInput for records that cannot be trained on, and for others
    than an interrupted run began with."""
    out = Path(entry.config.output_dir)
    check_place(out, resume)
    out.mkdir(parents=True, exist_ok=True)
    check([f"{path}: no such file" for path in entry.datasets if not path.exists()])
    hashes = {str(path): sha256_of(path) if path.is_file() else _folder_hash(path) for path in entry.datasets}
    origin = json.dumps({"inputs": hashes, "eval_fraction": entry.eval_fraction}, indent=2) + "\n"
    with FileLock(out / LOCK):
        if entry.needs_shards and _text_of(out / SHARDS_OF) != origin:
            if (out / "run.json").is_file():
                raise BadInput(
                    f"{', '.join(map(str, entry.datasets))}: not what the run in {out} began with; restore the records "
                    "or train into another output_dir"
                )
            _shard(entry, out / SHARDS)
            _write(out / SHARDS_OF, origin)
        if entry.loss_by_scores:
            entry.config, line = with_loss_by_scores(entry.config)
            if rank() == 0:
                say(line)
        text = as_yaml(entry.config)
        if not (out / "run.json").is_file() and _text_of(out / RUN_FILE) != text:
            _write(out / RUN_FILE, text)
    return out / RUN_FILE


@contextmanager
def for_a_look(entry: Entry) -> Iterator[RunConfig]:
    """Yields the run file of an entry with temporary shards, for --dry-run."""
    with tempfile.TemporaryDirectory() as folder:
        if not entry.needs_shards:
            yield entry.config
            return
        _shard(entry, Path(folder, SHARDS))
        data = entry.config.data.model_copy(update={"train": str(Path(folder, SHARDS))})
        yield entry.config.model_copy(update={"data": data})


def as_yaml(config: RunConfig) -> str:
    """Returns a run file that holds what differs from the defaults."""
    values = config.model_dump(mode="json", exclude_defaults=True)
    if not config.optim.states_lr:
        del values["optim"]["lr"]
        values = {key: value for key, value in values.items() if value != {}}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)


def _shard(entry: Entry, output: Path) -> None:
    try:
        shard(entry.datasets, output, eval_fraction=entry.eval_fraction, workers=cores(), overwrite=True)
    except BadInput as error:
        if "--columns" not in str(error):
            raise
        files = shlex.join(map(str, entry.datasets))
        command = f"python -m data_prep shard {files} --output SHARDS --columns …"
        raise BadInput(
            [*error.problems, f"--columns belongs to data preparation: {command}; then train on SHARDS"]
        ) from None


def _folder_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def _text_of(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _write(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write(text)
