"""Crawls glossaries (MediaWiki, HTML, Markdown) to one file of terms and definitions."""

import argparse
from importlib.util import find_spec
from pathlib import Path

from data_prep.cli.arguments import add_workers, shard_next, values, workers_of
from data_prep.common.errors import Failed

EXAMPLES = ("crawl --dry-run --output glossary.csv",)
# extra `crawl`
NEEDED = ("httpx", "protego", "w3lib", "lxml", "selectolax", "markdown_it", "mdit_py_plugins", "charset_normalizer")


def add_flags(parser: argparse.ArgumentParser) -> None:
    help_text = (
        "what to crawl: wikipedia_glossary (all glossaries of the Wikipedia in --lang), wikipedia_glossary:TITLE (a "
        "page or category), an http(s) address, a saved page (.html, .md), or a .txt that lists such sources"
    )
    names = {"nargs": "+", "action": "extend", "default": [], "dest": "sources", "metavar": "SOURCE"}
    parser.add_argument("--source", "--sources", help=help_text, **names)
    help_text = ".csv: term, definition, url, source; .jsonl: pairs"
    parser.add_argument("--output", type=Path, required=True, metavar="F.csv|F.jsonl", help=help_text)
    help_text = "at most N terms of each source"
    parser.add_argument("--limit-per-source", "--limit_per_source", type=int, metavar="N", help=help_text)
    help_text = "language of Wikipedia and of the requested pages (default en)"
    parser.add_argument("--lang", default="en", metavar="xx", help=help_text)
    help_text = "check the sources without a request, and crawl the sample pages of the package"
    parser.add_argument("--dry-run", action="store_true", help=help_text)
    add_workers(parser, "1")
    _add_requests(parser.add_argument_group("requests"))


def _add_requests(group) -> None:
    help_text = "seconds between two requests to one host (default 1)"
    group.add_argument("--delay", type=float, default=1.0, metavar="S", help=help_text)
    help_text = "seconds to wait for one whole response (default 30)"
    group.add_argument("--timeout", type=float, default=30.0, metavar="S", help=help_text)
    help_text = "an address or page where the sites can reach you; it is sent in the User-Agent"
    group.add_argument("--contact", default="", metavar="C", help=help_text)
    help_text = "folder of cached responses, with which a stopped crawl resumes (default: in the user's cache)"
    group.add_argument("--cache", type=Path, metavar="DIR", help=help_text)
    help_text = "seconds for which a cached response is used (default 86400; 0: never)"
    group.add_argument("--max-age", type=float, default=86_400.0, metavar="S", help=help_text)


def run(args: argparse.Namespace) -> None:
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise Failed(f"crawl needs {', '.join(missing)}: pip install 'embedfleet[crawl]'")
    from data_prep.crawling.crawl import crawl

    options = values(args, "delay", "timeout", "contact", "cache", "max_age", "dry_run") | workers_of(args, 1)
    crawl(args.sources, args.output, limit=args.limit_per_source, language=args.lang, **options)


def next_step(args: argparse.Namespace) -> list:
    return shard_next(args.output)
