"""A run's model as a folder that proves itself: python -m trainer.export RUN|CHECKPOINT --output O [--merge]."""

import argparse
import json
import shutil
import sys
from pathlib import Path

from data_prep.model_folder import is_hub_id, read_object
from data_prep.output import check
from data_prep.problems import BadInput, guarded
from data_prep.progress import result, say
from trainer.card import model_card
from trainer.config import ModelConfig
from trainer.folder import ADAPTER_CONFIG, TRUST, base_folder, fetch, read_spec
from trainer.inference import add_trust
from trainer.merge import add, check_base_of, check_output
from trainer.probe import Probe, read_probe
from trainer.proof import prove
from trainer.push import Hub
from trainer.state import MARKER, damage, newest
from trainer.to_onnx import check_onnx, write_onnx

# What a run keeps for itself: resume state, the proof of its bytes, and a run file with this machine's paths.
LEFT = ("state", MARKER, "training_config.json", "README.md")


def export(
    source: Path, output: Path, *, base: str | None = None, merge: bool = False, onnx: bool = False, push: bool = False,
    trust_remote_code: bool = False,
) -> Probe:  # fmt: skip
    """Writes the model of a run or checkpoint as a folder for sentence-transformers, transformers and servers, after
    a fresh process has loaded it and made the embeddings that the trainer recorded; returns that record.

    base: where the base of an adapter is now (folder or hub id), if not where it was trained. merge: an adapter is
    added to its base. onnx: the transformer as ONNX as well. push: it will be uploaded, so an adapter must name a base
    that others can load. trust_remote_code: the model's own code may run, here and in the fresh process.

    Raises BadInput for a source that cannot be exported, Failed where the folder does not embed as the trainer did:
    nothing is written then.
    """
    from trainer import checkpoint

    folder = model_of_run(source)
    probe, adapter = read_probe(folder), (folder / ADAPTER_CONFIG).is_file()
    check_output(output, "--output")
    check(_misplaced(folder, adapter, base, merge, onnx))
    if push and adapter and not merge:
        check(_only_here(folder, base))
    config = ModelConfig(path=str(folder), trust_remote_code=trust_remote_code)
    spec = read_spec(config, folder, _base(folder, base, trust_remote_code) if adapter else None)

    def write(place: Path, _: dict) -> None:
        if merge:
            made = add(str(spec.base), folder, "float32", "dequantized", None, trust_remote_code)
            say(f"merged and unmerged embeddings differ by at most {made.difference:.1e} in cosine")
            made.write(place)
            recorded = made.probe
        else:
            shutil.copytree(folder, place, ignore=_left_out(folder), dirs_exist_ok=True)
            recorded = probe
        if adapter and not merge and base is not None:
            _point_to(place, base)
        (place / "README.md").write_text(model_card(folder, spec, adapter and not merge, onnx), encoding="utf-8")
        if onnx:
            write_onnx(place, trust_remote_code)
        for line in prove(place, recorded, trust_remote_code):
            say(line)

    checkpoint.write(output, {}, {}, None, write)
    if adapter and not merge and Path(spec.base).is_dir():
        say(f"{output} is an adapter: it loads where {spec.base} lies; --merge writes a whole model")
    return read_probe(output)


def model_of_run(source: Path) -> Path:
    """final/ of a run, or its newest whole checkpoint, or the checkpoint that is named. Raises BadInput."""
    if not source.is_dir():
        raise BadInput(f"{source}: no such folder; name a run's output_dir, or a checkpoint in it")
    if not (source / "run.json").is_file():
        problem = damage(source)
        if problem:
            raise BadInput(f"{source.parent / problem}; it is neither a run nor a whole checkpoint of one")
        return source
    final = damage(source / "final")
    if final is None:
        return source / "final"
    folder, passed = newest(source)
    if folder is None:
        raise BadInput([f"{source / final}", *(f"{source / line}" for line in passed)])
    for line in (final, *passed):
        say(f"passed over: {source / line}")
    say(f"exporting {folder}")
    return folder


