"""Writes inputs as Arrow shards, split by document, without duplicates and leakage."""

import argparse
from pathlib import Path

from data_prep.cli.arguments import INPUTS, add_positive, add_workers, path_or_url, train_next, values, workers_of
from data_prep.common.errors import BadInput
from data_prep.common.files import check
from data_prep.texts.prompts import SIDES, OwnPrompts

EXAMPLES = ("shard records.jsonl --output shards --num-shards 4 --eval-fraction 0.1",)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", type=path_or_url, metavar="INPUT", help=INPUTS)
    parser.add_argument("--output", type=path_or_url, required=True, metavar="DIR", help="shard folder to write")
    text = "Arrow files of the train split (default: about 500 MB each)"
    parser.add_argument("--num-shards", type=int, metavar="N", help=text)
    add_positive(parser)
    add_workers(parser, "one per core")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished shard folder")
    _add_split(parser.add_argument_group("split"))
    _add_filters(parser.add_argument_group("rows to leave out"))
    _add_tokens(parser.add_argument_group("tokens", "the train rows are tokenised once for all runs"))


def _add_split(group) -> None:
    text = "expected share of documents in the eval split, 0 for none (default 0.1)"
    group.add_argument("--eval-fraction", type=float, default=0.1, metavar="X", help=text)
    text = "split by this metadata field (default: rows that share a document, positive or query text stay together)"
    group.add_argument("--split-by", metavar="FIELD", help=text)
    group.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the split (default 0)")
    text = "texts that --split-by puts in both splits: refuse them (default), or drop them from one"
    choices = ("refuse", "drop-train", "drop-eval")
    group.add_argument("--on-leakage", choices=choices, default="refuse", help=text)


def _add_filters(group) -> None:
    text = "skip rows whose query and positives are both this similar (Jaccard, 0.7 to 1) to an earlier row's"
    group.add_argument("--near-duplicates", type=float, metavar="X", help=text)
    text = "skip train rows with a text (with --near-duplicates: nearly) of this evaluation set; may be repeated"
    group.add_argument("--exclude", type=Path, action="append", default=[], metavar="SETDIR", help=text)


def _add_tokens(group) -> None:
    text = "model folder or hub id whose tokenizer is used; the flags below need it"
    group.add_argument("--tokenizer", metavar="M", help=text)
    for side in ("query", "passage"):
        text = f"text before every {side} (default: the model folder's own)"
        group.add_argument(f"--{side}-prompt", metavar="TEXT", help=text)
        text = f"tokens at which a {side} is truncated (default: the model folder's own)"
        group.add_argument(f"--{side}-max-len", type=int, metavar="N", help=text)
        text = f"text before every {side} of one source, in place of --{side}-prompt; may be repeated"
        group.add_argument(f"--source-{side}-prompt", action="append", metavar="NAME=TEXT", help=text)
        text = f"the row's own prompt before its {side}: a key of the row, or a text with one {{key}}"
        group.add_argument(f"--row-{side}-prompt", metavar="KEY", help=text)


def run(args: argparse.Namespace) -> None:
    from data_prep.common.workers import cores
    from data_prep.sharding.build import shard
    from data_prep.sharding.upload import uploaded

    options = values(
        args, "num_shards", "eval_fraction", "split_by", "seed", "positive", "columns", "on_leakage", "overwrite"
    )
    options |= values(args, "near_duplicates", "exclude") | workers_of(args, cores()) | {"tokens": _tokens(args)}
    if isinstance(args.output, Path):
        shard(args.inputs, args.output, **options)
        return
    with uploaded(args.inputs, args.output, args.overwrite) as folder:
        shard(args.inputs, folder, **options | {"overwrite": True})


def _by_source(given: dict) -> dict[str, dict[str, str]]:
    """Returns the prompts of --source-SIDE-prompt by side and source. Raises BadInput with every problem."""
    problems, prompts = [], {}
    for side in SIDES:
        flag, prompts[side] = f"--source-{side}-prompt", {}
        for text in given.get(f"source_{side}_prompt") or ():
            name, equals, prompt = text.partition("=")
            if not name or not equals:
                problems.append(f"{flag} {text!r}: must be NAME=TEXT")
            elif name in prompts[side]:
                problems.append(f"{flag}: names the source {name!r} twice; keep one")
            prompts[side][name] = prompt
    check(problems)
    return prompts


def _tokens(args: argparse.Namespace):
    """Returns the options of tokenisation; None without --tokenizer."""
    from data_prep.sharding.tokenise import TokenOptions

    asked = values(args, "query_prompt", "passage_prompt", "query_max_len", "passage_max_len")
    own = values(args, *(f"{owner}_{side}_prompt" for owner in ("source", "row") for side in SIDES))
    if args.tokenizer is not None:
        rows = {f"row_{side}": own.get(f"row_{side}_prompt") for side in SIDES}
        return TokenOptions(args.tokenizer, **asked, own_prompts=OwnPrompts(**_by_source(own), **rows))
    given = [f"--{name.replace('_', '-')}" for name, value in (asked | own).items() if value is not None]
    if given:
        mend = "nothing is tokenised without --tokenizer; add it, or leave these to the run"
        raise BadInput(f"{', '.join(given)}: {mend}")
    return None


def next_step(args: argparse.Namespace) -> list:
    return train_next(args.output)
