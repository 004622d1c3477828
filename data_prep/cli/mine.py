"""Adds hard negatives to rows: texts that rank high for the query by its words (with a model: trainer.mine)."""

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from data_prep.cli.arguments import INPUTS, add_positive, path_or_url, shard_next, values
from data_prep.common.errors import BadInput
from data_prep.common.files import check, check_output_file
from data_prep.mining.choice import DEPTH, EXACT_UP_TO, METHODS, SAMPLINGS, Choice
from data_prep.stores.flags import add_store, store_flags, store_of, where_of

EXAMPLES = ("mine records.jsonl --output mined.jsonl --k 2 --skip 3",)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of both commands that mine, data_prep mine and trainer.mine."""
    parser.add_argument("inputs", nargs="+", type=path_or_url, metavar="INPUT", help=INPUTS)
    parser.add_argument("--output", type=Path, required=True, metavar="F.jsonl", help="file of records to write")
    text = "rows with id, text and perhaps title, or a retrieval set, to choose from (default: the inputs' positives)"
    parser.add_argument("--corpus", type=path_or_url, metavar="FILE|SET", help=text)
    text = "refuse a --corpus that holds documents without text (default: leave them out)"
    parser.add_argument("--strict", action="store_true", help=text)
    text = "metadata field of the document; texts of the row's own document are not taken"
    parser.add_argument("--same-document", metavar="FIELD", help=text)
    _add_choice(parser)
    _add_models(parser)
    add_positive(parser)
    add_store(parser, required=False)


def _add_choice(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("choice")
    group.add_argument("--k", type=int, default=2, metavar="N", help="hard negatives for each row (default 2)")
    text = f"leave out the N best candidates and look at the {DEPTH} after them (default 0)"
    group.add_argument("--skip", type=int, metavar="N", help=text)
    text = "look at the candidates of ranks A to B-1 only; 0 is the best"
    group.add_argument("--range", type=_ranks, metavar="A:B", help=text)
    text = "which candidates: the best (default), a draw seeded by the row's content, or evenly from best to last"
    group.add_argument("--sampling", choices=SAMPLINGS, default="top", help=text)
    text = "take only candidates that score at least X less than the positive"
    group.add_argument("--margin", type=float, metavar="X", help=text)
    text = "take only candidates that score less than the positive by this share of it (0.05: at most 95 %%)"
    group.add_argument("--relative-margin", type=float, metavar="R", help=text)


def _add_models(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("models", "folders or hub ids")
    text = "how texts are ranked (default: dense with --model, else bm25); both: candidates of each in turns"
    group.add_argument("--method", choices=METHODS, help=text)
    group.add_argument("--model", metavar="M", help="embedding model of queries and texts (python -m trainer.mine)")
    group.add_argument("--max-len", type=int, metavar="N", help="tokens of a text (default: the model's own)")
    group.add_argument("--query-prompt", metavar="TEXT", help="text before every query (default: the model's own)")
    group.add_argument("--passage-prompt", metavar="TEXT", help="text before every text (default: the model's own)")
    text = "cross-encoder that scores the candidates anew; its scores become teacher_scores"
    group.add_argument("--rescore", metavar="CROSS_ENCODER", help=text)
    group.add_argument("--device", choices=("cpu", "cuda", "mps"), help="device of the models (default: the best here)")
    text = "run the code of these models, if you have read it (default: refuse such models)"
    group.add_argument("--trust-remote-code", action="store_true", help=text)
    text = "use the embeddings of the store; --model must be the model that made them"
    group.add_argument("--stored-vectors", action="store_true", help=text)
    text = f"search more than N texts by an approximate index (default {EXACT_UP_TO:,})"
    group.add_argument("--approximate-above", type=int, default=EXACT_UP_TO, metavar="N", help=text)
    text = "folder of embeddings and scores (default: beside the output, deleted once that is whole)"
    group.add_argument("--cache", type=Path, metavar="DIR", help=text)


def _ranks(text: str) -> tuple[int, int]:
    first, _, stop = text.partition(":")
    if not (first.isdigit() and stop.isdigit()):
        raise argparse.ArgumentTypeError(f"must be A:B, such as 10:50, not {text!r}")
    return int(first), int(stop)


def run(args: argparse.Namespace) -> None:
    work = plan(args)
    if args.model:
        mend = "python -m trainer.mine takes the same flags, and embeds on any number of ranks"
        raise BadInput(f"--model {args.model}: data_prep mines by words and loads no embedding model; {mend}")
    work(lambda: None)


def plan(args: argparse.Namespace) -> Callable:
    """Checks the flags and returns the work, a function. Its arguments: what loads the encoder once the corpus is
    open (None without --model), and perhaps a dense_search.Searcher."""
    method = args.method or ("dense" if args.model else "bm25")
    skipped = args.skip or 0
    first, stop = args.range or (skipped, skipped + DEPTH)
    choice = Choice(args.k, first, stop, args.sampling, args.margin, args.relative_margin)
    inputs = [*args.inputs, args.corpus] if args.corpus else args.inputs
    check([*_contradictions(args, method), *choice.problems(), *check_output_file(args.output, inputs)])

    def work(load_encoder: Callable, searcher=None) -> None:
        from data_prep.mining.mine import Mining, mine

        with ExitStack() as stack:
            mine(
                args.inputs,
                args.output,
                Mining(method, choice, args.same_document, args.approximate_above),
                corpus=_corpus(args, stack),
                encoder=load_encoder(),
                searcher=searcher,
                scorer=_scorer(args),
                **values(args, "stored_vectors", "cache", "positive", "columns"),
            )

    return work


def _corpus(args: argparse.Namespace, stack: ExitStack):
    """Opens the corpus, or returns None for the inputs' own positives. A missing one fails before a model is loaded."""
    if args.corpus:
        from data_prep.reading.corpus import read_corpus

        return read_corpus(args.corpus, args.strict)
    if not args.collection:
        return None
    from data_prep.stores.open import open_collection

    collection = stack.enter_context(open_collection(store_of(args)))
    return collection.chunks(where_of(args), embeddings=args.stored_vectors)