def _misplaced(folder: Path, adapter: bool, base: str | None, merge: bool, onnx: bool) -> list[str]:
    found = check_onnx() if onnx else []
    if not adapter:
        found += ["--merge: " + _no_adapter(folder)] if merge else []
        found += ["--base: " + _no_adapter(folder)] if base else []
    elif onnx and not merge:
        found.append(f"--onnx: {folder} is an adapter, and ONNX holds whole models only; add --merge")
    return found


def _no_adapter(folder: Path) -> str:
    return f"{folder} is a whole model and has no adapter; leave it out"


def _only_here(folder: Path, base: str | None) -> list[str]:
    """What of an adapter that goes to a hub would load on this machine alone, and show its paths."""
    named = base or _recorded_base(folder)
    if is_hub_id(named):
        return []
    mend = "give --base HUB_ID, which the adapter will then name, or --merge"
    return [f"--push: {folder} is an adapter of {named}, a folder of this machine; {mend}"]


def _recorded_base(folder: Path) -> str:
    return json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]


def _base(folder: Path, asked: str | None, with_code: bool) -> str:
    """The folder of an adapter's base. Raises BadInput where it is not there, or another than it was trained on."""
    named = asked or _recorded_base(folder)
    if not (Path(named) / "config.json").is_file() and (Path(named).exists() or Path(named).is_absolute()):
        raise BadInput(
            f"{folder}: is an adapter of {named}, which is no model folder here; say where it is now: --base FOLDER"
        )
    place = fetch(named, with_code)
    check_base_of(folder, Path(place))
    return place


def _point_to(place: Path, base: str) -> None:
    """Tells an exported adapter where its base is now."""
    path = place / ADAPTER_CONFIG
    values = json.loads(path.read_text(encoding="utf-8"))
    values["base_model_name_or_path"] = str(Path(base).resolve()) if Path(base).exists() else base
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _left_out(folder: Path):
    return lambda place, names: [name for name in names if Path(place) == folder and name in LEFT]


def verify(source: Path, trust_remote_code: bool = False) -> None:
    """Loads a folder again and holds it against what it records; writes nothing. Raises BadInput and Failed."""
    folder = model_of_run(source)
    if not trust_remote_code and "auto_map" in read_object(base_folder(folder) / "config.json"):
        raise BadInput(f"{folder}: brings its own code, without which it cannot be loaded; {TRUST}")
    for line in prove(folder, read_probe(folder), trust_remote_code):
        result(f"{folder}: {line}")


def run(args: argparse.Namespace) -> int:
    source = Path(args.source)
    if args.output is None:
        given = [flag for flag in ("base", "merge", "onnx", "push") if getattr(args, flag)]
        check([f"--{flag}: needs --output; without it {source} is only checked" for flag in given])
        verify(source, args.trust_remote_code)
        return 0
    hub = Hub(args.push) if args.push else None
    export(
        source, Path(args.output), base=args.base, merge=args.merge, onnx=args.onnx, push=hub is not None,
        trust_remote_code=args.trust_remote_code,
    )  # fmt: skip
    result(f"{args.output}: exported; a fresh process embeds as the trainer did")
    if hub:
        result(f"pushed to {hub.push(Path(args.output))}")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.export",
        description="Writes the model of a run or checkpoint as a folder that sentence-transformers, transformers and "
        "embedding servers load, with a model card. A fresh process loads the folder first; unless it makes the "
        "embeddings that the trainer recorded, nothing is written. Without --output a folder is only checked.",
        epilog="example: python -m trainer.export runs/lora --output exported --merge",
    )
    parser.add_argument(
        "source", metavar="RUN|CHECKPOINT", help="a run's output_dir, its final/, or a checkpoint in it"
    )
    parser.add_argument("--output", help="new folder; without it SOURCE is checked and nothing is written")
    parser.add_argument("--merge", action="store_true", help="add the adapter to its base: a whole model")
    parser.add_argument("--onnx", action="store_true", help="the transformer as onnx/model.onnx as well")
    parser.add_argument("--base", metavar="FOLDER|HUB_ID", help="where an adapter's base is now, if it was moved")
    parser.add_argument("--push", metavar="HUB_ID", help="then upload to this model repository (HF_TOKEN)")
    add_trust(parser)
    args = parser.parse_args(argv)
    return guarded(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
