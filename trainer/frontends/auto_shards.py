"""Shards that a run by flags, flat JSON or Python makes of its records in its own run directory. No torch.

- Every rank comes here before there is a process group.
- The first rank on a disk makes the shards; the others wait for its lock and open them.
- Shards depend on the records alone, so nodes with disks of their own make the same.
"""

import json
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import yaml
from filelock import FileLock

from data_prep.common.console import say
from data_prep.common.errors import BadInput
from data_prep.common.files import check, sha256_of, whole_file
from data_prep.common.workers import cores
from data_prep.sharding.build import shard
from data_prep.texts.tokenizer_rules import read_object
from trainer.config.sections import RunConfig
from trainer.distributed.launcher_claims import rank
from trainer.frontends.loss_by_scores import with_loss_by_scores
from trainer.frontends.translation import Entry
from trainer.preflight.output import check_place
from trainer.run_dir.layout import LOCK, RUN_FILE, SHARDS, SHARDS_OF


def prepare(entry: Entry, resume: bool) -> Path:
    """Makes the shards of an entry, unless they exist, writes the run file and returns its path. Completes the entry's
    config by the loss where the shards decide it. Raises BadInput for records that cannot be trained on, and for others
    than an interrupted run began with, or where shards or a run file of others lie there."""
    out = Path(entry.config.output_dir)
    check_place(out, resume)
    out.mkdir(parents=True, exist_ok=True)
    check([f"{path}: no such file" for path in entry.datasets if not path.exists()])
    hashes = {str(path): sha256_of(path) if path.is_file() else _folder_hash(path) for path in entry.datasets}
    origin = {"inputs": hashes, "eval_fraction": entry.eval_fraction}
    with FileLock(out / LOCK):
        has_begun = (out / "run.json").is_file()
        check([] if has_begun else _of_others(out, entry.needs_shards))
        if entry.needs_shards and _text_of(out / SHARDS_OF) != _as_text(origin):
            if has_begun:
                raise BadInput(
                    f"{', '.join(map(str, entry.datasets))}: not what the run in {out} began with; restore the records "
                    "or train into another output_dir"
                )
            _make_shards(entry, out, origin)
        if entry.loss_by_scores:
            entry.config, line = with_loss_by_scores(entry.config)
            if rank() == 0:
                say(line)
        text = _signed(as_yaml(entry.config))
        if not has_begun and _text_of(out / RUN_FILE) != text:
            _write(out / RUN_FILE, text)
    return out / RUN_FILE


def _of_others(out: Path, needs_shards: bool) -> list[str]:
    """Returns the problems of what would be written over, and is not as this command writes it."""
    problems, run_file = [], _text_of(out / RUN_FILE)
    if needs_shards and "inputs" not in read_object(out / SHARDS_OF):
        mend = f"not of this command (no {SHARDS_OF} of ours); move it away, or name another output_dir"
        problems += [f"output_dir: {path} is {mend}" for path in (out / SHARDS, out / SHARDS_OF) if path.exists()]
    if run_file is not None and run_file != _signed(run_file.partition("\n")[2]):
        mend = f"start it with --config {out / RUN_FILE}, move it away, or name another output_dir"
        problems.append(
            f"output_dir: {out / RUN_FILE} is not of this command (or of an earlier version), or was changed; {mend}"
        )
    return problems


def _make_shards(entry: Entry, out: Path, origin: dict) -> None:
    """Makes the shards. A kill on the way leaves the mark of its beginning, so the folder is known as ours."""
    _write(out / SHARDS_OF, _as_text({**origin, "state": "begun"}))
    try:
        _shard(entry, out / SHARDS)
    finally:
        if not (out / SHARDS).exists():  # what is put there later is another's
            (out / SHARDS_OF).unlink()
    _write(out / SHARDS_OF, _as_text(origin))


def _as_text(values: dict) -> str:
    return json.dumps(values, indent=2) + "\n"


def _signed(text: str) -> str:
    """Returns a run file with a first line by which it is known again, as long as nobody changes it."""
    return f"# Written from flags, a config.json or Python; sha256 below: {sha256(text.encode()).hexdigest()}\n{text}"


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
    digest = sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def _text_of(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _write(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write(text)