def _scorer(args: argparse.Namespace):
    if not args.rescore:
        return None
    from data_prep.mining.cross_encoder import CrossEncoderScorer

    return CrossEncoderScorer(args.rescore, device=args.device, trust_remote_code=args.trust_remote_code)


def _contradictions(args: argparse.Namespace, method: str) -> list[str]:
    problems = []
    if args.skip is not None and args.range is not None:
        problems.append(f"--skip {args.skip}: also said by --range; give one of them")
    if args.skip is not None and args.skip < 0:
        problems.append(f"--skip {args.skip}: must be 0 or more")
    if method != "bm25" and not args.model:
        problems.append(f"--method {method}: needs --model")
    if method == "bm25" and args.model:
        problems.append("--method bm25: takes no --model; choose dense or both, or leave --model out")
    if not args.model:
        flags = ("max_len", "query_prompt", "passage_prompt", "stored_vectors")
        ignored = [name.replace("_", "-") for name in flags if getattr(args, name) not in (None, False)]
        problems += [f"--{name}: needs --model" for name in ignored]
    if args.trust_remote_code and not (args.model or args.rescore):
        problems.append("--trust-remote-code: needs --model or --rescore")
    if args.max_len is not None and args.max_len < 1:
        problems.append(f"--max-len {args.max_len}: must be 1 or more")
    if args.approximate_above < 0:
        problems.append(f"--approximate-above {args.approximate_above}: must be 0 or more")
    if args.corpus and args.collection:
        problems.append("--corpus and --collection: choose one of them")
    if args.strict and not args.corpus:
        problems.append("--strict: belongs to --corpus, which is not given")
    if args.stored_vectors and not args.collection:
        problems.append("--stored-vectors: needs a store (--collection)")
    if not args.collection:
        problems += store_flags(args)
    return problems


def next_step(args: argparse.Namespace) -> list:
    return shard_next(args.output)
