"""Generates question-answer pairs from the chunks of a vector store, with a language model or --offline without one."""

import argparse
from pathlib import Path

from data_prep.cli.arguments import add_workers, shard_next, values, workers_of
from data_prep.common.errors import BadInput
from data_prep.common.files import check
from data_prep.model_server.flags import LIMITS, add_limits
from data_prep.stores.base import FLAGS
from data_prep.stores.flags import add_store, store_of, where_of

EXAMPLES = (
    "generate --path chroma --collection docs --model M --base-url http://localhost:8000/v1 --output pairs.jsonl",
    "generate --offline --path chroma --collection docs --output pairs.jsonl --hide name",
)
# Flags of one way of generating only; the other way refuses them.
OFFLINE = ("hide", "min_words", "keywords", "workers")
MODEL = ("model", "base_url", "prompt", "system_prompt", "var", "sample", "temperature", "price_out", *LIMITS)
MODEL += ("requests_per_minute", "tokens_per_minute", "part", "join")
FILTERS = ("question_words", "answer_words", "same_language", "grounded", "round_trip", "near_duplicates")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="F.jsonl", help="file of pairs to write")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N chunks; --offline: at most N pairs")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of all draws (default 0)")
    add_workers(parser, "1")
    add_store(parser)
    _add_model(parser.add_argument_group("with a language model", "see docs/how_to/generation.md"))
    _add_filters(parser.add_argument_group("filters of a model's pairs", "failed pairs go to OUTPUT.rejected.jsonl"))
    group = parser.add_argument_group("without a language model")
    group.add_argument("--offline", action="store_true", help="pairs from titles, inverse cloze and keywords")
    text = "remove the value of this metadata field from questions (may be repeated)"
    group.add_argument("--hide", action="append", metavar="FIELD", help=text)
    group.add_argument("--min-words", type=int, metavar="N", help="least words of an answer (default 8)")
    text = "for chunks without a pair: their N most telling words (tf-idf) as the question, their text as the answer"
    group.add_argument("--keywords", type=int, metavar="N", help=text)


def _add_model(group) -> None:
    group.add_argument("--model", metavar="M", help="name of the language model on its server")
    text = "OpenAI-compatible server (default: OPENAI_BASE_URL, YC_OPENAI_API_BASE or OpenAI's own); the key comes "
    text += "from OPENAI_API_KEY or YC_OPENAI_API_KEY, or .env"
    group.add_argument("--base-url", metavar="URL", help=text)
    text = "template of the prompt, with {context} for the chunk's text (default: the package's own)"
    group.add_argument("--prompt", type=Path, metavar="FILE", help=text)
    group.add_argument("--system-prompt", metavar="TEXT", help="system message before each prompt (default: none)")
    text = "text for {NAME} in the prompt (may be repeated)"
    group.add_argument("--var", action="append", metavar="NAME=TEXT", help=text)
    text = "ask about N chunks, drawn by --seed; a larger N adds chunks to the same ones"
    group.add_argument("--sample", type=int, metavar="N", help=text)
    group.add_argument("--temperature", type=float, metavar="T", help="sampling temperature (default: the server's)")
    add_limits(group, "answers")
    for what in ("requests", "tokens"):
        text = f"{what} that the endpoint allows in a minute, shared by all parts (default: no limit)"
        group.add_argument(f"--{what}-per-minute", type=int, metavar="N", help=text)
    text = "ask about part K of N only, so that N machines share the work; all name the same --cache"
    group.add_argument("--part", metavar="K/N", help=text)
    group.add_argument("--join", action="store_true", help="write the pairs of all parts without asking the model")
    group.add_argument("--price-out", type=float, metavar="X", help="price of a million output tokens")


def _add_filters(group) -> None:
    for name in ("question", "answer"):
        group.add_argument(f"--{name}-words", metavar="MIN-MAX", help=f"words of the {name}, such as 3-40")
    group.add_argument("--same-language", action="store_true", help="question and answer have the chunk's language")
    text = "least share of the answer (its runs of 4 characters) that the chunk contains, such as 0.5"
    group.add_argument("--grounded", type=float, metavar="X", help=text)
    text = "the question retrieves its chunk among the K best of the collection by BM25"
    group.add_argument("--round-trip", type=int, metavar="K", help=text)
    text = "keep only the first of questions that are at least this similar (Jaccard, 0.7 to 1)"
    group.add_argument("--near-duplicates", type=float, metavar="X", help=text)


def run(args: argparse.Namespace) -> None:
    _check_way(args)
    (_run_offline if args.offline else _run_model)(args)


def _check_way(args: argparse.Namespace) -> None:
    wrong, mend = (MODEL + FILTERS, "leave out --offline or this") if args.offline else (OFFLINE, "add --offline")
    misplaced = [name for name in wrong if getattr(args, name, None) not in (None, False)]
    way = "a language model" if args.offline else "generation without one"
    problems = [f"--{name.replace('_', '-')}: belongs to {way}; {mend}" for name in misplaced]
    if not args.offline and args.model is None:
        problems.append("--model: name the language model to ask, or add --offline for pairs without one")
    check(problems)


def _run_offline(args: argparse.Namespace) -> None:
    from data_prep.generation.offline import generate_offline

    options = _set_flags(args, "hide", "limit", "seed", "min_words", "keywords")
    generate_offline(store_of(args), args.output, where=where_of(args), **options, **workers_of(args, 1))


def _run_model(args: argparse.Namespace) -> None:
    from data_prep.generation.config import QuestionGenerationConfig
    from data_prep.generation.filters import Filters
    from data_prep.generation.questions import QuestionGenerator

    names = {"prompt": "prompt_path", "store": "db_type", "collection": "collection_name", "output": "output_path"}
    same = (*FLAGS, "limit", "seed", "on", *MODEL)
    flags = _set_flags(args, *(name for name in (*same, *names) if name != "var"))
    config = QuestionGenerationConfig(
        **{names.get(name, name): value for name, value in flags.items()},
        where=where_of(args),
        prompt_variables=_variables(args.var or []),
        filters=Filters(**_set_flags(args, *FILTERS) | _ranges(args)),
    )
    QuestionGenerator(config).generate()


def _set_flags(args: argparse.Namespace, *names: str) -> dict[str, object]:
    """Returns the flags that are on the command line; the others keep the defaults of their config."""
    return {name: value for name, value in values(args, *names).items() if value is not None}


def _variables(texts: list[str]) -> dict[str, str]:
    variables: dict[str, str] = {}
    problems = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            problems.append(f"--var {text}: must be NAME=TEXT")
        elif name in variables:
            problems.append(f"--var {name}: is given twice")
        variables[name] = value
    check(problems)
    return variables


def _ranges(args: argparse.Namespace) -> dict[str, tuple[int, int]]:
    ranges = {}
    for name in ("question_words", "answer_words"):
        text = getattr(args, name)
        if text is None:
            continue
        least, _, most = text.partition("-")
        if not (least.isdecimal() and most.isdecimal()):
            raise BadInput(f"--{name.replace('_', '-')} {text}: must be MIN-MAX, such as 3-40")
        ranges[name] = (int(least), int(most))
    return ranges


def next_step(args: argparse.Namespace) -> list:
    if args.part:
        return []
    return shard_next(args.output, *([] if args.offline else ["--positive", "context"]))
