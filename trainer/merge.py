"""An adapter added to its base: python -m trainer.merge --base_model_path B --lora_adapter_path A --output_path O."""

import argparse
import sys
from pathlib import Path

from data_prep.common.console import result, say_next
from data_prep.common.errors import guarded
from data_prep.common.parser import Parser
from data_prep.common.paths import with_homes
from trainer.inference.flags import add_trust
from trainer.model_folder.spec import POOLINGS


def run(args: argparse.Namespace) -> int:
    from trainer.exporting.merging import merge  # imports torch

    difference = merge(
        args.base_model_path, Path(args.lora_adapter_path), Path(args.output_path), args.training_precision,
        args.qlora_base, args.pooling, args.trust_remote_code,
    )  # fmt: skip
    result(
        f"{args.output_path}: merged, {args.training_precision}; its embeddings of probe texts differ from those of "
        f"the unmerged model by at most {difference:.1e} in cosine"
    )
    say_next("python", "-m", "trainer.evaluate", "--model", args.output_path, "--data", "SET")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        "python -m trainer.merge",
        "Adds an adapter to the weights of its base and writes a whole model.",
        "python -m trainer.merge --base_model_path MODEL --lora_adapter_path runs/lora/final --output_path merged",
    )
    parser.add_argument("--base_model_path", required=True, metavar="FOLDER|HUB_ID", help="base of the adapter")
    adapter = "adapter_model.safetensors, or its folder"
    parser.add_argument("--lora_adapter_path", required=True, metavar="PATH", help=adapter)
    parser.add_argument("--output_path", required=True, metavar="FOLDER", help="new folder for the merged model")
    types = ["float32", "bfloat16"]
    parser.add_argument(
        "--training_precision", choices=types, default="float32", help="type of the weights (default float32)"
    )
    base = "weights under a QLoRA adapter: the quantised ones that it was trained on, or the base as it is stored"
    parser.add_argument("--qlora_base", choices=["dequantized", "full"], default="dequantized", help=base)
    parser.add_argument("--pooling", choices=list(POOLINGS), help="pooling, where neither folder states it")
    add_trust(parser)
    return guarded(lambda: run(with_homes(parser.parse_args(argv))))


if __name__ == "__main__":
    sys.exit(main())
