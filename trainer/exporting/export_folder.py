"""A run's model as a folder that a fresh process has loaded and proved."""

import json
import shutil
from pathlib import Path

from data_prep.common.console import result, say
from data_prep.common.errors import BadInput
from data_prep.common.files import check
from data_prep.texts.tokenizer_rules import is_hub_id, read_object
from trainer.config.sections import ModelConfig
from trainer.exporting.merging import add, check_output
from trainer.exporting.onnx import check_onnx, write_onnx
from trainer.exporting.proof import prove
from trainer.inference.probe import Probe, read_probe
from trainer.model.adapters import check_base_of
from trainer.model_folder.files import ADAPTER_CONFIG, TRAINING_CONFIG, base_folder, fetch
from trainer.model_folder.older_versions import add_older_names
from trainer.model_folder.spec import TRUST, read_spec
from trainer.reporting.model_card import model_card
from trainer.run_dir.checkpoint_writer import write_output
from trainer.run_dir.layout import MARKER, model_of_run
from trainer.run_dir.verdict import BLEND, VERDICT

# What a run keeps for itself: resume state, the proof of its bytes, and a run file with this machine's paths.
LEFT = ("state", MARKER, TRAINING_CONFIG, "README.md")


def export(
    source: Path, output: Path, *, base: str | None = None, merge: bool = False, onnx: bool = False, push: bool = False,
    trust_remote_code: bool = False,
) -> Probe:  # fmt: skip
    """Writes the model of a run or checkpoint as a folder for sentence-transformers, transformers and servers, after
    a fresh process has loaded it and made the embeddings that the trainer recorded; returns that record. Raises
    BadInput for a source that cannot be exported, Failed (and writes nothing) where the folder embeds otherwise.

    base: where the base of an adapter is now (folder or hub id), if not where it was trained. merge: an adapter is
    added to its base. onnx: the transformer as ONNX as well. push: it will be uploaded, so an adapter must name a base
    that others can load. trust_remote_code: the model's own code may run, here and in the fresh process.
    """
    folder = model_of_run(source)
    probe, adapter = read_probe(folder), (folder / ADAPTER_CONFIG).is_file()
    check_output(output, "--output")
    check(_misplaced(folder, adapter, base, merge, onnx))
    if push and adapter and not merge:
        check(_only_here(folder, base))
    config = ModelConfig(path=str(folder), trust_remote_code=trust_remote_code)
    spec = read_spec(config, folder, _base(folder, base, trust_remote_code) if adapter else None)

    def write(target: Path) -> None:
        if merge:
            merged = add(str(spec.base), folder, "float32", "dequantized", None, trust_remote_code)
            say(f"merged and unmerged embeddings differ by at most {merged.difference:.1e} in cosine")
            merged.write(target)
            for name in (VERDICT, BLEND):
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, target / name)
        else:
            shutil.copytree(folder, target, ignore=_left_out(folder), dirs_exist_ok=True)
            add_older_names(target)  # for folders of earlier versions of the trainer
        if adapter and not merge and base is not None:
            _point_to(target, base)
        (target / "README.md").write_text(model_card(folder, spec, adapter and not merge, onnx), encoding="utf-8")
        if onnx:
            write_onnx(target, trust_remote_code)
        for line in prove(target, merged.probe if merge else probe, trust_remote_code):
            say(line)

    write_output(output, write)
    if adapter and not merge and Path(spec.base).is_dir():
        say(f"{output} is an adapter: it loads where {spec.base} lies; --merge writes a whole model")
    return read_probe(output)


def _misplaced(folder: Path, adapter: bool, base: str | None, merge: bool, onnx: bool) -> list[str]:
    problems = check_onnx() if onnx else []
    if not adapter:
        useless = [flag for flag, value in (("--merge", merge), ("--base", base)) if value]
        problems += [f"{flag}: {folder} is a whole model and has no adapter; leave it out" for flag in useless]
    elif onnx and not merge:
        problems.append(f"--onnx: {folder} is an adapter, and ONNX holds whole models only; add --merge")
    return problems


def _only_here(folder: Path, base: str | None) -> list[str]:
    """Returns a problem if an adapter for a hub names a base that only this machine has."""
    named = base or _recorded_base(folder)
    if is_hub_id(named):
        return []
    mend = "give --base HUB_ID, which the adapter will then name, or --merge"
    return [f"--push: {folder} is an adapter of {named}, a folder of this machine; {mend}"]


def _recorded_base(folder: Path) -> str:
    return json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]


def _base(folder: Path, asked: str | None, with_code: bool) -> str:
    """Returns the folder of an adapter's base. Raises BadInput if it is missing or not the base of its training."""
    named = asked or _recorded_base(folder)
    if not (Path(named) / "config.json").is_file() and (Path(named).exists() or Path(named).is_absolute()):
        raise BadInput(
            f"{folder}: is an adapter of {named}, which is no model folder here; say where it is now: --base FOLDER"
        )
    base = fetch(named, with_code)
    check_base_of(folder, Path(base))
    return base


def _point_to(exported: Path, base: str) -> None:
    path = exported / ADAPTER_CONFIG
    values = json.loads(path.read_text(encoding="utf-8"))
    values["base_model_name_or_path"] = str(Path(base).resolve()) if Path(base).exists() else base
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _left_out(folder: Path):
    return lambda parent, names: [name for name in names if Path(parent) == folder and name in LEFT]


def verify(source: Path, trust_remote_code: bool = False) -> None:
    """Loads a folder again and compares it with its record; writes nothing. Raises BadInput and Failed."""
    folder = model_of_run(source)
    if not trust_remote_code and "auto_map" in read_object(base_folder(folder) / "config.json"):
        raise BadInput(f"{folder}: brings its own code, without which it cannot be loaded; {TRUST}")
    for line in prove(folder, read_probe(folder), trust_remote_code):
        result(f"{folder}: {line}")
