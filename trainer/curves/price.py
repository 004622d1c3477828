"""The price of a pair, from what the generation of pairs has cost."""

from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.texts.tokenizer_rules import read_object

PAIRS, COST = "pairs", "cost"  # keys of the usage file that `python -m data_prep generate` writes


def price_of(usage: Path) -> float:
    """Returns the cost of a pair by a usage file. Raises BadInput for another file, and for one without a cost."""
    if not usage.is_file():
        raise BadInput(f"--usage {usage}: no such file; data_prep generate writes it beside its output")
    facts = read_object(usage)
    cost, pairs = facts.get(COST), facts.get(PAIRS)
    if not isinstance(pairs, int) or pairs < 1 or COST not in facts:
        raise BadInput(f"--usage {usage}: is not what data_prep generate writes beside its output (PAIRS.usage.json)")
    if not isinstance(cost, int | float) or isinstance(cost, bool):
        mend = "generate again with --price-in and --price-out (no answer is asked for twice), or give --price-per-pair"
        raise BadInput(f"--usage {usage}: holds no cost; {mend}")
    return cost / pairs
