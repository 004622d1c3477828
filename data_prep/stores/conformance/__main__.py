"""Checks a store: python -m data_prep.stores.conformance --store KIND --path DIR (or --url, --host …)."""

import argparse
import sys
import time
from collections.abc import Callable

from data_prep.common.console import result
from data_prep.common.errors import BadInput, guarded, nearest
from data_prep.common.parser import Parser
from data_prep.common.paths import with_homes
from data_prep.stores.conformance.checks import CHECKS
from data_prep.stores.conformance.memory import read_many
from data_prep.stores.conformance.place import Place
from data_prep.stores.flags import add_store, store_of

EXAMPLE = "python -m data_prep.stores.conformance --store my_module:MyStore --path new"


def main(argv: list[str] | None = None) -> int:
    summary = "Checks that a store keeps the promises of data_prep.stores.base. Exit code 1 if it breaks one."
    parser = Parser("python -m data_prep.stores.conformance", summary, EXAMPLE)
    rule = "Collections whose names begin with conformance_ are written and deleted; others stay untouched."
    parser.add_argument_group(
        "checks", "\n  ".join([rule, *(f"{name}: {check.__doc__}" for name, check in CHECKS.items())])
    )
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="these checks (default: all)")
    text = "also write N chunks and read them, and check that memory does not grow with N"
    parser.add_argument("--chunks", type=int, metavar="N", help=text)
    add_store(parser, required=False)
    return guarded(lambda: run(with_homes(parser.parse_args(argv))))


def run(args: argparse.Namespace) -> int:
    args.collection = args.collection or "conformance"
    place = Place(store_of(args))
    checks = {name: CHECKS[name] for name in _chosen(args.only)}
    if args.chunks is not None:
        checks["memory"] = lambda place: read_many(place, args.chunks)
    broken = [name for name, check in checks.items() if not _kept(name, check, place)]
    result(f"{len(broken)} broken: {', '.join(broken)}" if broken else "all kept")
    return 1 if broken else 0


def _chosen(only: list[str] | None) -> list[str]:
    problems = [f"--only {name}: no such check.{nearest(name, CHECKS)}" for name in only or [] if name not in CHECKS]
    if problems:
        raise BadInput(problems)
    return only or [*CHECKS]


def _kept(name: str, check: Callable[[Place], str | None], place: Place) -> bool:
    """Runs a check, prints a line, and returns False where it is broken."""
    began = time.perf_counter()
    try:
        try:
            note = check(place)
        finally:
            place.clean()
    except Exception as error:  # a plug-in's own bug is a broken promise too
        result(f"BROKEN  {name}: {type(error).__name__}: {' '.join(str(error).split())}")
        return False
    result(f"kept    {name} ({time.perf_counter() - began:.1f} s)" + (f": {note}" if note else ""))
    return True


if __name__ == "__main__":
    sys.exit(main())
