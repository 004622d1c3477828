"""Command-line flags that describe a model folder."""

import argparse

from trainer.config.loading import parse_section
from trainer.config.sections import ModelConfig
from trainer.inference.reading import as_trained, read_alike
from trainer.model_folder.spec import POOLINGS


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that override how a model folder reads texts; model_of reads them."""
    group = parser.add_argument_group("model", "defaults: those of the model folder")
    group.add_argument("--max-len", type=int, metavar="N", help="tokens at which queries and passages are truncated")
    group.add_argument("--pooling", choices=list(POOLINGS), help="how token vectors become one embedding")
    group.add_argument("--query-prompt", metavar="TEXT", help="text before every query")
    group.add_argument("--passage-prompt", metavar="TEXT", help="text before every document")
    add_device(group)
    add_trust(group)


def add_device(parser: argparse._ActionsContainer) -> None:
    text = "device that embeds (default: the best of this machine)"
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "mps", "cuda"], help=text)


def add_precision(parser: argparse.ArgumentParser) -> None:
    text = "precision of matrix products (default: bf16 on a GPU that has units for it, else fp32)"
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"], help=text)


def add_as_stated(parser: argparse.ArgumentParser, other: str) -> None:
    text = f"read {other} with the settings of its own folder (default: those of --model, so that weights alone differ)"
    parser.add_argument("--as-stated", action="store_true", help=text)


def models_of(path: str, other: str | None, args: argparse.Namespace) -> list[ModelConfig]:
    """Returns the model at `path` and the other one if there is one, read alike unless --as-stated. Raises BadInput."""
    model = model_of(path, args)
    if other is None:
        return [as_trained(model)]
    compared = model_of(other, args)
    if args.as_stated:
        return [as_trained(model), as_trained(compared)]
    return [*read_alike(model, compared)]


def add_trust(parser: argparse._ActionsContainer) -> None:
    text = "run the code of a model folder (auto_map), if you have read it (default: refuse such a folder)"
    parser.add_argument("--trust-remote-code", action="store_true", help=text)


def model_of(path: str, args: argparse.Namespace) -> ModelConfig:
    """Returns a model with the flags of add_model. Raises BadInput."""
    same_name = ("pooling", "query_prompt", "passage_prompt", "trust_remote_code")
    values = {"path": path, "query_max_len": args.max_len, "passage_max_len": args.max_len}
    values |= {name: getattr(args, name) for name in same_name}
    return parse_section("model", values, "the command line")
