"""A run's model as a folder that proves itself: python -m trainer.export RUN|CHECKPOINT --output O [--merge]."""

import argparse
import sys
from pathlib import Path

from data_prep.common.console import result, say, say_next
from data_prep.common.errors import guarded
from data_prep.common.files import check
from data_prep.common.parser import Parser
from data_prep.common.paths import with_homes
from data_prep.texts.tokenizer_rules import read_object
from trainer.exporting.hub import Hub
from trainer.inference.flags import add_trust
from trainer.model_folder.files import TRAINING_CONFIG
from trainer.run_dir.layout import model_of_run
from trainer.run_dir.verdict import doubt


def run(args: argparse.Namespace) -> int:
    from trainer.exporting.export_folder import export, verify  # imports torch

    source = Path(args.source)
    if line := doubt(source):
        say(line)
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
    say_next("python", "-m", "trainer.evaluate", "--model", args.output, "--data", _set_of(source) or "SET")
    return 0


def _set_of(source: Path) -> str | None:
    """Returns the evaluation set of the run that wrote a model, if it is here."""
    data = read_object(model_of_run(source) / TRAINING_CONFIG).get("data") or {}
    named = data.get("eval") or data.get("train")
    split = data.get("eval") or f"{named}/eval"  # without data.eval it is the eval split of data.train
    return named if isinstance(named, str) and Path(split).exists() else None


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        "python -m trainer.export",
        "Writes the model of a run as a folder for sentence-transformers, once a fresh process has verified it.",
        "python -m trainer.export runs/lora --output exported --merge",
    )
    source = "a run's output_dir, its final/, or a checkpoint in it"
    parser.add_argument("source", metavar="RUN|CHECKPOINT", help=source)
    parser.add_argument("--output", metavar="FOLDER", help="new folder; without it the model is only checked")
    parser.add_argument("--merge", action="store_true", help="add the adapter to its base: a whole model")
    parser.add_argument("--onnx", action="store_true", help="write the transformer as onnx/model.onnx as well")
    parser.add_argument("--base", metavar="FOLDER|HUB_ID", help="base of the adapter, if it was moved")
    parser.add_argument("--push", metavar="HUB_ID", help="upload it to this model repository (needs HF_TOKEN)")
    add_trust(parser)
    return guarded(lambda: run(with_homes(parser.parse_args(argv))))


if __name__ == "__main__":
    sys.exit(main())
